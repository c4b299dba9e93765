"""The table: does the sound follow the prompt? Held-out pieces, each asked for in English and in Russian, played by the
program's own engine and measured on the sound.

Beside each figure stand its ceiling (the same measure on the corpus' own clips of those prompts), the shuffled-caption
baseline (the same clips measured against other clips' prompts) and a random one (corpus clips of other prompts).
A figure that does not clearly beat the larger baseline counts as zero.
"""

from __future__ import annotations

import argparse
import json
import logging
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modules.musicgen.engine import Codes
from modules.musicgen.tiny.folder import load
from modules.musicgen.tiny.words import understand
from training import classifier, continuing, keys
from training.codec.layout import tokens
from training.corpus.captions import caption
from training.corpus.genres import GENRES
from training.corpus.instruments import BASSES, KITS
from training.corpus.render import render
from training.corpus.score import Score, compose
from training.measure import log_mel, same_tempo, tempo_bpm
from training.notes import parts_played, pitch_classes, share_inside
from training.player import Player

log = logging.getLogger(__name__)
FIRST_SEED = 3_000_000_019
KEEP_EVERY = 20


@dataclass
class Prompt:
    """number: of the piece; its two prompts share it, and the seed of the music."""

    number: int
    score: Score
    text: str
    russian: bool


def prompts(count: int) -> list[Prompt]:
    """Held-out captions that name everything: each piece in English, then in Russian. `count` prompts in all."""
    out = []
    for number in range(count // 2):
        score = compose(FIRST_SEED + number, 10, training=False, genre=list(GENRES)[number % len(GENRES)])
        for language in ("en", "ru"):
            text = caption(score, np.random.default_rng(number), full=True, language=language)
            out.append(Prompt(number, score, text, language == "ru"))
    return out


def played(player: Player, asked: Sequence[Prompt], seconds: float, store: Path) -> list[Codes]:
    """Frames int64 [K, T] of each prompt, kept in `store` as they are made: a run goes on where one was ended."""
    kept = dict(np.load(store)) if store.exists() else {}
    began, made = time.monotonic(), 0
    for prompt in asked:
        name = f"{seconds:g} {prompt.number} {prompt.text}"
        if name in kept:
            continue
        kept[name] = player.play([prompt.text], seconds, 100 + prompt.number)[0].astype(np.int16)
        made += 1
        if made % KEEP_EVERY == 0:
            np.savez(store, **kept)
            log.info("played %d clips of %g s, %.0f s", made, seconds, time.monotonic() - began)
    np.savez(store, **kept)
    return [kept[f"{seconds:g} {p.number} {p.text}"].astype(np.int64) for p in asked]


# ------------------------------------------------------------------------------------------ what is heard of a clip
def alive(clip: np.ndarray) -> bool:
    """Neither silent, nor stuck on one sound, nor clipped, in any third of the clip."""
    thirds = np.array_split(clip, 3)
    mel = log_mel(clip)
    moving = np.abs(np.diff(mel, axis=0)).mean() > 0.01
    return bool(
        min(np.sqrt((t**2).mean()) for t in thirds) > 0.004 and moving and (np.abs(clip) > 0.999).mean() < 0.002
    )


@dataclass
class Heard:
    """notes: frames of each pitch class [12]; played: the parts. Both come from the codes, not from the sound."""

    alive: bool
    tempo_bpm: float
    key: int
    genre: str
    parts: frozenset[str]
    shape: int
    notes: np.ndarray
    played: frozenset[str]


def listen(clips: Sequence[np.ndarray], codes: Sequence[Codes], judge: classifier.Judge, ear: keys.Ear) -> list[Heard]:
    out = []
    for clip, each, key in zip(clips, codes, ear.keys(clips), strict=True):
        genre, parts, shape = (scores[0] for scores in judge([clip]))
        named = frozenset(name for name, score in zip(classifier.PARTS, parts, strict=True) if score > 0)
        told = list(GENRES)[int(genre.argmax())]
        known = pitch_classes(each), parts_played(each)
        out.append(Heard(alive(clip), tempo_bpm(clip), key, told, named, int(shape.argmax()), *known))
    return out


# --------------------------------------------------------------------------------------------------------- the table
Right = Callable[[Heard, Prompt], float]


def wanted_parts(text: str) -> list[frozenset[str]]:
    """What a prompt asks to be played: one set a part, any of which will do ("bass" is any bass)."""
    general = {"drums": frozenset(KITS), "bass": frozenset(BASSES)}
    said = understand(text)
    return [general.get(part, frozenset({part})) for part in (*said.parts("with"), *said.parts("only"))]


def asked_parts(heard: frozenset[str], text: str) -> float:
    """The share of the parts asked for that are heard."""
    wanted = wanted_parts(text)
    return sum(bool(one & heard) for one in wanted) / len(wanted)


def nothing_else(heard: frozenset[str], text: str) -> bool:
    return heard <= frozenset[str]().union(*wanted_parts(text))


def _told_apart(heard: Heard, p: Prompt) -> float:
    """A solo is a solo when nothing drums and one part alone is heard."""
    return heard.shape == classifier.shape_of(p.score) and (p.score.shape != "solo" or len(heard.parts) == 1)


def _pitched(p: Prompt) -> bool:
    return p.score.shape != "drums"


ROWS: tuple[tuple[str, Callable[[Prompt], bool], Right], ...] = (
    ("neither silent, stuck nor clipped", lambda _: True, lambda h, _: h.alive),
    ("drums only, solo, no drums: told apart", lambda p: p.score.shape in {"drums", "solo", "no drums"}, _told_apart),
    ("drums only / no drums / drums and more", lambda _: True, lambda h, p: h.shape == classifier.shape_of(p.score)),
    ("tempo within 4 %", lambda _: True, lambda h, p: same_tempo(h.tempo_bpm, p.score.bpm)),
    ("tempo within 4 %, with drums", lambda p: bool(p.score.kit), lambda h, p: same_tempo(h.tempo_bpm, p.score.bpm)),
    ("key or its relative", _pitched, lambda h, p: h.key == keys.key_of(p.score)),
    (
        "share of the notes inside the key, by the codes",
        _pitched,
        lambda h, p: share_inside(h.notes, keys.key_of(p.score)),
    ),
    ("genre", lambda p: p.score.shape in {"full", "no drums"}, lambda h, p: h.genre == p.score.genre),
    ("instruments named that are heard", lambda _: True, lambda h, p: asked_parts(h.parts, p.text)),
    ("instruments named that are played, by the codes", lambda _: True, lambda h, p: asked_parts(h.played, p.text)),
    ("nothing else is played, by the codes", lambda _: True, lambda h, p: nothing_else(h.played, p.text)),
)


def _rate(right: Right, heard: Sequence[Heard], wanted: Sequence[Prompt]) -> float:
    return float(np.mean([right(h, p) for h, p in zip(heard, wanted, strict=True)])) if heard else float("nan")


def _row(
    name: str,
    keep: Callable[[Prompt], bool],
    right: Right,
    heard: list[Heard],
    asked: list[Prompt],
    corpus: list[Heard],
) -> dict[str, Any]:
    """One line of the table. The baselines move the prompts round among the clips that the line is about."""
    chosen = [i for i, p in enumerate(asked) if keep(p)]
    mine, real, wanted = [heard[i] for i in chosen], [corpus[i] for i in chosen], [asked[i] for i in chosen]
    turns = [max(1, len(chosen) * k // 7) for k in (1, 2, 3, 4, 5)]

    def moved(sounds: list[Heard]) -> float:
        return (
            float(np.mean([_rate(right, sounds, wanted[t:] + wanted[:t]) for t in turns])) if chosen else float("nan")
        )

    def part(*, russian: bool) -> list[float]:
        return [float(right(h, p)) for h, p in zip(mine, wanted, strict=True) if p.russian == russian]

    english, russian = part(russian=False), part(russian=True)
    gap = np.array(russian) - np.array(english)
    figures = {
        "figure": _rate(right, mine, wanted),
        "corpus": _rate(right, real, wanted),
        "shuffled": moved(mine),
        "random": moved(real),
        "english": float(np.mean(english)) if english else float("nan"),
        "russian": float(np.mean(russian)) if russian else float("nan"),
        "+-": float(2 * gap.std() / np.sqrt(len(gap))) if len(gap) else float("nan"),
    }
    return {"what": name, "clips": len(chosen), **{k: round(v, 3) for k, v in figures.items()}}


def follow(
    player: Player, judge: classifier.Judge, ear: keys.Ear, count: int, seconds: float, work: Path
) -> list[dict[str, Any]]:
    asked = prompts(count)
    codes = played(player, asked, seconds, work / "played.npz")
    clips = player.sound(codes)
    real_codes = [tokens(p.score)[:, : int(seconds * 50)].astype(np.int64) for p in asked[::2]]
    real = player.sound(real_codes)
    log.info("listening to %d clips and %d of the corpus", len(clips), len(real))
    heard = listen(clips, codes, judge, ear)
    corpus = [each for each in listen(real, real_codes, judge, ear) for _ in range(2)]
    sheets(clips[::2], real, asked[::2], work / "sheet")
    return [_row(name, keep, right, heard, asked, corpus) for name, keep, right in ROWS]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["what", "clips", "figure", "corpus", "shuffled", "random", "english", "russian", "+-"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(r[h]) for h in head) + " |" for r in rows)])


def sheets(clips: list[np.ndarray], corpus: list[np.ndarray], asked: list[Prompt], folder: Path) -> None:
    """The first 16 clips as sounds and, in one picture, as spectrograms: left generated, right the corpus' own."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(min(16, len(clips))):
        soundfile.write(folder / f"{i:02d}.wav", clips[i], 32_000)
        both = [log_mel(c)[::2].T[::-1] for c in (clips[i], corpus[i])]
        rows.append(np.pad(np.concatenate(both, 1), ((0, 6), (0, 6)), constant_values=-4.6))
    picture = np.concatenate(rows)
    _write_png(folder / "sheet.png", np.clip((picture + 4.6) * 28, 0, 255).astype(np.uint8))
    (folder / "prompts.txt").write_text("\n".join(p.text for p in asked[:16]), encoding="utf-8")


def _write_png(path: Path, grey: np.ndarray) -> None:
    """A grey picture uint8 [H, W] (PNG, ISO 15948)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = grey.shape
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def long_clips(player: Player, count: int, work: Path, seconds: float = 30) -> dict[str, float]:
    """Clips longer than the model's window, which the program makes window after window."""
    asked = prompts(2 * count)[::2]
    clips = player.sound(played(player, asked, seconds, work / "played.npz"))
    late = [
        same_tempo(tempo_bpm(c[20 * 32_000 :]), p.score.bpm) for c, p in zip(clips, asked, strict=True) if p.score.kit
    ]
    alive_share = round(float(np.mean([alive(c) for c in clips])), 3)
    return {
        "clips": count,
        "alive": alive_share,
        "tempo of the last ten seconds, with drums": round(float(np.mean(late)), 3),
    }


@torch.no_grad()
def codec_figures(codec: Any, count: int, seconds: float = 4.0) -> dict[str, Any]:
    """Encoding and decoding held-out clips: log-mel distance, SI-SDR, share of codes used; natural ones and its own."""
    result: dict[str, Any] = {"clips": count}
    for name in ("own", "natural dry", "natural"):
        mel, sdr = [], []
        for i in range(count):
            score = compose(FIRST_SEED + 900 + i, seconds, training=False)
            if name == "own":
                sound = (
                    codec.decode(torch.from_numpy(tokens(score)).long()[None])[0]
                    .mean(0)
                    .numpy()[: int(seconds * 32_000)]
                )
            else:
                sound = render(score, seconds, i, effects=name == "natural").mix.mean(0)
            again = codec(torch.from_numpy(sound)[None, None]).x[0, 0].numpy()
            mel.append(np.abs(log_mel(again) - log_mel(sound)).mean())
            scale = float(again @ sound / (sound @ sound + 1e-9))
            sdr.append(
                10 * np.log10(((scale * sound) ** 2).sum() / (((again - scale * sound) ** 2).sum() + 1e-9) + 1e-9)
            )
        result[name] = {
            "log-mel distance": round(float(np.mean(mel)), 3),
            "SI-SDR dB, median": round(float(np.median(sdr)), 1),
        }
    used: list[set[int]] = [set() for _ in range(4)]
    for seed in range(1500):
        codes = tokens(compose(FIRST_SEED + seed, 10, training=False))
        for k in range(4):
            used[k] |= set(np.unique(codes[k]).tolist())
    result["codes used"] = [round(len(u) / codec.cardinality, 2) for u in used]
    return result


def run(args: argparse.Namespace) -> None:
    """Print the table for models/tiny and keep everything in work/figures.json."""
    if args.stage == "classifier":
        classifier.train(args.work)
        keys.train(args.work)
        return
    judge = classifier.load(args.work) if (args.work / "judge.pt").exists() else classifier.train(args.work)
    ear = keys.load(args.work) if (args.work / "ear.pt").exists() else keys.train(args.work)
    from training.lm import validate

    folder = args.out / "tiny"
    lm, codec = load(folder, args.device)
    figures: dict[str, Any] = {"judge": classifier.report(judge), "ear": keys.report(ear), "loss": validate(lm, 24)}
    player = Player(folder, args.work, args.threads)

    def told(name: str, found: Any) -> None:
        figures[name] = found
        log.info("%s: %s", name, json.dumps(found))
        (args.work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")

    rows = follow(player, judge, ear, args.prompts, args.seconds, args.work)
    told("rows", rows)
    log.info("the table:\n%s", table(rows))
    some = max(8, args.prompts // 5)
    told("30 s", long_clips(player, max(4, some // 2), args.work))
    told("continuation", continuing.figures(player, ear, some))
    told("continuation, genre alone in the prompt", continuing.figures(player, ear, some, named=False))
    told("codec", codec_figures(codec, max(6, args.prompts // 20)))
    player.close()
