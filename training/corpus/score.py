"""A seeded score: what sounds when, on the 50 Hz frame grid, and what a caption may say about it.

A quarter note is a whole number of frames, so a beat falls on the same phase of the codec's frames every time and a
repeated bar is a repeated token sequence. That costs at most 3 % of tempo (the grid is 3000 / whole number).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from modules.musicgen.tiny.arrangement import QUARTER_FRAMES, SLOWEST_SWING, SWUNG, Beat
from modules.musicgen.tiny.words import bpm_in, modes_in
from training.corpus.genres import BASS_FIGURES, CHORD_FIGURES, GENRES, PROGRESSIONS, SCALES, Genre
from training.corpus.instruments import HITS, MAX_TICK_FRAMES

STEPS = 16  # in a bar
BASS_LOW, LEAD_LOW, LEAD_HIGH = 28, 60, 83
LAYERS = ("drums", "bass", "chords", "lead")
_COMBINED = {
    "hk": "kh",
    "ko": "ko",
    "hs": "sh",
    "os": "sh",
    "ks": "s",
    "hks": "sh",
    "kr": "kr",
    "hkr": "kr",
    "hr": "r",
    "or": "r",
    "ckh": "kc",
    "ck": "kc",
    "cko": "kc",
}


@dataclass(frozen=True)
class Note:
    """start, frames: on the frame grid. pitches: MIDI; empty for drums, whose `hit` is one of HITS."""

    start: int
    frames: int
    pitches: tuple[int, ...] = ()
    hit: str = ""
    step: int = 0


@dataclass
class Score:
    genre: str
    quarter: int  # frames
    root: int
    mode: str
    mood: str
    kit: str  # "" when nothing drums
    instruments: dict[str, str]  # layer -> preset, of the layers that play
    notes: dict[str, list[Note]] = field(default_factory=dict)
    frames: int = 0
    shape: str = "full"  # "full", "drums", "solo", "duo", "no drums"

    @property
    def bpm(self) -> float:
        return 3000.0 / self.quarter


def quarter_frames(bpm: float) -> int:
    """The whole number of frames nearest to a beat at `bpm`."""
    return int(np.clip(round(3000.0 / bpm), *QUARTER_FRAMES))


def held_out(genre: str, chord: str, lead: str) -> bool:
    """Combinations of genre and instruments that training never hears, about one in twelve."""
    return hashlib.blake2b(f"{genre}/{chord}/{lead}".encode(), digest_size=2).digest()[0] % 12 == 0


def step_frames(quarter: int, *, swing: bool) -> np.ndarray:
    """Start of each of a bar's 16 steps, and its end: int [17]."""
    grid = Beat(quarter, swing).grid
    return np.array([beat * quarter + place for beat in range(STEPS // 4) for place in grid] + [STEPS // 4 * quarter])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _plan(rng: np.random.Generator, name: str, genre: Genre, *, training: bool) -> Score:
    mood = _pick(rng, genre.moods)
    modes, (low, high) = modes_in(name, mood), bpm_in(name, mood)
    if rng.random() < 0.2:  # a person may ask for any tempo
        low, high = 60, 176
    while True:
        chord, lead = _pick(rng, genre.chords or ("",)), _pick(rng, genre.leads)
        if rng.random() < 0.12:  # and for any instrument
            from training.corpus.instruments import CHORD_PRESETS, LEAD_PRESETS

            chord, lead = (_pick(rng, CHORD_PRESETS), lead) if rng.random() < 0.5 else (chord, _pick(rng, LEAD_PRESETS))
        if not (training and held_out(name, chord, lead)):
            break
    quarter = quarter_frames(float(rng.uniform(low, high)))
    return Score(
        name,
        quarter,
        int(rng.integers(12)),
        _pick(rng, modes),
        mood,
        _pick(rng, genre.kits) if genre.kits else "",
        {"bass": _pick(rng, genre.basses) if genre.basses else "", "chords": chord, "lead": lead},
    )


def _choose_layers(rng: np.random.Generator, score: Score) -> None:
    have = {k: v for k, v in score.instruments.items() if v}
    roll = rng.random()
    if roll < 0.09 and score.kit:
        score.shape, have = "drums", {}
    elif roll < 0.29:
        score.shape, score.kit = "solo", ""
        only = _pick(rng, [k for k in ("bass", "chords", "chords", "lead", "lead") if k in have])
        have = {only: have[only]}
    elif roll < 0.37:
        score.shape = "duo"
        if score.kit and rng.random() < 0.5:
            only = _pick(rng, list(have))
            have = {only: have[only]}
        else:
            score.kit = ""
            have = dict(list(have.items())[-2:])
    elif roll < 0.48:
        score.shape, score.kit = "no drums", ""
    elif rng.random() < 0.35 and len(have) > 1 and "lead" in have:
        del have["lead"]
    score.instruments = have


def hit_at(rows: dict[str, str], step: int) -> str:
    sounds = "".join(sorted(k for k, row in rows.items() if row[step] == "x"))
    hit = _COMBINED.get(sounds, sounds)
    return hit if hit in HITS else sounds[0]


def _drum_notes(rng: np.random.Generator, rows: dict[str, str], at: np.ndarray, bars: int) -> list[Note]:
    """Every tick is a note until the next one, the silent eighths included: they mark the pulse."""
    notes: list[Note] = []
    crash, fills = rng.random() < 0.4, rng.random() < 0.6
    fill = [(12, "s"), (13, "t"), (14, "t")] if rng.random() < 0.5 else [(12, "t"), (14, "s")]
    for bar in range(bars):
        ticks = {s: hit_at(rows, s) for s in range(STEPS)}
        if fills and bar % 4 == 3:
            ticks |= dict(fill)
        if crash and bar % 8 == 0 and "k" in ticks[0]:
            ticks[0] = "kc"
        steps = [s for s, hit in ticks.items() if hit or s % 2 == 0]
        for s, following in zip(steps, [*steps[1:], STEPS], strict=True):
            start, end = bar * at[STEPS] + at[s], bar * at[STEPS] + at[following]
            notes.append(Note(int(start), int(min(end - start, MAX_TICK_FRAMES + 15)), (), ticks[s], s))
    return notes


def pulse_notes(at: np.ndarray, bars: int) -> list[Note]:
    """Silent ticks on the eighths, for music without drums."""
    return [
        Note(int(bar * at[STEPS] + at[s]), int(at[s + 2] - at[s]), (), "", s)
        for bar in range(bars)
        for s in range(0, STEPS, 2)
    ]


def voicing_root(score: Score, degree: int) -> tuple[int, bool]:
    """Pitch class of the chord on a degree of the scale, and whether it is minor."""
    scale = SCALES[score.mode]
    pitch, third = scale[degree % 7], scale[(degree + 2) % 7]
    return (score.root + pitch) % 12, (third - pitch) % 12 == 3


def _melody(
    rng: np.random.Generator, score: Score, style: str, progression: Sequence[int], at: np.ndarray, bars: int
) -> list[Note]:
    scale = SCALES[score.mode]
    ladder = [m for m in range(LEAD_LOW, LEAD_HIGH + 1) if (m - score.root) % 12 in scale]

    def chord_tones(degree: int) -> list[int]:
        inside = {(score.root + scale[(degree + k) % 7]) % 12 for k in (0, 2, 4)}
        return [m for m in ladder if m % 12 in inside]

    cells = {
        "melody": ((0, 4), (4, 2), (6, 2), (8, 4), (12, 4))
        if rng.random() < 0.5
        else ((0, 2), (2, 2), (4, 4), (8, 6), (14, 2)),
        "riff": ((0, 2), (4, 2), (6, 2), (10, 2), (12, 2)) if rng.random() < 0.5 else ((0, 4), (6, 2), (8, 4), (14, 2)),
        "sparse": ((0, 8), (8, 8)) if rng.random() < 0.5 else ((0, 6), (6, 10)),
    }
    notes: list[Note] = []
    if style == "arpeggio":
        up = rng.random() < 0.5
        for bar in range(bars):
            tones = chord_tones(progression[bar % len(progression)])[1:5]
            order = tones if up else tones[::-1]
            for i, s in enumerate(range(0, STEPS, 2)):
                notes.append(Note(int(bar * at[STEPS] + at[s]), int(at[s + 2] - at[s]), (order[i % len(order)],)))
        return notes
    contour = rng.integers(-2, 3, 8)
    cell = cells[style]
    for bar in range(bars):
        tones = chord_tones(progression[bar % len(progression)])
        where = ladder.index(min(tones, key=lambda m: abs(m - 70)))
        shape = contour if bar % 4 < 3 else -contour
        for i, (s, length) in enumerate(cell):
            where = int(np.clip(where + shape[i % 8], 0, len(ladder) - 1))
            pitch = ladder[where]
            if s in {0, 8}:
                pitch = min(tones, key=lambda m: abs(m - pitch))
                where = ladder.index(pitch)
            end = min(s + length, STEPS)
            notes.append(Note(int(bar * at[STEPS] + at[s]), int(at[end] - at[s]), (pitch,)))
    return notes


def _bass_notes(score: Score, figure: str, progression: Sequence[int], at: np.ndarray, bars: int) -> list[Note]:
    notes = []
    for bar in range(bars):
        pc, minor = voicing_root(score, progression[bar % len(progression)])
        low = BASS_LOW + (pc - BASS_LOW) % 12
        for s, length, above in BASS_FIGURES[figure]:
            interval = 3 if above == 4 and minor else above
            pitch = low + interval if low + interval < BASS_LOW + 20 else low
            notes.append(Note(int(bar * at[STEPS] + at[s]), int(at[min(s + length, STEPS)] - at[s]), (pitch,)))
    return notes


def compose(seed: int, seconds: float, *, training: bool = True, genre: str | None = None) -> Score:
    """A score of at least `seconds`. training: stay clear of the held-out combinations."""
    rng = np.random.default_rng(seed)
    name = genre or list(GENRES)[int(rng.integers(len(GENRES)))]
    table = GENRES[name]
    score = _plan(rng, name, table, training=training)
    _choose_layers(rng, score)
    at = step_frames(score.quarter, swing=name in SWUNG and score.quarter <= SLOWEST_SWING)
    bars = max(2, int(np.ceil(seconds * 50 / at[STEPS])))
    score.frames = int(bars * at[STEPS])
    progression = PROGRESSIONS[score.mode][int(rng.integers(len(PROGRESSIONS[score.mode])))]
    if name == "jazz" and score.mode == "major":
        progression = (1, 4, 0, 5)
    if score.kit:
        rows = table.drums[int(rng.integers(len(table.drums)))]
        score.notes["drums"] = _drum_notes(rng, rows, at, bars)
    else:
        score.notes["drums"] = pulse_notes(at, bars)
    if "bass" in score.instruments:
        score.notes["bass"] = _bass_notes(score, _pick(rng, table.bass_figures), progression, at, bars)
    if "chords" in score.instruments:
        figure = CHORD_FIGURES[_pick(rng, table.chord_figures or ("halves",))]
        chords = []
        for bar in range(bars):
            pc, minor = voicing_root(score, progression[bar % len(progression)])
            for s, length in figure:
                start, end = at[s], at[min(s + length, STEPS)]
                chords.append(Note(int(bar * at[STEPS] + start), int(end - start), (pc, int(minor))))
        score.notes["chords"] = chords
    if "lead" in score.instruments:
        score.notes["lead"] = _melody(rng, score, table.lead_style, progression, at, bars)
    _give_form(rng, score, at, bars)
    return score


def _give_form(rng: np.random.Generator, score: Score, at: np.ndarray, bars: int) -> None:
    """Sometimes a layer enters late (an intro) or leaves for four bars (a change)."""
    playing = [k for k in score.instruments if k in score.notes]
    if score.shape != "full" or len(playing) < 2:
        return
    if rng.random() < 0.15:
        late = _pick(rng, playing)
        score.notes[late] = [n for n in score.notes[late] if n.start >= 2 * at[STEPS]]
    if bars > 8 and rng.random() < 0.4:
        gone = _pick(rng, playing)
        start = int(rng.integers(1, bars // 4)) * 4 * at[STEPS]
        score.notes[gone] = [n for n in score.notes[gone] if not start <= n.start < start + 4 * at[STEPS]]
