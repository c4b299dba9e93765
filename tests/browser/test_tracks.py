"""One card, its player and its actions; takes; the library; what is deleted is gone everywhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from modules import audio
from modules.contract import GenerateRequest, SeparatorInfo, TrackQuery
from tests.browser.conftest import Site, wait_for_silence, wait_for_sound, wait_until


def make(site: Site, prompt: str, **changes: object) -> list[str]:
    """Tracks made without the page."""
    body = {
        "kind": "generate",
        "client_id": f"c{len(site.studio.jobs())}",
        "prompt": prompt,
        "model": "fake",
        "duration": 2.0,
    }
    job = site.studio.submit(body | changes)
    site.idle()
    return site.studio.job(job.id).tracks


@pytest.fixture
def two(page: Page, site: Site) -> tuple[str, str]:
    """Two tracks, made through the page, in its chat."""
    page.get_by_role("button", name="Live").click()
    for number, prompt in enumerate(("first one", "second one"), start=1):
        page.fill("#prompt", prompt)
        page.keyboard.press("Enter")
        expect(page.locator(".take .link")).to_have_count(number)
    names = [link.get_attribute("data-track") or "" for link in page.locator(".take .link").all()]
    return names[0], names[1]


LAID = """
// Every piece that is laid on the sound clock: when, how many frames, its first and last sample.
(() => {
  const start = AudioBufferSourceNode.prototype.start;
  window.__laid = [];
  AudioBufferSourceNode.prototype.start = function (when, ...rest) {
    const samples = this.buffer.getChannelData(0);
    window.__laid.push([when, samples.length, samples[0], samples[samples.length - 1], this.buffer.sampleRate]);
    return start.call(this, when, ...rest);
  };
})();
"""


def test_a_loop_plays_round_and_round_and_its_seam_can_be_heard(page: Page, site: Site) -> None:
    make(site, "first of all")  # measuring loudness is slow once
    page.context.add_init_script(LAID)
    page.reload()
    page.wait_for_selector(".model-name")
    page.locator("#settings-toggle").click()
    page.get_by_role("checkbox", name="Loop").check()
    page.get_by_label("Duration, s, exact value").fill("2")
    page.fill("#prompt", "round and round")
    site.engine.step_s = 0.005
    page.keyboard.press("Enter")
    # What is heard while it is made goes round once it is a loop.
    play = page.locator(".transport").get_by_role("button", name="Play", exact=True)
    pause = page.locator(".transport").get_by_role("button", name="Pause", exact=True)
    loop = page.locator(".transport").get_by_role("button", name="Loop", exact=True)
    expect(pause).to_be_visible()
    expect(loop).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1_500)
    wait_for_sound(page)
    pause.click()
    page.evaluate("() => window.__laid.splice(0)")
    track = site.studio.tracks(TrackQuery())[0][0]
    name = track.name
    assert track.loop is not None
    expect(page.locator("#card .parameters")).to_contain_text("at the seam the level changes by")
    seam = page.get_by_role("button", name="Hear the seam")
    seam.focus()
    page.keyboard.press("Enter")
    expect(seam).to_have_attribute("aria-pressed", "true")
    wait_for_sound(page)
    expect(seam).to_have_attribute("aria-pressed", "false")
    expect(play).to_be_visible()
    span = min(2.0, track.duration_s / 2)
    assert_without_a_gap(page, site, name, [(track.duration_s - span, track.duration_s), (0.0, span)])

    # The player goes round by itself, until it is told not to.
    play.click()
    laid = "() => window.__laid.reduce((seconds, [, frames, , , rate]) => seconds + frames / rate, 0)"
    wait_until(page, lambda: page.evaluate(laid) >= track.duration_s + 0.1)
    wait_for_sound(page)
    pause.click()
    assert_without_a_gap(page, site, name, [(0.0, track.duration_s), (0.0, 0.1)])
    loop.click()
    expect(loop).to_have_attribute("aria-pressed", "false")


def assert_without_a_gap(page: Page, site: Site, name: str, spans: list[tuple[float, float]]) -> None:
    """What was laid on the clock since the last call are these stretches of the track, one right after the other."""
    laid: list[list[Any]] = page.evaluate("() => window.__laid.splice(0)")
    rate = laid[0][4]
    samples = audio.decode(site.studio.audio_file(name)).samples[0]
    expected = np.concatenate([np.arange(round(start * rate), round(end * rate)) for start, end in spans])
    clock = round(laid[0][0] * rate)
    done = 0
    for when, frames, first, last, _ in laid:
        assert round(when * rate) == clock + done, "a gap, or one piece over another"
        if done + frames <= len(expected):
            assert first == pytest.approx(samples[expected[done]], abs=1e-6)
            # The last sample of all is faded out.
            ends = done + frames == len(expected)
            assert ends or last == pytest.approx(samples[expected[done + frames - 1]], abs=1e-6)
        done += frames
    assert done >= len(expected)
    # Opened again, silent: what it goes round is marked at once.
    page.reload()
    page.locator(".take .link").last.click()
    expect(page.locator("#card .wave [part~=region]")).to_have_count(1)


def card_title(page: Page) -> str:
    return page.locator("#card .card-title").inner_text()


def test_a_file_name_opens_the_one_card(page: Page, two: tuple[str, str]) -> None:
    for name in (*two, two[0]):
        page.locator(f".take [data-track='{name}']").click()
        expect(page.locator(".card-title")).to_have_text(f"{name}.wav")
        expect(page.locator(".take [aria-current=true]")).to_have_count(1)
        expect(page.locator("#card .wave > div")).to_have_count(1)
    assert page.locator(".card").count() == 1


def test_one_thing_sounds_at_a_time_and_stops_when_its_track_is_deleted(page: Page, two: tuple[str, str]) -> None:
    page.get_by_role("button", name=f"Play {two[0]}.wav").click()
    wait_for_sound(page)
    page.get_by_role("button", name=f"Play {two[1]}.wav").click()
    expect(page.get_by_role("button", name=f"Pause {two[1]}.wav")).to_be_visible()
    expect(page.get_by_role("button", name=f"Play {two[0]}.wav")).to_be_visible()
    page.locator(f".take [data-track='{two[1]}']").click()
    page.locator(".card-actions").get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".goes li")).to_have_text([f"{two[1]}.wav", f"{two[1]}.json", f"{two[1]}.tokens.npz"])
    dialog.get_by_role("button", name="Delete").click()
    expect(page.locator(".take.removed")).to_contain_text("deleted")
    expect(page.locator(".card-empty")).to_be_visible()
    wait_for_silence(page)


def test_the_player_seeks_loops_and_keeps_its_volume(page: Page, two: tuple[str, str]) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator(".transport").get_by_role("button", name="Loop").click()
    page.locator(".transport").get_by_role("button", name="Play").click()
    wait_for_sound(page)
    box = page.locator("#card .wave").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.95, box["y"] + box["height"] / 2)
    expect(page.locator(".transport .time")).to_have_text(re.compile(r"^0:09 /"))
    # Past the end it goes on from the start, still sounding.
    expect(page.locator(".transport .time")).to_have_text(re.compile(r"^0:00 /"))
    wait_for_sound(page)
    page.get_by_label("Volume", exact=True).fill("0")
    wait_for_silence(page)
    page.reload()
    page.locator(f".take [data-track='{two[0]}']").click()
    expect(page.get_by_label("Volume", exact=True)).to_have_value("0")


def test_takes_stand_side_by_side_and_change_over_in_place(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Live").click()
    page.locator("#settings-toggle").click()
    page.get_by_label("Takes, exact value").fill("3")
    page.get_by_label("Takes, exact value").blur()
    page.fill("#prompt", "three of them")
    page.keyboard.press("Enter")
    expect(page.locator(".takes.many .take")).to_have_count(3)
    page.get_by_role("button", name="Play Take 1").click()
    wait_for_sound(page)
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Play Take 3").click()
    expect(page.get_by_role("button", name="Pause Take 3")).to_be_visible()
    wait_for_sound(page)
    name = page.locator(".take .link").nth(2).get_attribute("data-track")
    page.locator(".take .link").nth(2).click()
    expect(page.locator(".card-title")).to_have_text(f"{name}.wav")
    shown = page.locator(".transport .time").inner_text()
    assert int(shown.split(":")[1][:2]) >= 1, "the place was lost"
    assert len(site.engine.specs[0].seeds) == 3


def test_a_lock_and_a_star_are_kept_and_a_locked_track_cannot_be_deleted(
    page: Page, site: Site, two: tuple[str, str]
) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator("#card").get_by_role("button", name="Lock").click()
    page.locator("#card").get_by_role("button", name="Favourite").click()
    expect(page.locator(".card-actions").get_by_role("button", name="Delete")).to_be_disabled()
    site.wait(lambda: site.studio.track(two[0]).favourite)
    assert site.studio.track(two[0]).locked


def test_clearing_says_what_goes_asks_twice_and_spares_what_is_locked(
    page: Page, site: Site, two: tuple[str, str]
) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator("#card").get_by_role("button", name="Lock").click()
    site.wait(lambda: site.studio.track(two[0]).locked)
    page.locator("#more").click()
    page.get_by_role("button", name="Clear everything").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".goes li")).to_have_text(["1 track goes", "2 messages go", "1 locked track stays"])
    dialog.get_by_role("button", name="Tracks and chat").click()
    expect(page.get_by_role("dialog")).to_contain_text("gone for good")
    assert len(site.studio.tracks(TrackQuery())[0]) == 2
    page.get_by_role("dialog").get_by_role("button", name="Yes, clear").click()
    expect(page.locator(".welcome")).to_be_visible()
    assert [track.name for track in site.studio.tracks(TrackQuery())[0]] == [two[0]]


def test_extend_goes_on_from_the_end_as_a_new_track_that_knows_its_parent(
    page: Page, site: Site, two: tuple[str, str]
) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator(".card-actions").get_by_role("button", name="Extend").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Seconds to add").fill("4")
    dialog.get_by_role("button", name="Extend").click()
    expect(page.locator(".take .link")).to_have_count(3)
    site.idle()
    newest = site.studio.tracks(TrackQuery())[0][0]
    assert newest.continuation is not None
    assert newest.continuation.name == two[0]
    assert newest.duration_s == pytest.approx(14, abs=0.1)


def test_download_as_offers_every_format_and_gives_a_file(page: Page, two: tuple[str, str]) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator(".card-actions").get_by_role("button", name="Download as").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Format").select_option("flac")
    with page.expect_download() as download:
        dialog.get_by_text("Download", exact=True).click()
    assert download.value.suggested_filename == f"{two[0]}.flac"
    assert download.value.path().read_bytes()[:4] == b"fLaC"


def test_splitting_shows_in_the_chat_and_its_stems_in_the_table_of_what_goes(
    page: Page, site: Site, two: tuple[str, str]
) -> None:
    page.locator(f".take [data-track='{two[0]}']").click()
    page.locator(".card-actions").get_by_role("button", name="Split stems").click()
    page.get_by_role("dialog").get_by_role("button", name="Split stems").click()
    expect(page.locator(".said")).to_have_text("The stems are ready.")
    site.wait(lambda: len(site.studio.track(two[0]).stems) == 4)
    page.locator(".card-actions").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog").locator(".goes li")).to_have_count(7)


def test_the_split_dialog_says_when_only_the_sketch_separator_is_here(
    page: Page, site: Site, two: tuple[str, str]
) -> None:
    real = SeparatorInfo(
        id="htdemucs", title="Hybrid Transformer Demucs", stems=["drums"], licence="MIT", state="downloadable",
        download_bytes=84_100_000,
    )  # fmt: skip
    site.separator.others, site.separator.sketch = [real], True
    page.locator(f".take [data-track='{two[0]}']").click()
    split = page.locator(".card-actions").get_by_role("button", name="Split stems")
    split.click()
    dialog, note = page.get_by_role("dialog"), page.locator("#split-note")
    expect(note).to_contain_text("comes with the program")
    dialog.get_by_label("Separator").select_option("htdemucs")
    expect(note).to_be_hidden()
    dialog.get_by_label("Separator").select_option("fake")
    expect(note).to_be_visible()
    page.keyboard.press("Escape")
    site.separator.others = [real.model_copy(update={"state": "ready", "download_bytes": 0})]
    split.click()
    expect(dialog.get_by_label("Separator")).to_have_value("auto")
    expect(note).to_be_hidden()


def test_the_library_searches_filters_pages_and_opens(page: Page, site: Site) -> None:
    wanted = make(site, "a needle in the hay")[0]
    for number in range(3):
        make(site, f"hay {number}", format="flac" if number else "wav")
    page.get_by_role("button", name="Library", exact=True).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".track-row")).to_have_count(4)
    drawer.get_by_label("Format").select_option("flac")
    expect(drawer.locator(".track-row")).to_have_count(2)
    drawer.get_by_label("Format").select_option("")
    drawer.get_by_placeholder("Search").fill("needle")
    expect(drawer.locator(".count")).to_have_text("1 track")
    drawer.locator(".track-open").click()
    expect(page.locator(".card-title")).to_have_text(f"{wanted}.wav")


def test_a_clip_to_continue_can_be_picked_from_the_library(page: Page, site: Site) -> None:
    name = make(site, "the beginning")[0]
    page.locator("#settings-toggle").click()
    loop = page.get_by_role("checkbox", name="Loop")
    loop.check()
    page.get_by_role("group", name="Continue or append to").get_by_role("button", name="Library").click()
    page.get_by_role("dialog").locator(".track-open").click()
    expect(loop).to_be_disabled()
    expect(loop).not_to_be_checked()
    expect(page.locator("#set-loop-hint")).to_contain_text("cannot lead back")
    page.get_by_label("How").select_option("append")
    expect(page.locator(".chip")).to_contain_text(f"Append to: {name}")
    page.fill("#prompt", "the end")
    page.keyboard.press("Enter")
    expect(page.locator(".take .link")).to_have_count(1)
    request = site.studio.jobs()[-1].request
    parsed = GenerateRequest.model_validate(request)
    assert parsed.continuation is not None
    assert (parsed.continuation.track, parsed.continuation.mode) == (name, "append")
    assert not parsed.loop
    expect(loop).to_be_checked()


def test_what_another_page_makes_or_deletes_is_seen_here(page: Page, site: Site) -> None:
    followed: list[str] = []
    page.on("request", lambda request: followed.append(request.url) if "/api/jobs/" in request.url else None)
    name = make(site, "from elsewhere")[0]
    page.get_by_role("button", name="Library", exact=True).click()
    expect(page.locator(".track-row")).to_have_count(1)
    site.studio.delete(name)
    expect(page.locator(".track-row")).to_have_count(0)
    expect(page.locator(".count")).to_have_text("0 tracks")
    assert followed == [], "sound that nobody can hear here was asked for"


def test_sound_that_is_asked_for_after_its_job_has_given_way_is_no_complaint(page: Page, site: Site) -> None:
    late: list[Route] = []

    def hold(route: Route) -> None:
        late.append(route)

    page.route("**/api/jobs/*/audio", hold)
    site.engine.step_s = 0.002  # slowly enough to be seen running
    for number in (1, 2):
        page.fill("#prompt", f"short {number}")
        page.keyboard.press("Enter")
        expect(page.locator(".take .link")).to_have_count(number)
    wait_until(page, lambda: len(late) == 2)
    with page.expect_response("**/api/jobs/*/audio") as answer:
        late[0].continue_()
    assert answer.value.status == 204
    late[1].continue_()


def test_the_chat_is_one_for_every_page_of_the_browser(page: Page, context: BrowserContext, site: Site) -> None:
    page.fill("#prompt", "asked here")
    page.keyboard.press("Enter")
    other = context.new_page()
    other.goto(site.url)
    other.fill("#prompt", "asked there")
    other.keyboard.press("Enter")
    expect(page.locator(".bubble-text")).to_have_text(["asked here", "asked there"])
    expect(page.locator(".take .link")).to_have_count(2)
    page.bring_to_front()  # a page behind another one draws once a second, and a press waits for that
    page.locator("#more").click()
    page.get_by_role("button", name="Clear everything…").click()
    page.get_by_role("button", name="Only the chat…").click()
    page.get_by_role("button", name="Yes, clear").click()
    expect(other.locator(".welcome")).to_be_visible()


@pytest.mark.complains
def test_a_failure_under_a_dialog_is_said_in_it_where_it_can_be_put_away(page: Page, site: Site) -> None:
    make(site, "stays")
    page.route("**/api/tracks/*", lambda route: route.abort())
    page.get_by_role("button", name="Library", exact=True).click()
    page.locator(".track-row button").last.click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".toast")).to_contain_text("The studio does not answer.")
    page.locator(".toast").get_by_role("button", name="Close").click()
    expect(page.locator(".toast")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("body > .toasts")).to_have_count(1)
