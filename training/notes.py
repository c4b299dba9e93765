"""The notes and parts that codes stand for, known exactly: a check on what is heard, free of any error of hearing."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from training.codec.layout import CARD, sounds
from training.corpus.genres import SCALES
from training.corpus.instruments import ATTACK_FRAMES, HITS, KITS, MAX_TICK_FRAMES
from training.corpus.score import LAYERS


@lru_cache(maxsize=1)
def _classes() -> np.ndarray:
    """Which pitch classes each code of each layer sounds: float32 [4, CARD, 12]."""
    table = np.zeros((len(LAYERS), CARD, 12), np.float32)
    for row, layer in enumerate(LAYERS[1:], 1):
        for sound in sounds()[layer].values():
            for midi in sound.midis:
                table[row, sound.first : sound.first + ATTACK_FRAMES + sound.loop, midi % 12] = 1
    return table


def pitch_classes(codes: np.ndarray) -> np.ndarray:
    """Frames in which each pitch class sounds, layers added up: [12] for codes [4, T]."""
    table = _classes()
    return np.asarray(sum(table[row][codes[row]].sum(0) for row in range(1, len(LAYERS))))


def share_inside(notes: np.ndarray, key: int) -> float:
    """The part of the notes [12] that belong to a major scale; 0 where there are none."""
    inside = [notes[(key + step) % 12] for step in SCALES["major"]]
    return float(sum(inside) / max(notes.sum(), 1e-9))


@lru_cache(maxsize=1)
def _names() -> list[list[str]]:
    """The part that each code of each layer belongs to, "" for silence."""
    table = [[""] * CARD for _ in LAYERS]
    for place, (kit, _) in enumerate((kit, hit) for kit in KITS for hit in HITS):
        first = 1 + place * MAX_TICK_FRAMES
        table[0][first : first + MAX_TICK_FRAMES] = [kit] * MAX_TICK_FRAMES
    for row, layer in enumerate(LAYERS[1:], 1):
        for sound in sounds()[layer].values():
            count = ATTACK_FRAMES + sound.loop
            table[row][sound.first : sound.first + count] = [sound.preset] * count
    return table


def parts_played(codes: np.ndarray, least_frames: int = 25) -> frozenset[str]:
    """The instruments and kits that sound for at least so many frames of codes [4, T]."""
    table = _names()
    frames: Counter[str] = Counter()
    for row in range(len(LAYERS)):
        used, counts = np.unique(codes[row], return_counts=True)
        for code, count in zip(used, counts, strict=True):
            frames[table[row][int(code)]] += int(count)
    return frozenset(part for part, count in frames.items() if part and count >= least_frames)
