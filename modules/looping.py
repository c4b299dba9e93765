"""A stretch of music that plays round and round: where it begins, where it ends, and how the one leads into the other.

The music is made a little longer than asked (contract.LOOP_SPARE_S). The seam is looked for in what was made: what
follows the loop's end there must sound like what follows its beginning, because the beginning is what is heard next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modules import audio
from modules.audio import Clip, Samples
from modules.contract import ClipTooShort, Loop

Floats = npt.NDArray[np.float64]

HOP_S: Final = 0.01
"""Step of the analysis. The seam itself is set to the sample."""
WINDOW_S: Final = 0.06
BANDS: Final = 32
LOWEST_HZ, HIGHEST_HZ = 50.0, 12_000.0
RANGE_DB: Final = 60.0
"""What lies further below the loudest band is not heard beside it."""
MIN_PERIOD_S, MAX_PERIOD_S, USUAL_PERIOD_S = 0.33, 1.01, 0.5
MIN_BEAT: Final = 0.15
"""Less self-similarity of the onsets at the beat's multiples than this is no beat: noise has up to 0.1."""
AROUND_S: Final = 0.5
"""How much before and after the seam is compared."""
LENGTH_COST_DB, START_COST_DB = 5.0, 0.3
"""What a length that is off by its whole, and a beginning a second later, weigh against a jump of the spectrum."""
FINE_S: Final = 0.002
NUDGE_S: Final = 0.012
"""How far at most a length of whole beats is moved so that the onsets meet; a third of it is usual."""
FADE_S, LONG_FADE_S = 0.06, 1.0
"""With a beat the attack hides a short fade; two chords at once would be heard. Without one a long fade is smooth."""
MIN_LOOP_S: Final = 0.2
_BEFORE_ATTACK_S: Final = 0.005


@dataclass(frozen=True)
class _Beat:
    """The beats lie at first_s + n * period_s; a bar has `bar` of them."""

    period_s: float
    first_s: float
    bar: int


@dataclass(frozen=True)
class _Seam:
    """In frames of the clip: the loop is [start, start + length)."""

    start: int
    length: int
    beats: int | None


def close(clip: Clip, seconds: float, grid_hz: float) -> tuple[Clip, Loop]:
    """Cut a loop of about `seconds` out of a clip that is longer, so that its end leads into its beginning.

    Args:
        clip: more music than asked: the seam is looked for in it.
        seconds: the length asked for. With a beat the loop has the number of whole bars that comes nearest, or of
            whole beats where a bar is too long.
        grid_hz: the loop begins on a multiple of 1 / grid_hz, where the model's tokens begin.
    Returns:
        The loop, float32 [C, T], and where and how good its seam is.
    Raises:
        ClipTooShort: there is too little to make a loop of.
    """
    rate = clip.sample_rate_hz
    if clip.seconds < 2 * MIN_LOOP_S:
        raise ClipTooShort(f"{clip.seconds:.2f} s of music are too short for a loop; {2 * MIN_LOOP_S:g} s are needed")
    mono = clip.samples.mean(axis=0, dtype=np.float64)
    heard = _spectrum(mono, rate)
    beat = _find_beat(mono, heard, rate)
    seam = _find_seam(heard, beat, clip, seconds, grid_hz)
    if seam.beats is not None:
        seam = _to_the_sample(mono, seam, rate)
    wanted_s = FADE_S if seam.beats is not None else LONG_FADE_S
    fade = min(round(wanted_s * rate), clip.frames - seam.start - seam.length, seam.length // 4)
    samples = clip.samples[:, seam.start : seam.start + seam.length].copy()
    after = clip.samples[:, seam.start + seam.length :][:, :fade]
    samples[:, :fade] = _lead_over(after, samples[:, :fade])
    level, spectrum = _jumps(heard, seam, rate)
    bpm = seam.beats * 60.0 * rate / seam.length if seam.beats is not None else None
    return Clip(samples, rate), Loop(
        start_s=round(seam.start / rate, 6), fade_s=round(fade / rate, 6), beats=seam.beats,
        bpm=None if bpm is None else round(bpm, 2), level_jump_db=level, spectrum_jump_db=spectrum,
    )  # fmt: skip


def resample(loop: Clip, sample_rate_hz: int) -> Clip:
    """A loop at another rate: what lies beyond its ends is its other end, so the seam stays whole."""
    if sample_rate_hz == loop.sample_rate_hz:
        return loop
    common = math.gcd(sample_rate_hz, loop.sample_rate_hz)
    step = loop.sample_rate_hz // common
    # Whole steps of both rates, so that the cut lies on a sample of each.
    steps = -(-round(0.05 * loop.sample_rate_hz) // step)
    around = np.pad(loop.samples, ((0, 0), (steps * step, steps * step)), mode="wrap")
    there = audio.resample(Clip(around, loop.sample_rate_hz), sample_rate_hz)
    begin = steps * (sample_rate_hz // common)
    frames = round(loop.frames * sample_rate_hz / loop.sample_rate_hz)
    return Clip(np.ascontiguousarray(there.samples[:, begin : begin + frames]), sample_rate_hz)


# ------------------------------------------------------------------------------------------------ hearing
def _spectrum(mono: Floats, rate: int) -> Floats:
    """Decibels above the floor, [frames, BANDS], one frame a HOP_S, each around its time."""
    hop, window = round(HOP_S * rate), round(WINDOW_S * rate)
    frames = max(1, -(-len(mono) // hop))
    padded = np.pad(mono, (window // 2, window + hop))
    bins = np.fft.rfftfreq(window, 1.0 / rate)
    edges = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, rate / 2), BANDS + 1)
    # Low bands are narrower than a bin: each takes the bin that it lies in.
    first = np.minimum(np.searchsorted(bins, edges[:-1]), len(bins) - 1)
    last = np.maximum(np.searchsorted(bins, edges[1:]), first + 1)
    hann, parts = np.hanning(window), []
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:frames]
    for start in range(0, frames, 512):
        power = np.abs(np.fft.rfft(windows[start : start + 512] * hann)) ** 2
        summed = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
        parts.append(summed[:, last] - summed[:, first])
    levels = 10.0 * np.log10(np.maximum(np.concatenate(parts), 1e-12))
    return np.asarray(np.maximum(levels - max(float(levels.max()) - RANGE_DB, -60.0), 0.0))


def _onsets(heard: Floats) -> Floats:
    """How much sound begins in each frame, in decibels of the mean band."""
    rise = np.maximum(heard[2:] - heard[:-2], 0.0).mean(axis=1)
    return np.concatenate([[0.0], rise, [0.0]])


def _find_beat(mono: Floats, heard: Floats, rate: int) -> _Beat | None:
    """The beat, or None where nothing recurs: silence, noise, a held note, less than four beats."""
    onsets = _onsets(heard)
    if len(onsets) * HOP_S < 4 * MIN_PERIOD_S or float(onsets.max()) <= 0.5:
        return None
    longest_s = min(MAX_PERIOD_S, len(onsets) * HOP_S / 4)
    periods = np.geomspace(MIN_PERIOD_S, longest_s, 1 + round(math.log(longest_s / MIN_PERIOD_S) / 0.002))
    score = _recurrence(onsets, HOP_S, periods)
    usual = np.exp(-0.5 * (np.log2(periods / USUAL_PERIOD_S) / 0.8) ** 2)
    best = int(np.argmax(score * usual))
    if score[best] < MIN_BEAT:
        return None
    # Over a whole loop a thousandth of a beat adds up to what can be heard: once more, finely.
    step = max(1, round(FINE_S * rate))
    near = periods[best] * np.linspace(0.985, 1.015, 301)
    fine = _recurrence(_attacks(mono, rate)[::step], step / rate, near)
    period_s = float(near[int(np.argmax(fine))])
    return _Beat(period_s, _phase_s(onsets, period_s), _bar(heard, period_s))


def _recurrence(onsets: Floats, hop_s: float, periods_s: Floats) -> Floats:
    """How alike the onsets are at the multiples of each period, 1 for the same."""
    around = onsets - onsets.mean()
    spectrum = np.fft.rfft(around, 2 * len(around))
    alike = np.fft.irfft(np.abs(spectrum) ** 2)[: len(around)]
    # Each lag by the number of frames that it compares; the rare long ones say little.
    alike = (
        alike / max(float(alike[0]), 1e-12) * len(around) / np.maximum(np.arange(len(around), 0, -1), len(around) / 4)
    )
    lags = np.arange(len(around)) * hop_s
    found = np.zeros_like(periods_s)
    for index, period_s in enumerate(periods_s):
        multiples = period_s * np.arange(1, 1 + max(1, int(0.75 * lags[-1] / period_s)))
        found[index] = np.interp(multiples, lags, alike).mean()
    return found


def _phase_s(onsets: Floats, period_s: float) -> float:
    """Where the first beat lies: where most begins at every period's distance."""
    starts = np.arange(0.0, period_s, HOP_S / 2)
    times = np.arange(len(onsets)) * HOP_S
    beats = np.arange(int((times[-1] - period_s) / period_s) + 1) * period_s
    sums = np.interp(starts[:, None] + beats[None], times, onsets).mean(axis=1)
    return float(starts[int(np.argmax(sums))])


def _bar(heard: Floats, period_s: float) -> int:
    """Three beats a bar where the music recurs after three rather than after four."""

    def apart(beats: int) -> float:
        lags = [round(beats * times * period_s / HOP_S) for times in (1, 2)]
        found = [float(np.abs(heard[lag:] - heard[:-lag]).mean()) for lag in lags if 0 < lag < len(heard) * 0.8]
        return float(np.mean(found)) if found else math.inf

    return 3 if apart(3) < 0.8 * apart(4) else 4


# ------------------------------------------------------------------------------------------- where to cut
def _find_seam(heard: Floats, beat: _Beat | None, clip: Clip, seconds: float, grid_hz: float) -> _Seam:
    """The best pair of beginning and length: little jump, near the length asked for, early."""
    rate = clip.sample_rate_hz
    seconds = min(seconds, clip.seconds - 0.1)
    lengths = _bars(beat, seconds, clip.seconds - FADE_S) if beat else {}
    if beat and lengths:
        starts_s = np.arange(beat.first_s, clip.seconds, beat.period_s) - _BEFORE_ATTACK_S
    else:
        spare_s = max(0.0, clip.seconds - seconds)
        around = np.arange(max(MIN_LOOP_S, seconds * 0.85, seconds - spare_s), seconds * 1.15 + HOP_S, HOP_S)
        lengths = {float(length_s): None for length_s in [*around, seconds]}
        starts_s = np.arange(0.0, spare_s + HOP_S, 5 * HOP_S)
    starts_s = np.unique(np.maximum(np.floor(starts_s * grid_hz + 1e-6), 0) / grid_hz)
    best, found = math.inf, None
    for length_s, beats in lengths.items():
        fade_s = FADE_S if beats is not None else 0.1
        fits = starts_s[starts_s + length_s + fade_s <= clip.seconds]
        if len(fits) == 0:
            continue
        jump = _jump_at(heard, fits, length_s)
        cost = jump + LENGTH_COST_DB * abs(length_s - seconds) / seconds + START_COST_DB * fits
        at = int(np.argmin(cost))
        if cost[at] < best - 1e-9:
            best, found = float(cost[at]), _Seam(round(fits[at] * rate), round(length_s * rate), beats)
    if found is None:
        return _Seam(0, round(seconds * rate), None)
    return found


def _bars(beat: _Beat, seconds: float, most_s: float) -> dict[float, int | None]:
    """Lengths of whole bars about the asked one, or of whole beats where a bar is too long: seconds -> beats.

    Beside the nearest one those that are a quarter off at most, and never more than a bar: how the seam sounds decides.
    """
    for unit in (beat.bar, 2, 1):
        step_s = unit * beat.period_s
        off_s = min(max(0.5 * step_s, 0.25 * seconds), step_s)
        counts = [n for n in range(1, int(most_s / step_s) + 1) if abs(n * step_s - seconds) <= off_s]
        if counts:
            return {n * step_s: n * unit for n in counts}
    return {}


def _jump_at(heard: Floats, starts_s: Floats, length_s: float) -> Floats:
    """How far the spectra about the loop's end and about its beginning are apart, in dB, for each beginning."""
    lag = min(round(length_s / HOP_S), len(heard) - 1)
    apart = np.abs(heard[lag:] - heard[: len(heard) - lag]).mean(axis=1)
    summed = np.concatenate([[0.0], np.cumsum(apart)])
    middle, around = np.round(starts_s / HOP_S).astype(int), round(AROUND_S / HOP_S)
    low = np.clip(middle - around, 0, len(apart) - 1)
    high = np.clip(middle + around, low + 1, len(apart))
    return np.asarray((summed[high] - summed[low]) / (high - low))


def _to_the_sample(mono: Floats, seam: _Seam, rate: int) -> _Seam:
    """Move the end by a few milliseconds to where the onsets about it fall as those about the beginning do."""
    most, around = round(NUDGE_S * rate), round(AROUND_S * rate)
    before = min(around, seam.start)
    after = min(around, len(mono) - seam.start - seam.length - most)
    if after <= 0:
        return seam
    begins = mono[seam.start - before : seam.start + after]
    ends = mono[seam.start + seam.length - before - most : seam.start + seam.length + after + most]
    nudge, alike = _best_shift(begins, ends)
    if alike < 0.5:
        # Other notes on the same beat: the attacks still tell.
        nudge, alike = _best_shift(_attacks(begins, rate), _attacks(ends, rate))
    if alike < 0.3:
        return seam
    length = seam.length + nudge - most
    return _Seam(seam.start, min(length, len(mono) - seam.start), seam.beats)


def _best_shift(short: Floats, long: Floats) -> tuple[int, float]:
    """Where `short` fits best into `long`, and the correlation there."""
    size = 1 << (len(long) + len(short)).bit_length()
    products = np.fft.irfft(np.fft.rfft(long, size) * np.conj(np.fft.rfft(short, size)), size)
    shifts = len(long) - len(short) + 1
    energy = np.concatenate([[0.0], np.cumsum(long**2)])
    under = energy[len(short) :][:shifts] - energy[:shifts]
    alike = products[:shifts] / np.sqrt(np.maximum(under * float(short @ short), 1e-12))
    usual = np.exp(-0.5 * (np.linspace(-3.0, 3.0, shifts)) ** 2)
    best = int(np.argmax(alike * usual))
    return best, float(alike[best])


def _attacks(mono: Floats, rate: int) -> Floats:
    """Where sound begins, sample by sample: the rise of the level within 5 ms, its mean taken away."""
    width = max(1, round(0.005 * rate))
    level = np.sqrt(np.convolve(np.diff(mono, prepend=mono[:1]) ** 2, np.ones(width) / width, mode="same"))
    rise = np.maximum(level - np.concatenate([np.full(width, level[0]), level[:-width]]), 0.0)
    return np.asarray(rise - rise.mean())


# ------------------------------------------------------------------------------------------------ joining
def _lead_over(leaving: Samples, coming: Samples) -> Samples:
    """Crossfade of constant power, however alike the two are: equal gain for the same sound, equal power for others."""
    frames = leaving.shape[1]
    if frames == 0:
        return coming
    power = math.sqrt(float(np.square(leaving).sum()) * float(np.square(coming).sum()))
    alike = float((leaving * coming).sum()) / power if power > 0 else 0.0
    # The first sample is the leaving one alone: the loop goes over its end without a step.
    angle = np.arange(frames) * (math.pi / 2 / frames)
    out, into = np.cos(angle), np.sin(angle)
    scale = 1.0 / np.sqrt(1.0 + 2.0 * max(alike, 0.0) * out * into)
    mixed: Any = leaving * (out * scale) + coming * (into * scale)
    return np.asarray(mixed, dtype=np.float32)


def _jumps(heard: Floats, seam: _Seam, rate: int) -> tuple[float, float]:
    """What the seam changes: how much louder what follows it is than what followed there, and how unlike, in dB."""
    start, lag = round(seam.start / rate / HOP_S), round(seam.length / rate / HOP_S)
    size = min(round(AROUND_S / HOP_S), len(heard) - start - lag)
    if size <= 0:
        return 0.0, 0.0
    now, then = heard[start : start + size], heard[start + lag : start + lag + size]
    loud = [10.0 * math.log10(float(np.mean(np.sum(10.0 ** (part / 10.0), axis=1)))) for part in (now, then)]
    return round(loud[0] - loud[1], 2), round(float(np.abs(now - then).mean()), 2)
