"""What the codes of a codebook have in common, as a 0/1 matrix.

Code 417 of the lead is "flute, A4, third frame"; code 418 differs in one thing. Tables of the language model are
learned as sums over such factors (plus a small rest of each code's own), so what is learned of one flute note is known
of all. They are multiplied out at export: the shipped model has plain tables.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from training.codec.layout import CARD, PULSE_BASE, PULSES, sounds
from training.corpus.instruments import ATTACK_FRAMES, HITS, KITS, MAX_TICK_FRAMES
from training.corpus.score import LAYERS


def _drum_rows() -> dict[int, list[Hashable]]:
    rows: dict[int, list[Hashable]] = {}
    for number in range((PULSE_BASE - 1) // MAX_TICK_FRAMES + PULSES):
        silent = number >= len(KITS) * len(HITS)
        kit = "pulse" if silent else KITS[number // len(HITS)]
        what = f"step {number - len(KITS) * len(HITS)}" if silent else HITS[number % len(HITS)]
        for age in range(MAX_TICK_FRAMES):
            starts = age == 0
            rows[1 + number * MAX_TICK_FRAMES + age] = [
                ("kit", kit),
                ("what", what),
                ("age", age),
                ("starts", starts),
                ("kit", kit, starts),
                ("what", what, starts),
                ("both", kit, what),
            ]
    return rows


def _pitched_rows(layer: str) -> dict[int, list[Hashable]]:
    rows: dict[int, list[Hashable]] = {}
    for (preset, key), sound in sounds()[layer].items():
        frames = ATTACK_FRAMES + sound.loop
        for age in range(frames):
            starts = age == 0
            rows[sound.first + age] = [
                ("preset", preset),
                ("preset", preset, starts),
                ("key", *key),
                ("key", *key, starts),
                ("age", age),
                ("starts", starts),
                ("place", "last" if age == frames - 1 else "first" if age == ATTACK_FRAMES else "other"),
                ("class", key[0] % 12),
                ("class", key[0] % 12, starts),
            ]
            if layer == "chords":
                rows[sound.first + age].append(("minor", key[1]))
    return rows


def factor_matrix(layer: int) -> np.ndarray:
    """Which factors each code of a codebook has: float32 [CARD + 1, F]. The last row is the special token's."""
    name = LAYERS[layer]
    rows = _drum_rows() if name == "drums" else _pitched_rows(name)
    rows[0], rows[CARD] = [("silence",)], [("special",)]
    index: dict[Hashable, int] = {}
    for code in sorted(rows):
        for factor in rows[code]:
            index.setdefault(factor, len(index))
    matrix = np.zeros((CARD + 1, len(index) + 1), np.float32)
    for code in range(CARD + 1):
        # codes that mean nothing share one factor, which only ever learns that they never come
        for column in [index[f] for f in rows[code]] if code in rows else [len(index)]:
            matrix[code, column] = 1
    return matrix
