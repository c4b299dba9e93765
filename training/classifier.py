"""A small judge, trained on the corpus alone: genre, instruments, and drums-only / no drums / both.

It hears scores decoded by the codec and scores rendered naturally, in equal parts, with random level and noise.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.codec.build import build
from training.codec.layout import tokens
from training.corpus.captions import parts_of
from training.corpus.genres import GENRES
from training.corpus.instruments import KITS, PRESETS
from training.corpus.render import render
from training.corpus.score import Score, compose
from training.measure import describe

log = logging.getLogger(__name__)
SHAPES = ("drums only", "no drums", "drums and more")
PARTS = (*PRESETS, *KITS)
SECONDS = 6.0


def shape_of(score: Score) -> int:
    return 0 if score.shape == "drums" else 2 if score.kit else 1


@dataclass
class Judge:
    """The trained network with its input's mean and scale."""

    net: nn.Module
    mean: Tensor
    scale: Tensor

    @torch.no_grad()
    def __call__(self, clips: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of clips float32 [T] at 32 kHz: genres [N, 16], parts [N, 32] (positive: heard), shapes [N, 3]."""
        x = torch.from_numpy(np.stack([describe(c[: int(SECONDS * 32_000)]) for c in clips]))
        return _split(self.net((x - self.mean) / self.scale))


def _split(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    genre, parts, shape = out.split([len(GENRES), len(PARTS), len(SHAPES)], 1)
    return genre, parts, shape


def _network(inputs: int) -> nn.Module:
    outputs = len(GENRES) + len(PARTS) + len(SHAPES)
    return nn.Sequential(
        nn.Dropout(0.15),
        nn.Linear(inputs, 256),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(256, 256),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(256, outputs),
    )


def examples(seed: int, count: int, *, natural: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(features, genre, parts, shape, whether the genre can be told: more than one part plays)."""
    codec = build()
    rows = []
    for i in range(count):
        rng = np.random.default_rng(seed + i)
        score = compose(seed + i, SECONDS, training=False)
        if rng.random() < natural:
            clip = render(score, SECONDS, seed + i, effects=bool(rng.random() < 0.5)).mix.mean(0)
        else:
            with torch.no_grad():
                clip = codec.decode(torch.from_numpy(tokens(score)).long()[None])[0, 0].numpy()[: int(SECONDS * 32_000)]
        playing = parts_of(score)
        hears = [p in playing for p in PARTS]
        rows.append(
            (
                describe(clip),
                list(GENRES).index(score.genre),
                hears,
                shape_of(score),
                score.shape in {"full", "no drums"},
            )
        )
    x, genre, parts, shape, clear = zip(*rows, strict=True)
    return (
        torch.from_numpy(np.stack(x)),
        torch.tensor(genre),
        torch.tensor(parts).float(),
        torch.tensor(shape),
        torch.tensor(clear),
    )


def train(work: Path, count: int = 3000, minutes: float = 3.0) -> Judge:
    """Train on `count` clips, report on 300 others, and keep the judge at work/judge.pt."""
    store = work / "judge_clips.pt"
    data = list(torch.load(store, weights_only=True)) if store.exists() else []
    began = time.monotonic()
    while sum(len(d[0]) for d in data) < count:
        have = sum(len(d[0]) for d in data)
        data.append(examples(40_000_000 + have, min(250, count - have)))
        torch.save(data, store)
        log.info("judge: %d clips, %.0f s", have + 250, time.monotonic() - began)
    x, genre, parts, shape, clear = (torch.cat(column) for column in zip(*data, strict=True))
    mean, scale = x.mean(0), x.std(0) + 0.05
    x = (x - mean) / scale
    torch.manual_seed(0)
    net = _network(x.shape[1])
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    began, steps = time.monotonic(), 0
    while (share := (time.monotonic() - began) / (minutes * 60)) < 1 and steps < 6000:
        pick = torch.randint(len(x), (128,))
        noisy = x[pick] + 0.15 * torch.randn(128, x.shape[1])
        g, p, s = _split(net(noisy))
        loss = (functional.cross_entropy(g, genre[pick], reduction="none") * clear[pick]).mean()
        loss = (
            loss
            + 3 * functional.binary_cross_entropy_with_logits(p, parts[pick])
            + 0.5 * functional.cross_entropy(s, shape[pick])
        )
        optimiser.param_groups[0]["lr"] = 1e-3 * max(1e-3, 1 - max(share, steps / 6000))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    net.eval()
    torch.save({"net": net.state_dict(), "mean": mean, "scale": scale}, work / "judge.pt")
    judge = Judge(net, mean, scale)
    log.info("judge on corpus clips it has not heard: %s", report(judge))
    return judge


@torch.no_grad()
def report(judge: Judge, count: int = 300) -> dict[str, float]:
    """How often the judge is right on corpus clips, natural and decoded."""
    result = {}
    for name, natural in (("decoded", 0.0), ("natural", 1.0)):
        x, genre, parts, shape, clear = examples(60_000_000, count // 2, natural=natural)
        g, p, s = _split(judge.net((x - judge.mean) / judge.scale))
        result[f"genre, {name}"] = round(float((g.argmax(1) == genre)[clear].float().mean()), 3)
        result[f"part heard, {name}"] = round(float((p[parts > 0.5] > 0).float().mean()), 3)
        result[f"absent part heard, {name}"] = round(float((p[parts < 0.5] > 0).float().mean()), 3)
        result[f"shape, {name}"] = round(float((s.argmax(1) == shape).float().mean()), 3)
    return result


def load(work: Path) -> Judge:
    kept = torch.load(work / "judge.pt", weights_only=True)
    net = _network(len(kept["mean"]))
    net.load_state_dict(kept["net"])
    return Judge(net.eval(), kept["mean"], kept["scale"])
