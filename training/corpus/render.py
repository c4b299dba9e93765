"""A score as sound: natural notes, four stereo stems, a mix with mild room and compression.

This is what the separator is trained on and what the codec is measured on. The language model never needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import fftconvolve

from training.codec.layout import sounds
from training.corpus.instruments import HOP, SAMPLE_RATE_HZ, VOCAL_PRESETS, Audio, cached_note, drum_hit
from training.corpus.score import Score

STEMS = ("drums", "bass", "other", "vocals")
LEVELS = {"drums": 0.74, "bass": 0.25, "chords": 0.42, "lead": 0.38}  # of the layers in a mix
_PANS = {"drums": 0.0, "bass": 0.0, "chords": -0.3, "lead": 0.25}


@dataclass(frozen=True)
class Rendered:
    """stems: float32 [2, T] by name; they add up to mix, which is within [-1, 1]."""

    stems: dict[str, Audio]
    mix: Audio


@lru_cache(maxsize=8)
def _room(seed: int) -> Audio:
    """A short stereo impulse response: float32 [2, T]."""
    rng = np.random.default_rng(seed)
    seconds = float(rng.uniform(0.15, 0.5))
    t = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    noise = rng.standard_normal((2, len(t))) * np.exp(-t * 6.9 / seconds)
    noise[:, : int(0.008 * SAMPLE_RATE_HZ)] = 0
    return np.asarray(noise / np.sqrt((noise**2).sum(1, keepdims=True)), np.float32)


def layer_audio(score: Score, layer: str, samples: int) -> Audio:
    """One layer alone, dry and mono: float32 [samples]."""
    out = np.zeros(samples + SAMPLE_RATE_HZ, np.float32)
    for note in score.notes.get(layer, ()):
        at = note.start * HOP
        if at >= samples or (layer == "drums" and not note.hit):
            continue
        if layer == "drums":
            sound = drum_hit(score.kit, note.hit)
        else:
            found = sounds()[layer][score.instruments[layer], note.pitches]
            sound = cached_note(found.preset, found.midis, min(note.frames, 200))
        end = min(at + len(sound), len(out))
        out[at:end] += sound[: end - at]
    return out[:samples] * np.float32(LEVELS[layer])


def render(score: Score, seconds: float, seed: int = 0, *, effects: bool = True) -> Rendered:
    """The first `seconds` of a score, in stereo.

    effects: room, panning and compression; without them all layers are dry and in the middle.
    """
    samples = int(seconds * SAMPLE_RATE_HZ)
    rng = np.random.default_rng(seed)
    stems = {name: np.zeros((2, samples), np.float32) for name in STEMS}
    wet = float(rng.uniform(0.02, 0.2)) if effects else 0.0
    for layer in ("drums", *score.instruments):
        if layer == "drums" and not score.kit:
            continue
        mono = layer_audio(score, layer, samples)
        pan = _PANS[layer] * float(rng.uniform(0, 1.5)) if effects else 0.0
        stereo = np.stack([mono * np.sqrt(1 - pan), mono * np.sqrt(1 + pan)])
        if effects and layer != "bass":
            room = fftconvolve(stereo, _room(int(rng.integers(8))), axes=1)[:, :samples]
            stereo = stereo + wet * room
        vocal = score.instruments.get(layer) in VOCAL_PRESETS
        stems[layer if layer in {"drums", "bass"} else "vocals" if vocal else "other"] += stereo.astype(np.float32)
    mix: Audio = np.sum(list(stems.values()), axis=0, dtype=np.float32)
    # one gain for all, so that the stems still add up to the mix
    level = np.abs(mix).max()
    gain = _compression(mix) if effects and rng.random() < 0.5 else np.ones(samples, np.float32)
    gain = gain * np.float32(0.9 / max(level, 0.9))
    return Rendered({name: stem * gain for name, stem in stems.items()}, np.clip(mix * gain, -1, 1))


def _compression(mix: Audio) -> Audio:
    """A smooth gain that takes loud passages down by up to a third: float32 [T]."""
    block = SAMPLE_RATE_HZ // 50
    count = mix.shape[1] // block + 1
    padded = np.pad(mix, ((0, 0), (0, count * block - mix.shape[1])))
    level = np.sqrt((padded.reshape(2, count, block) ** 2).mean((0, 2)))
    level = np.convolve(level, np.ones(5) / 5, mode="same")
    gain = 1 / (1 + np.maximum(0, level - 0.12) * 2)
    return np.interp(np.arange(mix.shape[1]), np.arange(count) * block, gain).astype(np.float32)
