"""Loops: the seam lies on the beat, goes over without a step, and says how good it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from modules import looping
from modules.audio import Clip
from modules.contract import ClipTooShort

RATE = 16_000
Mono = NDArray[np.float64]


def beats(seconds: float, bpm: float, *, rate: int = RATE, bar: int = 4, channels: int = 1) -> Clip:
    """A kick on each beat, a snare on every other, a hat between: tempo without drift, the first beat at 0.1 s."""
    rng = np.random.default_rng(1)
    out = np.zeros(round(seconds * rate) + rate)
    at = np.arange(rate // 5) / rate
    kick = np.sin(2 * np.pi * 60 * at) * np.exp(-at * 20)
    snare = rng.normal(0, 0.4, len(at)) * np.exp(-at * 30)
    hat = np.diff(rng.normal(0, 0.1, len(at) + 1)) * np.exp(-at * 80)
    for beat in range(int((seconds - 0.1) * bpm / 60) + 1):
        for hit, offset in ((kick if beat % bar in (0, 2) else snare, 0.0), (hat, 0.5)):
            start = round((0.1 + (beat + offset) * 60 / bpm) * rate)
            out[start : start + len(hit)] += hit * (1.5 if beat % bar == 0 else 1.0)
    return Clip(np.tile(0.4 * out[None, : round(seconds * rate)], (channels, 1)).astype(np.float32), rate)


def tone(seconds: float, hz: float = 220.0) -> Clip:
    return Clip(0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)[None].astype(np.float32), RATE)


def step_over(loop: Clip) -> float:
    """The step from the last sample to the first, in largest steps inside."""
    inside = float(np.abs(np.diff(loop.samples)).max())
    return float(np.abs(loop.samples[:, 0] - loop.samples[:, -1]).max()) / max(inside, 1e-9)


def level_db(samples: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


@pytest.mark.parametrize("bpm", [68.0, 93.7, 120.0, 141.3])
@pytest.mark.parametrize("seconds", [6.0, 10.0])
def test_a_steady_beat_is_cut_to_whole_bars_and_goes_on_over_the_wrap(bpm: float, seconds: float) -> None:
    clip = beats(seconds + 4, bpm)
    loop, facts = looping.close(clip, seconds, 50.0)
    counted = loop.seconds * bpm / 60
    assert counted == pytest.approx(round(counted), abs=0.002 * bpm / 60), "whole beats, to 2 ms"
    assert abs(loop.seconds - seconds) <= max(0.5 * 240 / bpm, 0.25 * seconds)
    assert facts.beats is not None
    assert facts.beats % 4 == 0
    assert facts.bpm is not None
    assert facts.bpm / bpm == pytest.approx(round(2 * facts.bpm / bpm) / 2, abs=0.002), "or half or double of it"
    assert step_over(loop) <= 1.0
    assert abs(facts.level_jump_db) < 1.0
    # A drummer does not notice: going on into the next round is what the music itself went on with.
    start = round(facts.start_s * RATE)
    went_on = clip.samples[:, start + loop.frames :][:, : RATE // 2]
    assert abs(level_db(loop.samples[:, : went_on.shape[1]]) - level_db(went_on)) < 1.0


def test_a_waltz_has_three_beats_a_bar() -> None:
    clip = beats(14, 110.0, bar=3)
    _, facts = looping.close(clip, 10.0, 50.0)
    assert facts.beats is not None
    assert facts.beats % 3 == 0


def test_a_bar_that_is_too_long_gives_way_to_whole_beats() -> None:
    loop, facts = looping.close(beats(3.2, 120.0), 0.6, 50.0)
    assert facts.beats in (1, 2)
    assert loop.seconds * 4 == pytest.approx(round(loop.seconds * 4), abs=0.02)


def test_the_loop_begins_on_the_grid_of_the_tokens_and_is_the_music_as_made_after_the_fade() -> None:
    clip = beats(14, 93.7, channels=2)
    loop, facts = looping.close(clip, 10.0, 50.0)
    assert facts.start_s * 50 == pytest.approx(round(facts.start_s * 50))
    start, fade = round(facts.start_s * RATE), round(facts.fade_s * RATE)
    assert loop.channels == 2
    assert np.array_equal(loop.samples[:, fade:], clip.samples[:, start + fade : start + loop.frames])
    # The first sample is what followed the last one.
    assert np.allclose(loop.samples[:, 0], clip.samples[:, start + loop.frames], atol=1e-6)


def test_silence_is_a_loop_of_the_length_asked_for() -> None:
    loop, facts = looping.close(Clip(np.zeros((1, 9 * RATE), dtype=np.float32), RATE), 5.0, 50.0)
    assert loop.seconds == pytest.approx(5.0)
    assert not loop.samples.any()
    assert (facts.beats, facts.bpm, facts.level_jump_db, facts.spectrum_jump_db) == (None, None, 0.0, 0.0)


def test_noise_has_no_beat_and_keeps_its_level_over_the_seam() -> None:
    clip = Clip(np.random.default_rng(3).normal(0, 0.1, (2, 9 * RATE)).astype(np.float32), RATE)
    loop, facts = looping.close(clip, 5.0, 50.0)
    assert facts.beats is None
    assert loop.seconds == pytest.approx(5.0, rel=0.16)
    whole = level_db(loop.samples)
    fade = round(facts.fade_s * RATE)
    for part in np.split(loop.samples[:, : fade // 8 * 8], 8, axis=1):
        assert level_db(part) == pytest.approx(whole, abs=1.0), "equal power for sounds that are not alike"
    assert step_over(loop) <= 1.0


def test_one_note_goes_on_as_one_note() -> None:
    loop, facts = looping.close(tone(9), 5.0, 50.0)
    assert facts.beats is None
    twice = np.concatenate([loop.samples, loop.samples], axis=1)
    seam = twice[0, loop.frames - 200 : loop.frames + round(facts.fade_s * RATE) + 200].astype(np.float64)
    assert np.abs(np.diff(seam)).max() < 1.05 * np.abs(np.diff(tone(1).samples)).max()
    levels = [level_db(part[None].astype(np.float32)) for part in np.array_split(seam, 10)]
    assert max(levels) - min(levels) < 1.0, "equal gain for the same sound"


def test_a_clip_shorter_than_a_bar_is_a_loop_all_the_same_and_a_crumb_is_refused() -> None:
    loop, _ = looping.close(beats(1.0, 60.0), 0.8, 50.0)
    assert 0.3 < loop.seconds < 1.0
    assert step_over(loop) <= 1.0
    longer, _ = looping.close(tone(3), 300.0, 50.0)
    assert longer.seconds <= 3.0
    with pytest.raises(ClipTooShort, match=r"0\.30 s of music are too short for a loop"):
        looping.close(tone(0.3), 2.0, 50.0)


@pytest.mark.parametrize("rate", [8_000, 32_000, 44_100])
def test_another_rate_keeps_the_seam_whole(rate: int) -> None:
    loop = Clip(tone(2).samples[:, : 800 * 30], RATE)  # 800 samples are eleven periods
    there = looping.resample(loop, rate)
    assert there.seconds == pytest.approx(loop.seconds, abs=1 / rate)
    twice = np.concatenate([there.samples, there.samples], axis=1)[0].astype(np.float64)
    expected = 0.3 * np.sin(2 * np.pi * 220 * np.arange(len(twice)) / rate)
    assert np.abs(twice - expected).max() < 0.02
    assert looping.resample(loop, RATE) is loop
