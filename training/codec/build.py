"""Cut the codec's codewords out of the orchestra's notes. Nothing is trained: the codebooks are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modules.musicgen import compat

compat.prepare()

from modules.musicgen.tiny.codec import PULSE_SOUND, LayeredCodec  # noqa: E402
from training.codec.layout import CARD, PULSE_BASE, PULSES, TUNING, Sound, sounds  # noqa: E402
from training.corpus.instruments import (  # noqa: E402
    ATTACK_FRAMES,
    FRAME_RATE_HZ,
    HITS,
    HOP,
    KITS,
    MAX_TICK_FRAMES,
    PRESETS,
    SAMPLE_RATE_HZ,
    drum_hit,
    note,
)
from training.corpus.score import LAYERS  # noqa: E402

FADE = 64
CONFIG: dict[str, Any] = {
    "codebooks": len(LAYERS),
    "cardinality": CARD,
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "frame_rate_hz": FRAME_RATE_HZ,
    "fade": FADE,
    "attack_frames": ATTACK_FRAMES,
    "widths": [0.0, 0.0, 0.4, 0.3],  # drums and bass stay in the middle
    "delays": [0, 0, 352, 544],  # 11 and 17 ms
}
MIX = {"drums": 0.74, "bass": 0.25, "chords": 0.42, "lead": 0.38}  # level of the layers in a mix


def _frames(samples: np.ndarray, count: int, *, starts: bool) -> np.ndarray:
    """Cut into frames that overlap by FADE, with linear fades; the first has none at its start: [count, HOP + FADE]."""
    cut = np.stack([samples[i * HOP : i * HOP + HOP + FADE] for i in range(count)])
    ramp = (np.arange(FADE) + 0.5) / FADE
    cut[1 if starts else 0 :, :FADE] *= ramp
    cut[:, HOP:] *= 1 - ramp
    return cut


def _pitched(codec: LayeredCodec, row: int, sound: Sound, number: int, level: float) -> None:
    frames = ATTACK_FRAMES + sound.loop
    samples = note(sound.preset, [m + TUNING for m in sound.midis], frames, sound.loop, FADE) * level
    codes = slice(sound.first, sound.first + frames)
    codec.waves[row, codes] = torch.from_numpy(_frames(samples, frames, starts=True)).half()
    codec.sound[row, codes] = number
    codec.onset[row, sound.first] = True
    codec.following[row, codes] = torch.arange(sound.first + 1, sound.first + frames + 1, dtype=torch.int16)
    codec.following[row, sound.first + frames - 1] = sound.first + ATTACK_FRAMES
    codec.classes[row, codes] = sum(1 << c for c in {midi % 12 for midi in sound.midis})
    preset = PRESETS[sound.preset]
    codec.hold[row, codes] = preset.hold
    codec.fall[row, codes] = float(np.exp(-1 / (preset.decay_s * FRAME_RATE_HZ)))


def _drums(codec: LayeredCodec) -> None:
    for place, (kit, hit) in enumerate((kit, hit) for kit in KITS for hit in HITS):
        first = 1 + place * MAX_TICK_FRAMES
        samples = drum_hit(kit, hit) * MIX["drums"]
        _tick(codec, first, place + 1, _frames(samples, MAX_TICK_FRAMES, starts=True))
    for eighth in range(PULSES):
        silence = np.zeros((MAX_TICK_FRAMES, HOP + FADE), np.float32)
        _tick(codec, PULSE_BASE + eighth * MAX_TICK_FRAMES, PULSE_SOUND + eighth, silence)


def _tick(codec: LayeredCodec, first: int, number: int, waves: np.ndarray) -> None:
    codes = slice(first, first + MAX_TICK_FRAMES)
    codec.waves[0, codes] = torch.from_numpy(waves).half()
    codec.sound[0, codes] = number
    codec.onset[0, first] = True
    codec.following[0, codes] = torch.arange(first + 1, first + MAX_TICK_FRAMES + 1, dtype=torch.int16)
    codec.following[0, first + MAX_TICK_FRAMES - 1] = first + MAX_TICK_FRAMES - 1


def build() -> LayeredCodec:
    """The finished codec."""
    codec = LayeredCodec(**CONFIG).eval()
    codec.following.copy_(torch.arange(CARD, dtype=torch.int16).expand_as(codec.following))
    _drums(codec)
    for row, layer in enumerate(LAYERS):
        if layer == "drums":
            continue
        for number, sound in enumerate(sounds()[layer].values(), 1):
            _pitched(codec, row, sound, number, MIX[layer])
    return codec
