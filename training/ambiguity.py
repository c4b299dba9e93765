"""How well could anyone tell the genre of a corpus piece? The generator's own odds, given everything that a perfect
listener would write down: kit and drum pattern, instruments, figures, mode and tempo of whatever plays.

    python -m training.ambiguity
"""

from __future__ import annotations

import collections

import numpy as np

from modules.musicgen.tiny.words import bpm_in, modes_in
from training.corpus.genres import BASS_FIGURES, CHORD_FIGURES, GENRES, Rows
from training.corpus.instruments import CHORD_PRESETS, LEAD_PRESETS
from training.corpus.score import STEPS, Score, compose, hit_at, step_frames

_CELLS = {
    (0, 4, 6, 8, 12): "melody", (0, 2, 4, 8, 14): "melody", (0, 4, 6, 10, 12): "riff", (0, 6, 8, 14): "riff",
    (0, 8): "sparse", (0, 6): "sparse", tuple(range(0, 16, 2)): "arpeggio",
}  # fmt: skip


def _bar(score: Score, layer: str) -> dict[int, str]:
    """What begins on which step of the first bar that the layer plays whole: {step: hit or ""}."""
    straight, swung = (step_frames(score.quarter, swing=swing) for swing in (False, True))
    notes = score.notes.get(layer, [])
    if not notes:
        return {}
    bar = notes[0].start // int(straight[STEPS])
    if layer == "drums" and bar == 0 and len(notes) > STEPS:
        bar = 1  # the first has the crash
    steps = {}
    for note in notes:
        at = note.start - bar * int(straight[STEPS])
        if 0 <= at < straight[STEPS]:
            near = np.minimum(abs(straight[:STEPS] - at), abs(swung[:STEPS] - at))
            steps[note.step if layer == "drums" else int(near.argmin())] = note.hit
    return steps


def _rows(rows: Rows) -> dict[int, str]:
    ticks = {s: hit_at(rows, s) for s in range(STEPS)}
    return {s: hit for s, hit in ticks.items() if hit or s % 2 == 0}


def _tempo(name: str, mode: str, bpm: float) -> float:
    """Odds of the mode and of a tempo this near, over the genre's moods."""
    genre, total = GENRES[name], 0.0
    for mood in genre.moods:
        modes, (low, high) = modes_in(name, mood), bpm_in(name, mood)
        near = 0.8 * (low - 2 <= bpm <= high + 2) / (high - low) + 0.2 / 116
        total += modes.count(mode) / len(modes) * near / len(genre.moods)
    return total


def _share(options: tuple[str, ...], one: str) -> float:
    return options.count(one) / len(options) if options else 0.0


def odds(score: Score) -> dict[str, float]:
    """How likely the generator makes such a piece in each genre."""
    drums, bass, chords, lead = (_bar(score, layer) for layer in ("drums", "bass", "chords", "lead"))
    style = _CELLS.get(tuple(sorted(lead)), "")
    result = {}
    for name, genre in GENRES.items():
        p = _tempo(name, score.mode, score.bpm)
        have = score.instruments
        if score.kit:
            p *= _share(genre.kits, score.kit) * sum(_rows(r) == drums for r in genre.drums) / max(1, len(genre.drums))
        elif genre.kits:
            p *= 0.11 / 0.52  # a piece with a kit is seldom asked for without it
        if "bass" in have:
            figures = [tuple(sorted(s for s, _, _ in BASS_FIGURES[f])) for f in genre.bass_figures]
            p *= _share(genre.basses, have["bass"]) * (figures.count(tuple(sorted(bass))) / max(1, len(figures)))
        elif genre.basses:
            p *= 1e-6
        chord, solo = have.get("chords", ""), have.get("lead", "")
        of_chords = _share(genre.chords, chord) if chord else float(not genre.chords)
        of_leads = _share(genre.leads, solo) if solo else 1.0
        any_chord = 1 / len(CHORD_PRESETS) if chord else 0.0
        any_lead = 1 / len(LEAD_PRESETS) if solo else 1.0
        p *= 0.88 * of_chords * of_leads + 0.06 * any_chord * of_leads + 0.06 * of_chords * any_lead
        if chord:
            known = [tuple(sorted(s for s, _ in CHORD_FIGURES[f])) for f in (genre.chord_figures or ("halves",))]
            p *= known.count(tuple(sorted(chords))) / len(known)
        if style:
            p *= genre.lead_style == style
        result[name] = p
    return result


def main() -> None:
    right, total, mistaken = 0.0, 0, collections.Counter[tuple[str, str]]()
    for seed in range(80_000_000, 80_003_000):
        score = compose(seed, 10, training=False)
        if score.shape not in {"full", "no drums"}:
            continue
        told = odds(score)
        total += 1
        best = max(told, key=lambda name: told[name])
        if told[score.genre] <= 0:
            mistaken[score.genre, "not explained"] += 1
        elif best == score.genre:
            right += 1
        else:
            mistaken[score.genre, best] += 1
    print(f"{total} pieces, the likeliest genre is the true one in {right / total:.1%}")
    for (true, told_as), count in mistaken.most_common(12):
        print(f"  {count:3d}  {true} taken for {told_as}")


if __name__ == "__main__":
    main()
