"""The table: does the sound follow the prompt? Held-out prompts, measured on the sound alone.

Beside each figure stand its ceiling (the same measure on the corpus' own clips of those prompts), the shuffled-caption
baseline (the same clips measured against another clip's prompt) and a random one (corpus clips of other prompts).
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

from modules.musicgen.tiny.folder import load
from modules.musicgen.tiny.words import MODES
from training import classifier
from training.codec.layout import tokens
from training.corpus.captions import caption
from training.corpus.genres import GENRES
from training.corpus.render import render
from training.corpus.score import Score, compose
from training.measure import log_mel, scale_of, tempo_bpm, tempo_fits

log = logging.getLogger(__name__)
FIRST_SEED = 3_000_000_019
BATCH = 24


@dataclass
class Prompt:
    score: Score
    text: str
    russian: bool


def prompts(count: int) -> list[Prompt]:
    """Held-out captions that name everything, every third in Russian."""
    out = []
    for i in range(count):
        score = compose(FIRST_SEED + i, 10, training=False, genre=list(GENRES)[i % len(GENRES)])
        russian = i % 3 == 2
        text = caption(score, np.random.default_rng(i), full=True, language="ru" if russian else "en")
        out.append(Prompt(score, text, russian))
    return out


@torch.no_grad()
def generate(
    lm: Any,
    texts: Sequence[str | None],
    seconds: float,
    seed: int,
    prompt: torch.Tensor | None = None,
    cfg_coef: float = 3.0,
    top_k: int = 250,
) -> torch.Tensor:
    """Codes int64 [N, K, T] by audiocraft's own loop."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    torch.manual_seed(seed)
    conditions = [ConditioningAttributes(text={"description": t}) for t in texts]
    return lm.generate(
        prompt, conditions, max_gen_len=int(seconds * 50), use_sampling=True, top_k=top_k, cfg_coef=cfg_coef
    )


def _clips(
    lm: Any, codec: Any, texts: Sequence[str | None], seconds: float, cfg_coef: float
) -> tuple[list[np.ndarray], torch.Tensor]:
    codes = []
    for i in range(0, len(texts), BATCH):
        began = time.monotonic()
        codes.append(generate(lm, texts[i : i + BATCH], seconds, 100 + i, cfg_coef=cfg_coef))
        log.info("generated %d of %d, %.0f s", i + len(codes[-1]), len(texts), time.monotonic() - began)
    joined = torch.cat(codes)
    with torch.no_grad():
        return [codec.decode(c[None])[0, 0].numpy() for c in joined], joined


def alive(clip: np.ndarray) -> bool:
    """Neither silent, nor stuck on one sound, nor clipped, in any third of the clip."""
    thirds = np.array_split(clip, 3)
    mel = log_mel(clip)
    moving = np.abs(np.diff(mel, axis=0)).mean() > 0.01
    return bool(
        min(np.sqrt((t**2).mean()) for t in thirds) > 0.004 and moving and (np.abs(clip) > 0.999).mean() < 0.002
    )


def _rate(right: Callable[[np.ndarray, Prompt], bool], clips: Sequence[np.ndarray], wanted: Sequence[Prompt]) -> float:
    return (
        round(float(np.mean([right(c, p) for c, p in zip(clips, wanted, strict=True)])), 3) if clips else float("nan")
    )


def _key_right(clip: np.ndarray, prompt: Prompt) -> bool:
    return scale_of(clip) == (prompt.score.root - MODES[prompt.score.mode]) % 12


def _row(
    name: str,
    keep: Callable[[Prompt], bool],
    right: Callable[[np.ndarray, Prompt], bool],
    clips: list[np.ndarray],
    asked: list[Prompt],
    corpus: list[np.ndarray],
) -> dict[str, Any]:
    """One line of the table. The baselines move the prompts round among the clips that the line is about."""
    chosen = [i for i, p in enumerate(asked) if keep(p)]
    mine, real, wanted = [clips[i] for i in chosen], [corpus[i] for i in chosen], [asked[i] for i in chosen]
    turns = [max(1, len(chosen) * k // 5) for k in (1, 2, 3)]

    def moved(sounds: list[np.ndarray]) -> float:
        return (
            round(float(np.mean([_rate(right, sounds, wanted[t:] + wanted[:t]) for t in turns])), 3)
            if chosen
            else float("nan")
        )

    def part(russian: bool) -> float:
        some = [(c, p) for c, p in zip(mine, wanted, strict=True) if p.russian == russian]
        return _rate(right, [c for c, _ in some], [p for _, p in some])

    return {
        "what": name,
        "clips": len(chosen),
        "figure": _rate(right, mine, wanted),
        "corpus": _rate(right, real, wanted),
        "shuffled": moved(mine),
        "random": moved(real),
        "english": part(False),
        "russian": part(True),
    }


def follow(
    lm: Any, codec: Any, judge: classifier.Judge, count: int, seconds: float, cfg_coef: float, sheet: Path | None = None
) -> list[dict[str, Any]]:
    asked = prompts(count)
    clips, _ = _clips(lm, codec, [p.text for p in asked], seconds, cfg_coef)
    with torch.no_grad():
        corpus = [
            codec.decode(torch.from_numpy(tokens(p.score)).long()[None])[0, 0].numpy()[: int(seconds * 32_000)]
            for p in asked
        ]
    heard = {id(c): tuple(v[0] for v in judge([c])) for c in [*clips, *corpus]}
    parts = list(classifier.PARTS)

    def shape_right(clip: np.ndarray, p: Prompt) -> bool:
        return int(heard[id(clip)][2].argmax()) == classifier.shape_of(p.score)

    def genre_right(clip: np.ndarray, p: Prompt) -> bool:
        return list(GENRES)[int(heard[id(clip)][0].argmax())] == p.score.genre

    def parts_heard(clip: np.ndarray, p: Prompt) -> bool:
        named = [*p.score.instruments.values()] + ([p.score.kit] if p.score.kit else [])
        return float(np.mean([heard[id(clip)][1][parts.index(n)] > 0 for n in named])) > 0.5

    rows = [
        _row("alive (not silent, stuck or clipped)", lambda _: True, lambda c, _: alive(c), clips, asked, corpus),
        _row("drums only / no drums / both", lambda _: True, shape_right, clips, asked, corpus),
        _row("drums only or a solo", lambda p: p.score.shape in {"drums", "solo"}, shape_right, clips, asked, corpus),
        _row("tempo within 4 %", lambda _: True, lambda c, p: tempo_fits(c, p.score.bpm), clips, asked, corpus),
        _row(
            "tempo within 4 %, with drums",
            lambda p: bool(p.score.kit),
            lambda c, p: tempo_fits(c, p.score.bpm),
            clips,
            asked,
            corpus,
        ),
        _row("genre (full pieces)", lambda p: p.score.shape in {"full", "no drums"}, genre_right, clips, asked, corpus),
        _row("instruments named are heard (most of them)", lambda _: True, parts_heard, clips, asked, corpus),
        _row("key or its relative", lambda p: p.score.shape != "drums", _key_right, clips, asked, corpus),
    ]
    if sheet:
        sheets(clips, corpus, asked, sheet)
    return rows


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


def continuation(lm: Any, codec: Any, count: int, cfg_coef: float) -> dict[str, float]:
    """A corpus piece's first five seconds, continued by five: level within 3 dB, tempo within 4 %, the same scale."""
    asked = [p for p in prompts(count * 3) if p.score.shape == "full"][:count]
    before = torch.from_numpy(np.stack([tokens(p.score)[:, :250] for p in asked])).long()
    codes = generate(lm, [p.text for p in asked], 10, 7, before, cfg_coef)
    level, tempo, key = [], [], []
    for row in codes:
        with torch.no_grad():
            sound = codec.decode(row[None])[0, 0].numpy()
        first, second = sound[: 5 * 32_000], sound[5 * 32_000 :]
        level.append(abs(20 * np.log10((np.sqrt((second**2).mean()) + 1e-6) / (np.sqrt((first**2).mean()) + 1e-6))) < 3)
        tempo.append(tempo_fits(second, tempo_bpm(first)))
        key.append(scale_of(second) == scale_of(first))
    return {
        "clips": len(asked),
        "level": round(float(np.mean(level)), 3),
        "tempo": round(float(np.mean(tempo)), 3),
        "key": round(float(np.mean(key)), 3),
    }


def long_clips(lm: Any, codec: Any, count: int, cfg_coef: float, seconds: int = 30) -> dict[str, float]:
    """Clips longer than the window, made as the program makes them: windows that keep four seconds of context."""
    asked = prompts(count)
    window, context = int(lm.cfg.dataset.segment_duration * 50), 200
    codes = generate(lm, [p.text for p in asked], window / 50, 11, cfg_coef=cfg_coef)
    while codes.shape[-1] < seconds * 50:
        more = generate(lm, [p.text for p in asked], window / 50, 12, codes[..., -context:], cfg_coef)
        codes = torch.cat([codes, more[..., context:]], -1)
    with torch.no_grad():
        clips = [codec.decode(c[None])[0, 0].numpy()[: seconds * 32_000] for c in codes]
    late = [c[20 * 32_000 :] for c in clips]
    drums = [tempo_fits(c, p.score.bpm) for c, p in zip(late, asked, strict=True) if p.score.kit]
    result = {"clips": len(asked), "alive": float(np.mean([alive(c) for c in clips]))}
    return {**result, "tempo of the last ten seconds, with drums": round(float(np.mean(drums)), 3)}


@torch.no_grad()
def codec_figures(codec: Any, count: int, seconds: float = 4.0) -> dict[str, Any]:
    """Encoding and decoding held-out clips: log-mel distance, SI-SDR, share of codes used; natural ones and its own."""
    result: dict[str, Any] = {"clips": count}
    for name in ("own", "natural dry", "natural"):
        mel, sdr = [], []
        for i in range(count):
            score = compose(FIRST_SEED + 900 + i, seconds, training=False)
            if name == "own":
                sound = codec.decode(torch.from_numpy(tokens(score)).long()[None])[0, 0].numpy()[
                    : int(seconds * 32_000)
                ]
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


def table(rows: list[dict[str, Any]]) -> str:
    head = ["what", "clips", "figure", "corpus", "shuffled", "random", "english", "russian"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(r[h]) for h in head) + " |" for r in rows)])


def run(args: argparse.Namespace) -> None:
    """Print the table for models/tiny and keep everything in work/figures.json."""
    judge_there = (args.work / "judge.pt").exists() and args.stage != "classifier"
    judge = classifier.load(args.work) if judge_there else classifier.train(args.work, minutes=min(args.minutes, 3))
    if args.stage == "classifier":
        return
    from training.lm import validate

    lm, codec = load(args.out / "tiny", args.device)
    figures: dict[str, Any] = {"judge": classifier.report(judge, min(args.prompts, 60)), "loss": validate(lm, 24)}
    print(json.dumps(figures), flush=True)
    lm.eval()
    rows = follow(lm, codec, judge, args.prompts, args.seconds, 3.0, args.work / "sheet")
    print(table(rows), flush=True)
    figures["rows"] = rows
    (args.work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    figures["30 s"] = long_clips(lm, codec, max(8, args.prompts // 8), 3.0)
    print(json.dumps(figures["30 s"]), flush=True)
    figures["continuation"] = continuation(lm, codec, max(8, args.prompts // 8), 3.0)
    figures["codec"] = codec_figures(codec, max(6, args.prompts // 10))
    print(json.dumps({k: figures[k] for k in ("continuation", "codec")}), flush=True)
    (args.work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
