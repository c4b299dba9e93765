"""Which code means what: four codebooks of 2,048, one for each layer of the music.

drums   kit x hit x frames since the hit; without drums a silent pulse: eighth of the bar x frames since it
bass    preset x pitch x (attack frame | frame of the loop)
chords  preset x root and quality x (attack frame | frame of the loop)
lead    preset x pitch x (attack frame | frame of the loop)

Code 0 is silence. A loop is the shortest number of frames in which every note of the sound makes a whole number of
cycles, near enough (TOLERANCE_CENTS) to its true pitch: then the body repeats without a seam and the waveform of a
frame depends on its code alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.corpus.instruments import (
    ATTACK_FRAMES,
    BASSES,
    CHORD_PRESETS,
    FRAME_RATE_HZ,
    HITS,
    KITS,
    LEAD_PRESETS,
    MAX_TICK_FRAMES,
    hertz,
)
from training.corpus.score import BASS_LOW, LAYERS, LEAD_HIGH, LEAD_LOW, Note, Score

CARD = 2048
TUNING = -0.04  # semitones: where the pitches fit the frame grid best (A = 439 Hz)
TOLERANCE_CENTS = 14.0
PULSES = 8  # eighths of a bar
PULSE_BASE = 1 + len(KITS) * len(HITS) * MAX_TICK_FRAMES


@dataclass(frozen=True)
class Sound:
    """One pitched sound: its first code and how many frames its body loops over."""

    preset: str
    midis: tuple[int, ...]
    first: int
    loop: int

    def codes(self, frames: int) -> np.ndarray:
        """Codes of the sound held for `frames`: int [frames]."""
        age = np.arange(frames)
        return self.first + np.where(age < ATTACK_FRAMES, age, ATTACK_FRAMES + (age - ATTACK_FRAMES) % self.loop)


def loop_error(midis: tuple[int, ...], loop: int) -> float:
    """Cents by which the worst note is off when all notes must repeat every `loop` frames."""
    grid = FRAME_RATE_HZ / loop
    worst = 0.0
    for midi in midis:
        f = hertz(midi + TUNING)
        worst = max(worst, abs(1200 * float(np.log2(max(1, round(f / grid)) * grid / f))))
    return worst


def best_loop(midis: tuple[int, ...], longest: int) -> tuple[float, int]:
    """(cents off, frames) of the shortest loop within the tolerance, or of the best one."""
    options = [(loop_error(midis, loop), loop) for loop in range(1, longest + 1)]
    return next((o for o in options if o[0] <= TOLERANCE_CENTS), min(options))


@lru_cache(maxsize=32)
def voicing(root: int, minor: int) -> tuple[int, ...]:
    """The inversion of a triad, near middle C, that loops best."""
    classes = (root, (root + (3 if minor else 4)) % 12, (root + 7) % 12)
    places = [[m for m in range(53, 73) if m % 12 == c] for c in classes]
    shapes = {tuple(sorted(c)) for c in itertools.product(*places)}
    fitting = [s for s in shapes if 5 <= s[-1] - s[0] <= 12]
    rated = sorted((best_loop(s, 8), s) for s in fitting)
    good = [(loop, error, s) for (error, loop), s in rated if error <= TOLERANCE_CENTS]
    return min(good)[2] if good else rated[0][1]


@lru_cache(maxsize=1)
def sounds() -> dict[str, dict[tuple[str, tuple[int, ...]], Sound]]:
    """Every pitched sound by layer and (preset, what a Note's pitches say)."""
    table: dict[str, dict[tuple[str, tuple[int, ...]], Sound]] = {}
    wanted: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...], int]]] = {
        "bass": [(p, (m,), (m,), 34) for p in BASSES for m in range(BASS_LOW, BASS_LOW + 20)],
        "chords": [(p, (r, q), voicing(r, q), 8) for p in CHORD_PRESETS for r in range(12) for q in (0, 1)],
        "lead": [(p, (m,), (m,), 6) for p in LEAD_PRESETS for m in range(LEAD_LOW, LEAD_HIGH + 1)],
    }
    for layer, entries in wanted.items():
        code = 1
        rows: dict[tuple[str, tuple[int, ...]], Sound] = {}
        for preset, key, midis, longest in entries:
            loop = best_loop(midis, longest)[1]
            rows[preset, key] = Sound(preset, midis, code, loop)
            code += ATTACK_FRAMES + loop
        if code > CARD:
            raise ValueError(f"{layer} needs {code} codes, more than {CARD}")
        table[layer] = rows
    return table


def drum_codes(kit: str, note: Note) -> np.ndarray:
    """Codes of one tick: int [note.frames]."""
    age = np.minimum(np.arange(note.frames), MAX_TICK_FRAMES - 1)
    if not kit:
        return PULSE_BASE + (note.step // 2) * MAX_TICK_FRAMES + age
    return 1 + (KITS.index(kit) * len(HITS) + HITS.index(note.hit)) * MAX_TICK_FRAMES + age


def tokens(score: Score) -> np.ndarray:
    """The score as the codec's codes: int16 [4, score.frames]."""
    out = np.zeros((len(LAYERS), score.frames), np.int16)
    for row, layer in enumerate(LAYERS):
        for note in score.notes.get(layer, ()):
            end = min(note.start + note.frames, score.frames)
            if layer == "drums":
                codes = drum_codes(score.kit, note)
            else:
                codes = sounds()[layer][score.instruments[layer], note.pitches].codes(note.frames)
            out[row, note.start : end] = codes[: end - note.start]
    return out
