"""They open it, they type, they hear something."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from modules import audio
from modules.audio import Clip
from modules.contract import TrackQuery
from tests.browser.conftest import Site, wait_for_sound

FILE = re.compile(r"^fake_\d{8}_\d\d_\d\d(_\d+)?\.wav$")


def ask(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")


def test_a_prompt_becomes_a_bubble_a_file_a_card_and_a_sound(page: Page, site: Site) -> None:
    ask(page, "warm lo-fi piano")
    expect(page.locator(".take .link")).to_have_text(FILE)
    expect(page.locator("#card .card-title")).to_have_text(FILE)
    expect(page.locator("#card .card-prompt")).to_have_text("warm lo-fi piano")
    wait_for_sound(page)
    assert len(site.studio.jobs()) == 1


@pytest.mark.complains
def test_music_that_was_made_before_its_stream_came_is_heard_as_the_track(page: Page) -> None:
    page.route("**/api/jobs/*/audio", lambda route: route.abort())
    ask(page, "quicker than the page")
    expect(page.locator("#card .card-title")).to_have_text(FILE)
    wait_for_sound(page)
    expect(page.locator("#card .transport [aria-label=Pause]")).to_be_visible()


def test_music_sounds_while_it_is_made_and_becomes_the_track_without_a_jump(page: Page, site: Site) -> None:
    site.engine.step_s = 0.006
    ask(page, "slow strings")
    expect(page.locator(".live .time")).to_be_visible()
    wait_for_sound(page)
    # Twenty times a second, from here until past the job's end: whether it sounds, and where the player says it is.
    page.evaluate("""() => {
      window.__heard = [];
      const clock = () => {
        const shown = document.querySelector('#card .transport .time') ?? document.querySelector('.live .time');
        const [minutes, seconds] = (shown?.textContent ?? '0:00').split(' ')[0].split(':').map(Number);
        return minutes * 60 + seconds;
      };
      window.__watch = setInterval(() => window.__heard.push([window.__level(), clock()]), 50);
    }""")
    expect(page.locator("#card .card-title")).to_have_text(FILE)
    page.wait_for_timeout(600)
    heard = page.evaluate("clearInterval(window.__watch), window.__heard")
    assert min(level for level, _ in heard) > 0.01, "there was a hole in the sound"
    clocks = [at for _, at in heard]
    assert clocks == sorted(clocks), "the position jumped back"
    expect(page.locator("#card .transport [aria-label=Pause]")).to_be_visible()


def test_with_live_switched_off_nothing_sounds_by_itself_and_the_switch_is_remembered(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Live").click()
    site.engine.step_s = 0.002
    ask(page, "quiet please")
    expect(page.locator("#card .card-title")).to_have_text(FILE)
    page.wait_for_timeout(300)
    assert page.evaluate("window.__level()") < 0.001
    page.reload()
    expect(page.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "false")


def test_a_reload_keeps_the_chat_and_takes_up_the_running_job(page: Page, site: Site) -> None:
    ask(page, "first")
    expect(page.locator(".take .link")).to_have_count(1)
    site.engine.step_s = 0.01
    ask(page, "second")
    expect(page.locator("progress")).to_be_visible()
    page.reload()
    expect(page.locator(".bubble-text")).to_have_text(["first", "second"])
    expect(page.locator("progress")).to_be_visible()
    site.engine.step_s = 0
    expect(page.locator(".take .link")).to_have_count(2)


def test_a_double_click_and_a_hurried_enter_make_one_job(page: Page, site: Site) -> None:
    page.fill("#prompt", "once")
    page.locator("#generate").dblclick()
    page.keyboard.press("Enter")
    expect(page.locator(".take .link")).to_have_count(1)
    assert len(site.studio.jobs()) == 1
    expect(page.locator(".problem")).to_have_text("")


def test_while_a_job_runs_the_composer_takes_the_next_and_either_can_be_cancelled(page: Page, site: Site) -> None:
    site.engine.step_s = 0.03
    ask(page, "first")
    expect(page.locator(".live")).to_be_visible()
    ask(page, "second")
    waiting = page.locator(".entry").nth(1)
    expect(waiting.locator(".phase")).to_have_text("Next in line")
    waiting.get_by_role("button", name="Cancel").click()
    expect(waiting.locator(".said")).to_have_text("Cancelled")
    site.wait(lambda: site.studio.jobs()[0].live_s > 0)
    page.locator(".entry").nth(0).get_by_role("button", name="Keep what I heard").click()
    expect(page.locator(".entry").nth(0).locator(".take .link")).to_have_text(FILE)
    expect(page.locator(".entry").nth(0).locator(".said")).to_contain_text("kept")


def test_an_empty_prompt_says_so_where_the_person_is_looking(page: Page, site: Site) -> None:
    page.locator("#generate").click()
    expect(page.locator(".problem")).to_have_text("Write what the music should be.")
    expect(page.locator("#prompt")).to_be_focused()
    assert site.studio.jobs() == []


def test_a_failed_job_says_why_and_can_be_tried_again(page: Page, site: Site) -> None:
    site.engine.fail = RuntimeError("a defect")
    ask(page, "unlucky")
    trouble = page.locator(".trouble")
    expect(trouble).to_contain_text("Something went wrong")
    site.engine.fail = None
    trouble.get_by_role("button", name="Retry").click()
    expect(page.locator(".take .link")).to_have_count(1)
    assert [spec.prompt for spec in site.engine.specs] == ["unlucky", "unlucky"]


@pytest.mark.complains
def test_a_full_queue_says_when_a_place_should_be_free_and_counts_down(page: Page, site: Site) -> None:
    site.engine.step_s = 0.05
    site.studio.jobs_queue._capacity = 1
    for prompt in ("first", "second", "third"):
        ask(page, prompt)
        expect(page.locator(".entry")).to_have_count(("first", "second", "third").index(prompt) + 1)
        expect(page.get_by_text("Sending")).to_have_count(0)
    trouble = page.locator(".trouble")
    expect(trouble).to_contain_text("The queue is full")
    left = trouble.locator(".countdown")
    expect(left).to_contain_text("A place should be free")
    said = left.inner_text()
    expect(left).not_to_have_text(said)
    page.reload()
    expect(page.locator(".countdown")).to_contain_text("A place should be free")
    site.engine.step_s = 0
    expect(page.locator(".take .link")).to_have_count(2)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".take .link")).to_have_count(3)
    expect(page.locator(".trouble")).to_have_count(0)


def test_rerun_makes_the_same_music_and_reuse_brings_the_request_back(page: Page, site: Site) -> None:
    ask(page, "again")
    expect(page.locator(".take .link")).to_have_count(1)
    page.locator(".asked").get_by_role("button", name="Rerun").click()
    expect(page.locator(".take .link")).to_have_count(2)
    one, two = site.engine.specs
    assert one.seeds == two.seeds
    page.locator(".asked").first.get_by_role("button", name="Reuse").click()
    expect(page.locator("#prompt")).to_have_value("again")


def test_shift_enter_breaks_the_line(page: Page, site: Site) -> None:
    page.fill("#prompt", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#prompt")).to_have_value("one\ntwo")
    assert site.studio.jobs() == []


def test_settings_are_the_contracts_and_reach_the_engine(page: Page, site: Site) -> None:
    page.locator("#settings-toggle").click()
    page.fill("#set-seed", "77")
    page.locator("#set-seed").blur()
    page.get_by_label("Duration, s, exact value").fill("3")
    page.get_by_label("Top P, exact value").fill("0.8")
    page.get_by_label("Top P, exact value").blur()
    expect(page.locator("#set-top_k")).to_be_disabled()
    expect(page.locator("#set-top_k-hint")).to_contain_text("Off")
    page.locator("label[for=set-top_p]").dblclick()
    expect(page.locator("#set-top_k")).to_be_enabled()
    ask(page, "exact")
    expect(page.locator(".take .link")).to_have_text(re.compile("_77_"))
    (spec,) = site.engine.specs
    assert (spec.duration_s, spec.top_p, spec.seeds) == (3, 0, (77,))
    expect(page.locator(".preflight")).to_contain_text("on this machine")


def test_what_does_not_fit_the_memory_is_said_with_what_would_and_is_one_press_away(page: Page, site: Site) -> None:
    site.manager.too_big["fake"] = [
        {"model": "fake", "precision": "int4"},
        {"model": "fake-melody", "precision": "int8"},
    ]
    page.locator("#settings-toggle").click()
    page.get_by_label("Duration, s, exact value").fill("3")
    page.locator("#settings-toggle").click()
    expect(page.locator(".preflight")).to_contain_text("This needs 9")
    expect(page.locator(".preflight")).to_contain_text("--precision int4")
    ask(page, "an orchestra")
    trouble = page.locator(".trouble")
    expect(trouble).to_contain_text("Not enough memory")
    trouble.get_by_role("button", name="Use Melody").click()
    expect(page.locator(".take .link")).to_have_count(1)
    assert site.studio.tracks(TrackQuery())[0][0].model == "fake-melody"
    page.locator(".preflight").get_by_role("button", name="Use Melody").click()
    expect(page.locator(".preflight")).to_contain_text("on this machine")
    site.manager.too_big["fake-melody"] = []
    ask(page, "nothing fits")
    expect(page.locator(".trouble").last).to_contain_text("Close other programs")


def test_the_other_decoder_is_offered_where_there_is_one_and_the_card_says_what_rendered(
    page: Page, site: Site
) -> None:
    page.locator("#settings-toggle").click()
    decoder = page.get_by_label("Decoder")
    expect(decoder).to_be_disabled()
    expect(page.locator("#set-decoder-hint")).to_contain_text("its own codec only")
    page.locator(".model-button").click()
    row = page.locator("[data-model=fake-melody]")
    expect(row).to_contain_text("can be rendered by Multi-Band Diffusion (licence CC-BY-NC 4.0)")
    row.get_by_role("button", name="Choose").click()
    page.keyboard.press("Escape")
    expect(page.locator("#set-decoder-hint")).to_contain_text("half an hour on two CPU cores")
    decoder.select_option("diffusion")
    expect(page.locator(".preflight")).to_contain_text("28 min")
    reached, go = threading.Event(), threading.Event()

    def hold(step: int) -> None:
        if step == 2:
            reached.set()
            go.wait(10)

    site.manager.hold_render = hold
    ask(page, "slow strings")
    site.wait(reached.is_set)
    expect(page.locator(".phase", has_text="Rendering the final sound")).to_be_visible()
    go.set()
    expect(page.locator("#card tr", has_text="Decoder")).to_contain_text("Multi-Band Diffusion")
    assert site.studio.jobs()[-1].request["decoder"] == "diffusion"


def test_a_number_that_is_being_typed_stays_while_other_settings_change(page: Page) -> None:
    page.locator("#settings-toggle").click()
    box = page.get_by_label("Duration, s, exact value")
    box.click()
    box.fill("42")
    page.evaluate("""() => {
      const slider = document.querySelector('#set-temperature');
      slider.value = '1.5';
      slider.dispatchEvent(new Event('input'));
    }""")
    expect(page.get_by_label("Temperature, exact value")).to_have_value("1.5")
    expect(box).to_have_value("42")
    box.press("Enter")
    expect(page.locator("#set-duration")).to_have_value("42")


def test_a_preset_is_saved_found_again_and_deleted(page: Page) -> None:
    page.locator("#settings-toggle").click()
    page.get_by_label("Duration, s, exact value").fill("42")
    page.get_by_role("button", name="Save preset").click()
    page.fill("#preset-name", "My long one")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Reset all").click()
    expect(page.get_by_label("Duration, s, exact value")).to_have_value("10")
    page.reload()
    page.get_by_label("Presets").select_option(label="My long one")
    expect(page.get_by_label("Duration, s, exact value")).to_have_value("42")
    page.get_by_label("Duration, s, exact value").fill("7")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Presets")).to_have_value("")
    page.get_by_label("Presets").select_option(label="My long one")
    expect(page.get_by_label("Duration, s, exact value")).to_have_value("42")
    page.get_by_role("button", name="Delete the chosen preset").click()
    expect(page.get_by_label("Presets").locator("option", has_text="My long one")).to_have_count(0)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    at = np.arange(16_000 * 2, dtype=np.float32) / 16_000
    path = tmp_path / "my hum.wav"
    audio.encode(Clip(0.3 * np.sin(np.float32(2 * np.pi * 330) * at)[None], 16_000), path, "wav")
    return path


def drop(page: Page, path: Path, *, lost: bool = False, beside: tuple[str, ...] = ()) -> None:
    """Drop a file, and others `beside` it, in the middle of the chat; or carry it away without a word."""
    data = page.evaluate_handle(
        """([bytes, beside]) => {
          const carried = new DataTransfer();
          for (const name of beside) carried.items.add(new File(['x'], name));
          carried.items.add(new File([new Uint8Array(bytes)], 'my hum.wav', { type: 'audio/wav' }));
          return carried;
        }""",
        [list(path.read_bytes()), beside],
    )
    for event in ("dragenter", "dragover") if lost else ("dragenter", "dragover", "drop"):
        page.dispatch_event("#scroll", event, {"dataTransfer": data})


def test_a_dropped_file_is_asked_about_and_can_be_continued(page: Page, site: Site, clip: Path) -> None:
    drop(page, clip, lost=True)
    expect(page.locator(".veil")).to_be_visible()
    expect(page.locator(".veil")).to_be_hidden()
    drop(page, clip, beside=("notes.txt",))
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".toast")).to_have_text("Only one file is taken at a time: my hum.wav.")
    drop(page, clip)
    expect(dialog.locator(".toast")).to_have_count(2)
    expect(dialog).to_have_count(1)
    expect(dialog.get_by_role("button", name="An audio prompt")).to_be_disabled()
    dialog.get_by_role("button", name="A clip to continue").click()
    expect(page.locator(".chip")).to_contain_text("Continue: my hum.wav")
    ask(page, "and on it goes")
    expect(page.locator(".take .link")).to_have_count(1)
    expect(page.locator("#card .parameters")).to_contain_text("Goes on from")
    (spec,) = site.engine.specs
    assert spec.prompt_codes is not None


def test_a_dropped_file_can_be_the_melody_of_a_model_that_takes_one(page: Page, site: Site, clip: Path) -> None:
    page.locator(".model-button").click()
    page.get_by_role("button", name="Choose Melody").click()
    page.keyboard.press("Escape")
    drop(page, clip)
    page.get_by_role("dialog").get_by_role("button", name="An audio prompt").click()
    expect(page.locator(".chip")).to_contain_text("Audio prompt: my hum.wav")
    ask(page, "follow it")
    expect(page.locator(".take .link")).to_have_count(1)
    assert site.engine.specs[0].melody is not None


def test_a_dropped_file_can_be_split(page: Page, site: Site, clip: Path) -> None:
    drop(page, clip)
    page.get_by_role("dialog").get_by_role("button", name="A file to split").click()
    expect(page.locator(".bubble-text")).to_have_text("Split into stems: my hum.wav")
    site.wait(lambda: site.separator.splits != [])


def test_the_chat_is_exported_cleared_and_imported(page: Page, context: BrowserContext, tmp_path: Path) -> None:
    ask(page, "keep me")
    expect(page.locator(".take .link")).to_have_count(1)
    page.locator("#more").click()
    with page.expect_download() as export:
        page.get_by_role("button", name="Export chat as JSON").click()
    kept = tmp_path / "chat.json"
    export.value.save_as(kept)
    assert json.loads(kept.read_text(encoding="utf-8"))["chat"][0]["request"]["prompt"] == "keep me"
    page.evaluate("localStorage.clear()")
    page.reload()
    page.evaluate("localStorage.clear()")
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator(".welcome")).to_be_visible()
    other.locator(".menu-host input[type=file]").set_input_files(kept)
    expect(other.locator(".bubble-text")).to_have_text("keep me")
