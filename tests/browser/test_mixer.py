"""The mixer in Chromium: the stems together, what is rendered, and what can be taken away."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from playwright.sync_api import BrowserContext, Page, expect

from modules import audio, stems
from modules.contract import Track, TrackQuery
from modules.settings import ROOT
from tests.browser.conftest import Site, wait_for_sound, wait_until, watched
from tests.library_parts import WHEN, draft
from tests.pace import slowness

pytestmark = pytest.mark.browser

RATE_HZ = 44_100
SECONDS = 9.5  # three pieces, the last one short
Samples = npt.NDArray[np.float32]
AXE = ROOT / "node_modules/axe-core/axe.min.js"


def parts(seconds: float = SECONDS, gain: float = 1.0) -> dict[str, Samples]:
    """Known stems, float32 [2, T]: no two alike, none symmetric."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(3).standard_normal(len(t))
    drums = noise * np.exp(-((t * 2) % 1) * 12) * 0.2
    bass = np.sin(2 * np.pi * 82.4 * 2 ** (np.floor(t * 2) % 5 / 12) * t) * 0.3
    vocals = np.sin(2 * np.pi * 440 * t + 4 * np.sin(2 * np.pi * 5 * t)) * 0.2
    other = sum(np.sin(2 * np.pi * f * t) for f in (261.6, 329.6, 392.0)) * 0.06
    found = {
        "drums": (drums, drums * 0.5),
        "bass": (bass, bass),
        "vocals": (vocals * 0.4, vocals),
        "other": (other, -other),
    }
    return {name: (np.stack(sides) * gain).astype(np.float32) for name, sides in found.items()}


def write_stem(path: Path, samples: Samples) -> Path:
    """As our separator writes them."""
    path.write_bytes(stems.float_wav_header(RATE_HZ, 2, samples.shape[1]) + samples.T.astype("<f4").tobytes())
    return path


def add_song(site: Site, folder: Path, known: dict[str, Samples]) -> Track:
    whole: Samples = np.asarray(sum(known.values()), dtype=np.float32)
    seconds = whole.shape[1] / RATE_HZ
    name = site.studio.library.reserve_name("", "small", 7, WHEN)
    facts = {"sample_rate_hz": RATE_HZ, "channels": 2, "duration_s": seconds, "prompt": "a band in the next room"}
    song = draft(name, **facts)
    track = site.studio.library.save(song, lambda path: audio.encode(audio.Clip(whole, RATE_HZ), path, "wav"))
    files = {stem: write_stem(folder / f"{stem}.wav", samples) for stem, samples in known.items()}
    return site.studio.library.add_stems(track.name, files, {stem: {"separator": "test"} for stem in files})


@pytest.fixture
def song(site: Site, tmp_path: Path) -> Track:
    return add_song(site, tmp_path, parts())


@pytest.fixture
def mixer(page: Page, site: Site, song: Track) -> Page:
    return opened(page, song)


def opened(page: Page, song: Track) -> Page:
    page.get_by_role("button", name="Library").click()
    page.locator(".track-open", has_text=song.file).click()
    page.locator(".strip").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('dialog').length === 0")
    return page


def strip(page: Page, stem: str) -> Any:
    return page.locator(f'.strip[data-stem="{stem}"]')


def slide(page: Page, label: str, value: float) -> None:
    page.get_by_label(label, exact=True).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def seconds_shown(page: Page) -> float:
    text = page.locator(".mixer-transport .time").inner_text().partition(" / ")[0]
    minutes, _, rest = text.partition(":")
    return int(minutes) * 60 + float(rest)


def decibels(error: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(error).mean() / np.square(reference).mean() + 1e-30))


def panned(samples: Samples, gain_db: float, pan: float) -> npt.NDArray[np.float64]:
    """The law of static/js/mixer/law.js, written again for the server's side of the comparison."""
    left, right = samples.astype(np.float64) * 10 ** (gain_db / 20)
    turn = (pan + 1 if pan <= 0 else pan) * np.pi / 2
    if pan <= 0:
        return np.stack([left + right * np.cos(turn), right * np.sin(turn)])
    return np.stack([left * np.cos(turn), right + left * np.sin(turn)])


def mixdown(page: Page, *, fmt: str = "WAV, 32-bit float") -> tuple[Samples, int, str]:
    page.get_by_role("button", name="Mixdown…").click()
    page.locator("#mixdown-format").select_option(label=fmt)
    with page.expect_download() as caught:
        page.locator("dialog").get_by_role("button", name="Download").click()
    samples, rate_hz = soundfile.read(caught.value.path(), dtype="float32")
    return samples.T, rate_hz, soundfile.info(caught.value.path()).subtype


# ------------------------------------------------------------------------------------------------- listening
def test_the_stems_play_together_and_stop(mixer: Page) -> None:
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.wait_for_function("() => window.__level() > 0.02")
    mixer.wait_for_function(
        "() => document.querySelector('.strip[data-stem=bass] .meter i').style.transform !== 'scaleX(0)'"
    )
    mixer.get_by_role("button", name="Pause the stems").click()
    mixer.wait_for_function("() => window.__level() < 0.001")


def test_seeking_moves_the_sound_and_the_clock(mixer: Page) -> None:
    wave = strip(mixer, "bass").locator(".strip-wave")
    box = wave.bounding_box()
    wave.click(position={"x": box["width"] * 0.75, "y": 10})
    expect(mixer.locator(".mixer-transport .time")).to_have_text("0:07 / 0:09")
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.wait_for_function("() => window.__level() > 0.02")
    mixer.wait_for_function("() => document.querySelector('.mixer-transport .time').textContent.startsWith('0:08')")


def test_solo_and_mute_change_what_is_heard_and_the_keys_do_the_same(mixer: Page) -> None:
    mixer.keyboard.press("2")  # drums, after the vocals
    expect(mixer.get_by_role("button", name="Solo Drums")).to_have_attribute("aria-pressed", "true")
    assert strip(mixer, "bass").get_attribute("class") == "strip unheard"
    mixer.keyboard.press("2")
    mixer.get_by_role("slider", name="Volume of Bass").focus()
    mixer.keyboard.press("m")
    expect(mixer.get_by_role("button", name="Mute Bass")).to_have_attribute("aria-pressed", "true")
    for stem in ("Vocals", "Drums", "Other"):
        mixer.get_by_role("button", name=f"Mute {stem}").click()
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.wait_for_timeout(600)
    assert mixer.evaluate("() => window.__level()") < 0.001
    mixer.get_by_role("button", name="Mute Vocals").click()
    mixer.wait_for_function("() => window.__level() > 0.02")


def test_the_player_and_the_mixer_never_sound_at_once(mixer: Page) -> None:
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.get_by_role("button", name="Pause the stems").wait_for()
    mixer.get_by_role("button", name="Play", exact=True).first.click()
    mixer.get_by_role("button", name="Play the stems").wait_for()
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.get_by_role("button", name="Pause the stems").wait_for()
    assert mixer.locator(".player").get_by_role("button", name="Pause").count() == 0


def test_new_music_neither_interrupts_the_mix_that_is_heard_nor_takes_its_card(mixer: Page, site: Site) -> None:
    title = mixer.locator(".card-title").inner_text()
    # Round and round: on a slow machine the song would end before the new music is made.
    mixer.locator(".mixer-transport").get_by_role("button", name="Loop", exact=True).click()
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.get_by_role("button", name="Pause the stems").wait_for()
    mixer.fill("#prompt", "meanwhile")
    mixer.keyboard.press("Enter")
    expect(mixer.locator(".take .link")).to_have_count(1)
    site.idle()
    expect(mixer.locator(".card-title")).to_have_text(title)
    expect(mixer.get_by_role("button", name="Pause the stems")).to_be_visible()


def test_the_keyboard_moves_what_was_used_last(mixer: Page) -> None:
    mixer.get_by_role("button", name="Play the stems").click()
    mixer.get_by_role("button", name="Pause the stems").wait_for()
    mixer.get_by_role("slider", name="Volume of Bass").focus()
    mixer.keyboard.press("Space")
    mixer.get_by_role("button", name="Play the stems").wait_for()
    mixer.evaluate("() => document.activeElement.blur()")
    mixer.keyboard.press("ArrowRight")
    wait_until(mixer, lambda: seconds_shown(mixer) >= 5)
    mixer.keyboard.press("l")
    expect(mixer.locator(".mixer-transport").get_by_role("button", name="Loop", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )


def test_a_loop_is_dragged_on_the_ruler_and_the_music_stays_in_it(mixer: Page) -> None:
    box = mixer.locator(".ruler").bounding_box()
    assert box is not None
    at = lambda share: (box["x"] + box["width"] * share, box["y"] + 10)
    mixer.mouse.move(*at(0.2))
    mixer.mouse.down()
    mixer.mouse.move(*at(0.25))
    mixer.mouse.move(*at(0.32))
    mixer.mouse.up()
    mixer.get_by_role("button", name="Play the stems").click()
    seen = set()
    for _ in range(16):
        mixer.wait_for_timeout(150)
        seen.add(seconds_shown(mixer))
    assert seen <= {1, 2, 3}  # 0.2 to 0.32 of 9.5 s, for longer than the loop takes
    wait_for_sound(mixer)


def test_a_mix_survives_a_reload(mixer: Page) -> None:
    slide(mixer, "Volume of Bass", -12)
    mixer.reload()
    mixer.wait_for_selector(".model-name")
    mixer.get_by_role("button", name="Library").click()
    mixer.locator(".track-open").click()
    expect(mixer.get_by_label("Volume of Bass")).to_have_value("-12")


# ------------------------------------------------------------------------------------------------- exactness
DRIFT = """
async ([stems, seconds, waits]) => {
  const { MixEngine } = await import('/static/js/mixer/engine.js');
  const { StemSource } = await import('/static/js/mixer/source.js');
  const { stripsFor } = await import('/static/js/mixer/law.js');
  const sources = new Map(stems.map(([name, url]) => [name, new StemSource(url)]));
  const layout = await sources.get('left').layout(new AbortController().signal);
  const context = new OfflineAudioContext(2, layout.sampleRateHz * seconds, layout.sampleRateHz);
  const strip = (pan) => ({ gainDb: 0, pan, mute: false, solo: false });
  const strips = { left: strip(-1), right: strip(1) };
  const engine = new MixEngine(context, sources, layout, stripsFor(strips, ['left', 'right']));
  const at = async (time, act) => {
    await context.suspend(time);
    await act();
    if (waits) await engine.pump();
    await context.resume();
  };
  const { start } = AudioBufferSourceNode.prototype;
  if (!waits) {
    // A page that is busy while it lays the stems down, and a sound that does not wait for it.
    AudioBufferSourceNode.prototype.start = function (...how) {
      start.apply(this, how);
      for (const began = performance.now(); performance.now() < began + 0.5; );
    };
  }
  const told = [];
  for (let time = 0.5; time < seconds; time += 0.5) {
    const seek = () => engine.seek((7 * time) % 11);
    const act = !waits ? seek : {
      2: () => engine.seek(6.0625),
      4: () => engine.setStrips({ ...strips, left: { ...strips.left, mute: true } }),
      5: () => engine.setStrips(strips),
      6: () => engine.setLoop({ start: 1, end: 2.3 }),
      6.5: () => engine.seek(1.25),
      10: () => engine.setLoop(null),
    }[time] ?? (() => {});
    told.push(at(time, act));
  }
  await engine.play();
  const rendered = await context.startRendering();
  AudioBufferSourceNode.prototype.start = start;
  const sides = [0, 1].map((side) => rendered.getChannelData(side));
  const file = new FileReader();
  const read = new Promise((resolve) => file.addEventListener('load', resolve));
  file.readAsDataURL(new Blob(sides));
  await read;
  return file.result.split(',')[1];
}
"""


@pytest.mark.parametrize("waits", [True, False], ids=["in time", "laid while the sound runs on"])
def test_stems_do_not_drift_by_one_sample_through_seek_mute_and_loop(
    page: Page, site: Site, tmp_path: Path, waits: bool
) -> None:
    """Two stems of the same clicks, one on each side: through the real engine the sides stay the same sample by
    sample, but for the half-second in which one of them is muted, also when a piece is laid after its time."""
    rate_hz = 8_000
    clicks = np.random.default_rng(5).standard_normal((1, rate_hz * 14)).astype(np.float32) * 0.2
    library = site.studio.library
    name = library.reserve_name("", "small", 7, WHEN)
    facts = {"sample_rate_hz": rate_hz, "duration_s": 14.0}
    track = library.save(
        draft(name, **facts), lambda path: audio.encode(audio.Clip(clicks, rate_hz), path, "wav", subtype="FLOAT")
    )
    header = stems.float_wav_header(rate_hz, 1, clicks.shape[1])
    files = {}
    for stem in ("drums", "bass"):
        files[stem] = tmp_path / f"{stem}.wav"
        files[stem].write_bytes(header + clicks.astype("<f4").tobytes())
    library.add_stems(track.name, files, {})
    urls = [[side, f"/api/tracks/{track.name}/stems/{stem}"] for side, stem in (("left", "drums"), ("right", "bass"))]
    heard = np.frombuffer(base64.b64decode(page.evaluate(DRIFT, [urls, 12, waits])), dtype="<f4").reshape(2, -1)
    muted = slice(int(3.9 * rate_hz), int(5.2 * rate_hz))
    left, right = np.delete(heard, muted, axis=1) if waits else heard
    assert np.abs(right).max() > 0.3
    np.testing.assert_array_equal(left, right)
    if not waits:
        return  # what is heard when depends on the race
    assert np.abs(heard[0, int(4.2 * rate_hz) : int(4.9 * rate_hz)]).max() < 1e-4
    # And it is the music: before the seek, the clip as it is from where the lead-in ends.
    lag = int(np.argmax(np.correlate(heard[1, : rate_hz // 2], clicks[0, : rate_hz // 4], "valid")))
    assert lag < 0.1 * rate_hz
    piece = heard[1, lag + 400 : lag + rate_hz]
    scale = 2.0  # a mono stem turned to one side carries both of its equal sides there
    np.testing.assert_allclose(piece, clicks[0, 400:rate_hz] * scale, atol=1e-5)


def test_the_rendered_mix_is_the_servers_own_sum(mixer: Page) -> None:
    slide(mixer, "Volume of Bass", -7.5)
    slide(mixer, "Pan of Bass", -0.4)
    slide(mixer, "Pan of Vocals", 0.65)
    slide(mixer, "Volume of Drums", -3)
    mixer.get_by_role("button", name="Mute Other").click()
    known = parts()  # none of it loud enough to be turned down
    expected = panned(known["bass"], -7.5, -0.4) + panned(known["vocals"], 0, 0.65) + panned(known["drums"], -3, 0)
    got, rate_hz, subtype = mixdown(mixer)
    assert (rate_hz, subtype, got.shape) == (RATE_HZ, "FLOAT", expected.shape)
    assert decibels(got - expected, expected) < -120
    got, _, subtype = mixdown(mixer, fmt="WAV, 24-bit")
    assert subtype == "PCM_24"
    assert decibels(got - expected, expected) < -100


def test_a_mix_that_would_clip_is_turned_down_and_says_so(page: Page, site: Site, tmp_path: Path) -> None:
    known = parts(4.5, gain=2.5)
    opened(page, add_song(site, tmp_path, known))
    got, _, _ = mixdown(page)
    expect(page.locator(".toast")).to_contain_text("turned down by")
    expected = np.sum(list(known.values()), axis=0)
    assert np.abs(got).max() == pytest.approx(10 ** (-0.1 / 20), abs=1e-4)
    scaled = expected * np.abs(got).max() / np.abs(expected).max()
    assert decibels(got - scaled, scaled) < -80


def test_only_the_loop_can_be_rendered(mixer: Page) -> None:
    mixer.locator(".ruler").focus()
    for _ in range(2):
        mixer.keyboard.press("ArrowRight")
    mixer.get_by_role("button", name="Loop from here").click()
    for _ in range(3):
        mixer.locator(".ruler").press("ArrowRight")
    mixer.get_by_role("button", name="Loop up to here").click()
    got, _, _ = mixdown(mixer)
    expected = np.sum(list(parts().values()), axis=0)[:, 2 * RATE_HZ : 5 * RATE_HZ]
    assert got.shape == expected.shape
    assert decibels(got - expected, expected) < -100


def test_the_page_stays_quick_while_a_mix_is_rendered(page: Page, site: Site, tmp_path: Path) -> None:
    song = add_song(site, tmp_path, {name: np.tile(samples, (1, 6)) for name, samples in parts().items()})
    opened(page, song)
    page.evaluate(
        """() => { window.__longest = 0; let before = performance.now();
        const step = () => { const now = performance.now(); window.__longest = Math.max(window.__longest, now - before);
        before = now; setTimeout(step, 0); }; step(); }"""
    )
    mixdown(page)
    # On two busy cores; a minute encoded here would take seconds.
    assert page.evaluate("() => window.__longest") < 400 * slowness()


# ------------------------------------------------------------------------------------------------- taking away
def test_a_mix_becomes_a_track_with_its_own_json(mixer: Page, site: Site, song: Track) -> None:
    slide(mixer, "Volume of Vocals", -60)
    mixer.get_by_role("button", name="Mixdown…").click()
    mixer.locator("dialog").get_by_role("button", name="Save as a new track").click()
    mixer.locator(".toast").get_by_role("button", name="Open").click(timeout=30_000)
    site.wait(lambda: site.studio.library.count() == 2)
    found, _, _ = site.studio.tracks(TrackQuery())
    (made,) = [track for track in found if track.name != song.name]
    assert made.parent == song.name
    assert made.used["mix"]["stems"]["vocals"]["gain_db"] == -60
    known = parts()
    expected = known["drums"] + known["bass"] + known["other"]
    clip = audio.decode(site.studio.audio_file(made.name))
    assert decibels(clip.samples - expected, expected) < -80
    expect(mixer.locator(".card-title")).to_have_text(made.file)


def test_chosen_stems_come_in_one_archive(mixer: Page, song: Track) -> None:
    mixer.get_by_role("button", name="Stems as ZIP…").click()
    mixer.get_by_label("Vocals", exact=True).last.uncheck()
    mixer.get_by_label("Other", exact=True).last.uncheck()
    with mixer.expect_download() as caught:
        mixer.locator("dialog").get_by_role("button", name="Download").click()
    with zipfile.ZipFile(caught.value.path()) as archive:
        assert sorted(archive.namelist()) == [f"{song.name}_bass.wav", f"{song.name}_drums.wav"]
        samples, _ = soundfile.read(io.BytesIO(archive.read(f"{song.name}_bass.wav")), dtype="float32")
    np.testing.assert_array_equal(samples.T, parts()["bass"])


def test_a_stem_becomes_midi_with_a_picture(mixer: Page, site: Site, song: Track) -> None:
    row = strip(mixer, "bass")
    row.get_by_role("button", name="Notes of Bass").click()
    row.locator(".roll").wait_for(timeout=30_000)
    assert int(row.locator(".strip-notes .hint").inner_text().split()[0]) >= 4
    painted = row.locator(".roll").evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )
    assert painted > 2
    with mixer.expect_download() as caught:
        row.get_by_role("link", name="MIDI file").click()
    assert caught.value.suggested_filename == f"{song.name}_bass.mid"
    assert Path(caught.value.path()).read_bytes().startswith(b"MThd")
    site.studio.delete(song.name)
    assert not (site.studio.settings.stems_dir / song.name).exists()


# ------------------------------------------------------------------------------------------------- looks
def audit(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    result = page.evaluate("() => axe.run('#card', { resultTypes: ['violations'] })")
    return [f"{item['id']}: {json.dumps(item['nodes'][0]['target'])}" for item in result["violations"]]


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("language", ["en-GB", "ru-RU"])
def test_no_accessibility_violations(
    chromium: Any, site: Site, tmp_path: Path, song: Track, theme: Any, language: str
) -> None:
    context: BrowserContext = chromium.new_context(
        locale=language, color_scheme=theme, viewport={"width": 1440, "height": 900}, reduced_motion="reduce"
    )
    page, complaints = watched(context)
    page.goto(site.url)
    page.locator(".bar .labelled").first.click()
    page.locator(".track-open").click()
    page.locator(".strip").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('dialog').length === 0")
    assert complaints == []  # before axe looks: the way it looks is a complaint of its own
    assert audit(page) == []
    context.close()


def test_at_390_px_nothing_is_cut_and_every_target_can_be_hit(chromium: Any, site: Site, song: Track) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, locale="en-GB")
    page, _ = watched(context)
    page.goto(site.url)
    page.locator(".bar .labelled").first.click()
    opened_row = page.locator(".track-open")
    opened_row.click()
    page.locator(".strip").first.wait_for()
    wide = page.evaluate(
        "() => document.querySelector('#card').scrollWidth - document.querySelector('#card').clientWidth"
    )
    assert wide <= 0
    small = page.evaluate(
        """() => [...document.querySelectorAll('.stems button, .stems a, .stems input')]
        .filter((one) => one.offsetParent && Math.min(one.offsetWidth, one.offsetHeight) < 40)
        .map((one) => [one.ariaLabel || one.textContent, one.offsetWidth, one.offsetHeight])"""
    )
    assert small == []
    context.close()
