"""The melody of a clip: which note its leading voice has at each frame, and which pitch classes sound beside it.

A spectrum in which what stands still in time is kept and what is short and broad (drums) is put away; the sum of each
pitch's harmonics in it; the cheapest course through the pitches, where a change of note and a rest have their price
(Viterbi). The same every time; half a minute of sound takes about a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from modules import audio
from modules.audio import Clip

Floats: TypeAlias = npt.NDArray[np.float32]

RATE_HZ = 16_000
SIZE = 4096
"""Samples of a window: a quarter of a second tells semitones apart from 100 Hz on."""
TOP_HZ = 4_000.0
LOW, HIGH = 48, 96
"""The melody's range, MIDI: 131 Hz to 2.1 kHz. What is below is bass."""
HARMONICS = 6
FALL = 0.75
"""What a harmonic counts beside the one below it."""
STILL, BROAD = 9, 41
"""Frames and bins of the medians that tell tones from strokes."""
BLOCK = 500
"""Frames at once, which bounds the memory."""
CHANGE, REST = 0.3, 0.3
"""Price of another note, of beginning or ending a rest, in parts of a frame's whole salience."""
TONAL = 0.3
"""Salience below which nothing is heard as a note."""
FLOOR_DB = -45.0
"""Below the loudest frame: silence."""
SILENCE_POWER = 1e-8
STEADY = 0.55
"""Share of the power that lasts and is narrow, from which on a frame has notes: noise has 0.42, drums less."""
SPAN = 25
"""Frames over which harmony and steadiness are judged."""


@dataclass(frozen=True)
class Melody:
    """What is heard in a clip.

    Args:
        notes: int64 [T], the melody's MIDI note, -1 where there is none.
        harmony: float32 [T, 12], how much each pitch class sounds about then, at most 1; zeros in silence.
    """

    notes: npt.NDArray[np.int64]
    harmony: Floats

    @property
    def voiced(self) -> float:
        """The share of frames with a note."""
        return float((self.notes >= 0).mean()) if len(self.notes) else 0.0


def hear(clip: Clip, frame_rate_hz: float) -> Melody:
    """The melody of a clip of any rate and number of channels, a value for each frame of `frame_rate_hz`."""
    mono = audio.resample(audio.to_channels(clip, 1), RATE_HZ).samples[0]
    hop = round(RATE_HZ / frame_rate_hz)
    whole = _spectrum(mono, hop)
    tones = _tones(whole)
    sounds, midi = _sounds(whole, tones), _pitches(tones)
    return Melody(_course(_salience(tones, midi), sounds), _harmony(tones, midi, sounds))


def _spectrum(mono: Floats, hop: int) -> Floats:
    """Magnitudes [T, bins to TOP_HZ] of windows round the middle of each frame."""
    frames = max(1, -(-len(mono) // hop))
    before = SIZE // 2 - hop // 2
    padded = np.pad(mono, (before, frames * hop + SIZE - before - len(mono)))
    spans = np.lib.stride_tricks.sliding_window_view(padded, SIZE)[: frames * hop : hop]
    bins, window = int(TOP_HZ * SIZE / RATE_HZ), np.hanning(SIZE).astype(np.float32)
    parts = [np.abs(np.fft.rfft(spans[at : at + BLOCK] * window, axis=1)[:, :bins]) for at in range(0, frames, BLOCK)]
    return np.asarray(np.concatenate(parts) / (window.sum() / 2), np.float32)


def _tones(magnitude: Floats) -> Floats:
    """What lasts, without what is short and broad: medians over time against those over frequency (Fitzgerald 2010)."""
    from scipy.ndimage import median_filter

    still = median_filter(magnitude, (STILL, 1), mode="nearest")
    broad = median_filter(magnitude, (1, BROAD), mode="nearest")
    return np.asarray(magnitude * still**2 / (still**2 + broad**2 + 1e-12), np.float32)


def _sounds(whole: Floats, tones: Floats) -> npt.NDArray[np.bool_]:
    """Frames that are neither silent nor noise: most of their power lasts and is narrow. bool [T]."""
    power = (whole**2).sum(1)
    melodic = np.arange(whole.shape[1]) * RATE_HZ / SIZE > 440 * 2 ** ((LOW - 69) / 12)
    steady = _smooth(((tones**2) * melodic).sum(1)) / (_smooth(((whole**2) * melodic).sum(1)) + 1e-12)
    floor = max(SILENCE_POWER, power.max(initial=0) * 10 ** (FLOOR_DB / 10))
    return np.asarray((power > floor) & (steady > STEADY))


def _smooth(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """A mean over SPAN frames, weighted towards the middle one. [T] or [T, N]."""
    from scipy.ndimage import convolve1d

    kernel = np.hanning(SPAN + 2)[1:-1]
    return np.asarray(convolve1d(values, kernel / kernel.sum(), axis=0, mode="constant"))


def _pitches(tones: Floats) -> Floats:
    """The pitch of each bin, MIDI [bins], by the clip's own tuning: people hum between the keys."""
    hz = np.maximum(np.arange(tones.shape[1]), 1) * RATE_HZ / SIZE
    midi = 69 + 12 * np.log2(hz / 440)
    melodic = (hz > 200) & (hz < 2000)  # a bin is less than a third of a semitone wide there
    off = (tones[:, melodic].sum(0) * np.exp(2j * np.pi * midi[melodic])).sum()
    return np.asarray(midi - np.angle(off) / (2 * np.pi), np.float32)


def _salience(tones: Floats, midi: Floats) -> Floats:
    """How much of each frame's tones the harmonics of each pitch make up: [T, HIGH - LOW + 1].

    Magnitudes count by their square root, so that a voice is heard beside a louder one.
    """
    inner, peaks = tones[:, 1:-1], np.zeros_like(tones)
    top = (inner >= tones[:, :-2]) & (inner > tones[:, 2:])
    peaks[:, 1:-1] = np.where(top, np.sqrt(inner), 0) * (midi[1:-1] > LOW - 0.6)
    table = np.zeros((len(midi), HIGH - LOW + 1), np.float32)
    for rank in range(1, HARMONICS + 1):
        away = midi[:, None] - (np.arange(LOW, HIGH + 1) + 12 * np.log2(rank))
        table = np.maximum(table, (FALL ** (rank - 1) * _near(away)).astype(np.float32))
    most = np.sqrt((FALL ** (2 * np.arange(HARMONICS))).sum())
    return np.asarray(peaks @ table / (np.linalg.norm(peaks, axis=1, keepdims=True) * most + 1e-6), np.float32)


def _near(semitones: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """1 on the pitch, 0 from 0.6 semitones off."""
    return np.asarray(np.cos(np.clip(semitones / 0.6, -1, 1) * np.pi / 2) ** 2)


def _course(salience: Floats, sounds: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The cheapest course through the pitches and silence, MIDI or -1: int64 [T]."""
    frames, pitches = salience.shape
    rest = np.where(sounds, TONAL, 2.0)
    gain = np.concatenate([salience, rest[:, None]], axis=1)
    price = np.full(pitches + 1, CHANGE)
    price[-1] = REST
    best = gain[0].copy()
    back = np.zeros((frames, pitches + 1), np.int64)
    for t in range(1, frames):
        come = int(best.argmax())
        arrive = best[come] - price
        stay = best >= arrive
        back[t] = np.where(stay, np.arange(pitches + 1), come)
        best = np.where(stay, best, arrive) + gain[t]
    path = np.empty(frames, np.int64)
    path[-1] = best.argmax()
    for t in range(frames - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return np.where(path == pitches, -1, path + LOW)


def _harmony(tones: Floats, midi: Floats, sounds: npt.NDArray[np.bool_]) -> Floats:
    """Pitch classes of all that sounds from 60 Hz to 1 kHz, over about half a second."""
    fold = np.zeros((len(midi), 12), np.float32)
    tempered = np.round(midi)
    fold[np.arange(len(midi)), tempered.astype(int) % 12] = _near(midi - tempered) * ((midi > 35) & (midi < 83))
    chroma = tones @ fold
    chroma = _smooth(chroma / np.maximum(chroma.max(1, keepdims=True), 1e-6) * sounds[:, None])
    return np.asarray(chroma / np.maximum(chroma.max(1, keepdims=True), 1e-6) * sounds[:, None], np.float32)
