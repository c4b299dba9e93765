"""What can be measured of a clip: tempo, and what the classifier and the ear are given. All on mono 32 kHz."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from training.corpus.instruments import SAMPLE_RATE_HZ, Audio

HOP = 320  # 10 ms
BANDS = 64


@lru_cache(maxsize=4)
def _mel(size: int, bands: int) -> np.ndarray:
    """Triangular bands, evenly spaced on the mel scale from 30 Hz to 15 kHz: [bands, size // 2 + 1]."""
    mel = np.linspace(2595 * np.log10(1 + 30 / 700), 2595 * np.log10(1 + 15_000 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hz = np.arange(size // 2 + 1) * SAMPLE_RATE_HZ / size
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)))


def spectrogram(clip: Audio, size: int = 1024, hop: int = HOP) -> np.ndarray:
    """Magnitudes [T, size // 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(clip, (size // 2, size // 2)), size)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)).astype(np.float32)


def log_mel(clip: Audio) -> np.ndarray:
    """Natural logarithm of mel magnitudes, float32 [T, BANDS]."""
    return np.log(spectrogram(clip) @ _mel(1024, BANDS).T + 1e-2)


def pictures(clip: Audio) -> np.ndarray:
    """Two log-mel spectrograms a frame of 20 ms, with a window for time and one for pitch: float32 [2, T, 80]."""
    levels = [spectrogram(clip, size, 640) @ _mel(size, 80).T for size in (1024, 4096)]
    return np.log(np.stack(levels) + 1e-2).astype(np.float32)


def onsets(mel: np.ndarray) -> np.ndarray:
    """Onset strength in four bands, low to high: [4, T]."""
    flux = np.maximum(0, np.diff(mel, axis=0, prepend=mel[:1]))
    return np.stack([flux[:, a : a + BANDS // 4].mean(1) for a in range(0, BANDS, BANDS // 4)])


def _autocorrelation(signal: np.ndarray, lags: int) -> np.ndarray:
    x = signal - signal.mean()
    size = 1 << (2 * len(x) - 1).bit_length()
    result = np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2)[:lags]
    return result / (result[0] + 1e-9) * len(x) / (len(x) - np.arange(lags).clip(max=len(x) - 1))


def tempo_bpm(clip: Audio) -> float:
    """The beat's tempo, up to an octave: the lag at which the onsets repeat best, with its multiples."""
    strength = onsets(log_mel(clip)).sum(0)
    correlation = _autocorrelation(strength, 420)
    fine = np.interp(np.arange(0, 410, 0.1), np.arange(420), correlation)
    lags = np.arange(300, 1010)  # 0.30 to 1.01 s in tenths of 10 ms: 200 to 59 bpm

    def score(lag: int) -> float:
        return sum(fine[min(lag * k, len(fine) - 1)] / k**0.5 for k in (1, 2, 3, 4)) + 0.3 * fine[lag // 2]

    scores = np.array([score(int(lag)) for lag in lags])
    prior = np.exp(-0.5 * (np.log2(lags / 500) / 1.2) ** 2)
    return float(6000 / (lags[(scores * prior).argmax()] / 10))


def same_tempo(found_bpm: float, bpm: float, tolerance: float = 0.04) -> bool:
    """Whether a tempo is `bpm`, its half or its double."""
    return any(abs(found_bpm / (bpm * octave) - 1) < tolerance for octave in (0.5, 1, 2))


def describe(clip: Audio) -> np.ndarray:
    """What the classifier sees: band levels, their movement, the rhythm in four bands. float32 [N]."""
    mel = log_mel(clip)
    change = np.diff(mel, axis=0)
    parts = [
        mel.mean(0),
        mel.std(0),
        np.percentile(mel, 90, axis=0),
        np.percentile(mel, 10, axis=0),
        np.maximum(0, change).mean(0) * 10,
        np.minimum(0, change).mean(0) * 10,
    ]
    for band in onsets(mel):
        parts.append(_autocorrelation(band, 130)[4:130:2] * 2)
        parts.append(np.array([band.mean(), band.std(), np.percentile(band, 95)]) * 5)
    spread = spectrogram(clip, 4096, 1600)
    fine = np.log(spread[:, 4:400].reshape(len(spread), 99, 4).max(2) + 1e-2)
    parts += [fine.mean(0), fine.std(0)]
    return np.concatenate(parts).astype(np.float32)
