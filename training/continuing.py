"""Does music go on as it was? Held-out corpus pieces, continued by the program's engine, measured after the seam.

The piece's own next seconds are the ceiling. The same continuations against other pieces' beginnings are the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.musicgen.engine import Codes
from training import keys
from training.codec.layout import tokens
from training.corpus.captions import caption
from training.corpus.score import Score, compose
from training.measure import same_tempo, tempo_bpm
from training.notes import pitch_classes, share_inside
from training.player import Player

FIRST_SEED = 3_100_000_019
LEVEL_DB = 3.0
INSIDE = 0.95


@dataclass
class Part:
    """Some seconds of music as measured: `key` by the ear, `notes` known from the codes."""

    level_db: float
    tempo_bpm: float
    key: int
    notes: np.ndarray


def pieces(count: int, seconds: float) -> list[Score]:
    """Held-out full pieces."""
    found: list[Score] = []
    seed = FIRST_SEED
    while len(found) < count:
        score = compose(seed, seconds, training=False)
        seed += 1
        if score.shape == "full":
            found.append(score)
    return found


def _measure(sound: np.ndarray, codes: Codes, ear: keys.Ear, *, opening: bool) -> Part:
    level = 20 * float(np.log10(np.sqrt((sound**2).mean()) + 1e-6))
    return Part(level, tempo_bpm(sound), ear.keys([sound], opening=opening)[0], pitch_classes(codes))


def _carried(firsts: Sequence[Part], seconds: Sequence[Part], scores: Sequence[Score]) -> dict[str, float]:
    """Shares of the pieces whose second part fits the first (and the piece's key)."""
    rows = []
    for first, second, score in zip(firsts, seconds, scores, strict=True):
        key = keys.key_of(score)
        level = abs(second.level_db - first.level_db) < LEVEL_DB
        tempo = same_tempo(second.tempo_bpm, first.tempo_bpm)
        inside = share_inside(second.notes, key)
        rows.append((level, tempo, second.key == key, inside > INSIDE, level and tempo and inside > INSIDE, inside))
    names = ("level", "tempo", "key heard", "notes stay in the key", "all three", "share of notes inside")
    return {name: round(float(np.mean(column)), 3) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def figures(
    player: Player,
    ear: keys.Ear,
    count: int,
    before_s: float = 5,
    after_s: float = 5,
    *,
    named: bool = True,
    **sampling: Any,
) -> dict[str, Any]:
    """The piece's first `before_s`, continued by `after_s`.

    named: with the piece's whole caption, as the program continues a track; otherwise with its genre alone, so that
        tempo and key can come from the sound only.
    Returns:
        what carried over, by the model, in the corpus itself and with the beginnings moved round.
    """
    scores = pieces(count, before_s + after_s)
    texts = [
        caption(score, np.random.default_rng(i), full=True, language="en") if named else score.genre
        for i, score in enumerate(scores)
    ]
    seam, end = int(before_s * 50), int((before_s + after_s) * 50)
    real = [tokens(score)[:, :end].astype(np.int64) for score in scores]
    before = [codes[:, :seam] for codes in real]
    fresh = [
        player.play([text], after_s, 700 + i, [first], **sampling)[0]
        for i, (text, first) in enumerate(zip(texts, before, strict=True))
    ]

    def after(codes: Sequence[Codes]) -> list[Part]:
        """The part after the seam, sounding as it does in the whole."""
        whole = [np.concatenate([first, each], 1) for first, each in zip(before, codes, strict=True)]
        sounds = player.sound(whole)
        return [_measure(s[seam * 640 :], c, ear, opening=False) for s, c in zip(sounds, codes, strict=True)]

    firsts = [_measure(s, c, ear, opening=True) for s, c in zip(player.sound(before), before, strict=True)]
    model, corpus = after(fresh), after([codes[:, seam:] for codes in real])
    turn = max(1, count // 3)
    return {
        "clips": count,
        "before, after": [before_s, after_s],
        "model": _carried(firsts, model, scores),
        "corpus": _carried(firsts, corpus, scores),
        "shuffled": _carried(firsts[turn:] + firsts[:turn], model, scores[turn:] + scores[:turn]),
    }
