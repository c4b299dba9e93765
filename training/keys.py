"""An ear for keys, trained on the corpus: which major scale a clip's notes belong to (a minor or modal key counts as
its relative major).

It hears how strong each pitch class is in four registers, in the whole clip and in its opening, and weighs them by a
small network that is the same for all twelve keys: it is given the strengths as seen from each key in turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn import functional

from modules.musicgen.tiny.words import MODES
from training.codec.build import build
from training.codec.layout import tokens
from training.corpus.instruments import SAMPLE_RATE_HZ
from training.corpus.score import Score, compose
from training.measure import spectrogram

log = logging.getLogger(__name__)
REGISTERS = ((28, 48), (48, 60), (60, 72), (72, 96))  # MIDI
OPENING_S = 1.6
_SLOWER, _SIZE, _HOP = 8, 2048, 256  # notes below 2 kHz: at 4 kHz, windows of half a second


def key_of(score: Score) -> int:
    """The pitch class of the major scale that the score's notes belong to."""
    return (score.root - MODES[score.mode]) % 12


def tones(clip: np.ndarray, *, opening: bool = True) -> np.ndarray:
    """Strength of each pitch class in each register, of the whole and of the opening: float32 [2, 4, 12], sums of 1.

    opening: whether the clip begins where the music does; otherwise that half is left at 0.
    """
    rate = SAMPLE_RATE_HZ // _SLOWER
    magnitude = spectrogram(resample_poly(clip, 1, _SLOWER).astype(np.float32), _SIZE, _HOP)
    hz = np.arange(magnitude.shape[1]) * rate / _SIZE
    inside = (hz > 38) & (hz < 1800)
    midi = 69 + 12 * np.log2(hz[inside] / 439.0)
    level = magnitude[:, inside]
    peak = np.zeros(level.shape, bool)
    peak[:, 1:-1] = (level[:, 1:-1] > level[:, :-2]) & (level[:, 1:-1] >= level[:, 2:])
    # clear of the surroundings, so that drums weigh nothing
    peak &= level > 2 * np.median(level, axis=1, keepdims=True)
    strength = np.where(peak, np.sqrt(level), 0)
    nearest = np.round(midi).astype(int)
    out = np.zeros((2, len(REGISTERS), 12), np.float32)
    first = max(1, int(OPENING_S * rate / _HOP))
    for row, frames in enumerate((strength, strength[:first])):
        if row == 1 and not opening:
            continue
        total = frames.sum(0)
        for register, (low, high) in enumerate(REGISTERS):
            chosen = (nearest >= low) & (nearest < high)
            np.add.at(out[row, register], nearest[chosen] % 12, total[chosen])
        out[row] /= out[row].sum() + 1e-9
    return out


class Ear(nn.Module):
    """Tones float [B, 2, 4, 12] -> logits of the twelve keys [B, 12]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 2 * len(REGISTERS) * 12
        self.weigh = nn.Sequential(nn.Linear(inputs, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def forward(self, heard: Tensor) -> Tensor:
        seen = torch.stack([heard.roll(-key, 3) for key in range(12)], 1)
        result: Tensor = self.weigh(8 * seen.sqrt().flatten(2))[..., 0]
        return result

    @torch.no_grad()
    def keys(self, clips: Sequence[np.ndarray], *, opening: bool = True) -> list[int]:
        """The key of each clip float32 [T] at 32 kHz."""
        heard = torch.from_numpy(np.stack([tones(clip, opening=opening) for clip in clips]))
        return [int(k) for k in self(heard).argmax(1)]


def examples(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tones, key, kind): of each of `count` pieces ten seconds (0), the first five (1) and the last five (2)."""
    codec = build()
    heard: list[np.ndarray] = []
    keys: list[int] = []
    half = 5 * SAMPLE_RATE_HZ
    while len(keys) < count:
        score = compose(seed, 10, training=False)
        seed += 1
        if score.shape == "drums":
            continue
        with torch.no_grad():
            clip = codec.decode(torch.from_numpy(tokens(score)[:, :500]).long()[None])[0].mean(0).numpy()
        heard += [tones(clip), tones(clip[:half]), tones(clip[half:], opening=False)]
        keys.append(key_of(score))
    kinds = torch.arange(3).repeat(count)
    return torch.from_numpy(np.stack(heard)), torch.tensor(keys).repeat_interleave(3), kinds


def train(work: Path, count: int = 3000, steps: int = 4000) -> Ear:
    """Train on `count` pieces, report on 300 others, and keep the ear at work/ear.pt."""
    store = work / "ear_clips.pt"
    if not store.exists():
        torch.save(examples(50_000_000, count), store)
    heard, key, _ = torch.load(store, weights_only=True)
    torch.manual_seed(0)
    ear = Ear()
    optimiser = torch.optim.AdamW(ear.parameters(), 3e-3, weight_decay=0.01)
    for step in range(steps):
        pick = torch.randint(len(key), (128,))
        noisy = heard[pick] * (1 + 0.3 * torch.randn(heard[pick].shape)).clamp(0.2, 2)
        loss = functional.cross_entropy(ear(noisy), key[pick])
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps) + 1e-5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ear.eval()
    torch.save(ear.state_dict(), work / "ear.pt")
    log.info("ear on corpus clips it has not heard: %s", report(ear))
    return ear


@torch.no_grad()
def report(ear: Ear, count: int = 300) -> dict[str, float]:
    """How often the key is right on ten seconds of the corpus, on the first five, on the last five."""
    heard, key, kind = examples(70_000_000, count)
    right = ear(heard).argmax(1) == key
    return {
        name: round(float(right[kind == i].float().mean()), 3) for i, name in enumerate(("10 s", "first 5", "last 5"))
    }


def load(work: Path) -> Ear:
    ear = Ear()
    ear.load_state_dict(torch.load(work / "ear.pt", weights_only=True))
    return ear.eval()
