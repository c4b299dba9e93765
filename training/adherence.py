"""Does the music follow an audio prompt? Held-out prompts, the melodies of other held-out pieces, the program's loop.

The truth is the reference's own score. Beside each figure stands the same with another reference's score (shuffled).
The last line has no reference: what chance and habit give, and what the prompt's own figures are without steering.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from typing import Any

import numpy as np

from modules.audio import Clip
from modules.musicgen.engine import Codes
from modules.musicgen.melody import hear
from modules.musicgen.tiny.folder import load
from modules.musicgen.tiny.steering import CHORDS, LEAD
from training.codec.layout import PULSE_BASE
from training.corpus.instruments import SAMPLE_RATE_HZ
from training.corpus.render import layer_audio
from training.corpus.score import Score, compose
from training.evaluate import FIRST_SEED, Prompt, alive, prompts
from training.measure import same_tempo, tempo_bpm
from training.notes import parts_played
from training.player import Player

log = logging.getLogger(__name__)
SECONDS, FRAMES = 10.0, 500
REFERENCES = {
    "lead": ("lead",),
    "lead and chords": ("lead", "chords"),
    "everything": ("drums", "bass", "chords", "lead"),
}


def references(count: int) -> list[Score]:
    """Held-out pieces with chords and a lead that plays."""
    found: list[Score] = []
    seed = FIRST_SEED + 50_000
    while len(found) < count:
        score, seed = compose(seed, SECONDS, training=False), seed + 1
        if "chords" in score.instruments and len(score.notes.get("lead", ())) > 8:
            found.append(score)
    return found


def sound(score: Score, layers: tuple[str, ...]) -> Clip:
    there = [layer for layer in layers if layer in score.instruments or (layer == "drums" and score.kit)]
    mixed = np.sum([layer_audio(score, layer, int(SECONDS * SAMPLE_RATE_HZ)) for layer in there], axis=0)
    return Clip(mixed[None].astype(np.float32), SAMPLE_RATE_HZ)


def lead_of(score: Score) -> np.ndarray:
    """MIDI notes of the score's lead, -1 where it rests: int [FRAMES]."""
    notes = np.full(score.frames, -1)
    for note in score.notes["lead"]:
        notes[note.start : note.start + note.frames] = note.pitches[0]
    return notes[:FRAMES]


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the truth's notes, by frames, at which the pitch class found is theirs; -1 is a rest."""
    sounding = truth >= 0
    return float(((found % 12 == truth % 12) & (found >= 0))[sounding].mean())


def prompt_figures(codes: Codes, clip: np.ndarray, prompt: Prompt) -> dict[str, float]:
    """What the prompt asks for and is not the melody's business."""
    kit, asked = bool(prompt.score.kit), prompt.score.instruments
    right = same_tempo(tempo_bpm(clip), prompt.score.bpm)
    layers = [bool((codes[row] > 0).mean() > 0.2) == (name in asked) for row, name in ((1, "bass"), (2, "chords"))]
    named = {*asked.values(), prompt.score.kit} - {""}
    figures = {
        "alive": alive(clip),
        "drums as asked": bool(((codes[0] > 0) & (codes[0] < PULSE_BASE)).mean() > 0.3) == kit,
        "bass, chords as asked": float(np.mean(layers)),
        "parts named play": len(named & parts_played(codes)) / len(named),
        "tempo": right,
    }
    return {name: float(value) for name, value in (figures | ({"tempo, with drums": right} if kit else {})).items()}


def figures(player: Player, codec: Any, count: int) -> dict[str, dict[str, float]]:
    """A line for each kind of reference, the last without any."""
    asked, given = prompts(2 * count)[::2], references(count)
    classes = codec.follower().classes
    lead_class = np.where(classes[LEAD].any(1), classes[LEAD].argmax(1), -1)
    lines: dict[str, dict[str, float]] = {}
    for kind, layers in (*REFERENCES.items(), ("none", ())):
        seen: dict[str, list[float]] = defaultdict(list)
        for number, (prompt, reference) in enumerate(zip(asked, given, strict=True)):
            melody = sound(reference, layers) if layers else None
            codes = player.play([prompt.text], SECONDS, 100 + number, melody=melody)[0]
            clip = player.sound([codes])[0]
            truth, other = lead_of(reference), lead_of(given[(number + 5) % count])
            heard, lead = hear(Clip(clip[None], SAMPLE_RATE_HZ), codec.frame_rate).notes[:FRAMES], lead_class[codes[3]]
            both = (codes[CHORDS] > 0) & (lead >= 0)
            found = {
                "lead": agreement(lead, truth), "lead, shuffled": agreement(lead, other),
                "heard": agreement(heard, truth), "heard, shuffled": agreement(heard, other),
                **({"lead in the chord": classes[CHORDS][codes[CHORDS], lead][both].mean()} if both.any() else {}),
                **prompt_figures(codes, clip, prompt),
            }  # fmt: skip
            for name, value in found.items():
                seen[name].append(float(value))
        lines[kind] = {name: round(float(np.mean(values)), 3) for name, values in seen.items()}
        log.info("%s: %s", kind, lines[kind])
    return lines


def run(args: argparse.Namespace) -> None:
    """Print the lines for models/tiny and keep them in work/melody.json."""
    folder = args.out / "tiny"
    player = Player(folder, args.work, args.threads)
    lines = figures(player, load(folder, "cpu")[1], args.prompts)
    player.close()
    (args.work / "melody.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")
    names = list(next(iter(lines.values())))
    head = ["| reference | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    rows = [
        f"| {kind} | " + " | ".join(str(line.get(name, "")) for name in names) + " |" for kind, line in lines.items()
    ]
    log.info("the table:\n%s", "\n".join([*head, *rows]))
