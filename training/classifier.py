"""A small judge, trained on the corpus alone: genre, instruments, and drums-only / no drums / both.

It hears ten seconds: scores decoded by the codec (four of five) and scores rendered naturally, with or without effects.
A convolutional network looks at two spectrograms, a short window for time and a long one for pitch; what `describe`
says of the rhythm and the levels joins it before the last layers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.codec.build import build
from training.codec.layout import tokens
from training.corpus.genres import GENRES
from training.corpus.instruments import KITS, PRESETS
from training.corpus.render import render
from training.corpus.score import LAYERS, Score, compose
from training.measure import describe, pictures

log = logging.getLogger(__name__)
SHAPES = ("drums only", "no drums", "drums and more")
PARTS = (*PRESETS, *KITS)
SECONDS = 10.0
SHARD = 500
AUDIBLE_FRAMES = 25  # of the clip's 500: a part that enters only in the last moment is not asked for
NATURAL = 0.2
_LOW, _STEP = -4.7, 1 / 24  # pictures are kept as bytes: logarithm = _LOW + byte * _STEP


def shape_of(score: Score) -> int:
    return 0 if score.shape == "drums" else 2 if score.kit else 1


def audible(score: Score, codes: np.ndarray) -> list[bool]:
    """Which of PARTS sound in the codes [4, T]."""
    playing = {**score.instruments, **({"drums": score.kit} if score.kit else {})}
    heard = {part for layer, part in playing.items() if (codes[LAYERS.index(layer)] > 0).sum() >= AUDIBLE_FRAMES}
    return [part in heard for part in PARTS]


def hear(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the judge is given of a clip at 32 kHz: pictures uint8 [2, 500, 80] and a description float32 [N]."""
    samples = int(SECONDS * 32_000)
    clip = np.pad(clip[:samples], (0, max(0, samples - len(clip))))
    picture = np.clip((pictures(clip)[:, :500] - _LOW) / _STEP, 0, 255).astype(np.uint8)
    return picture, describe(clip)


class Network(nn.Module):
    """Pictures float [B, 2, T, 80] and descriptions float [B, inputs] -> logits [B, genres + parts + shapes]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.AvgPool2d((2, 1)),
            _block(2, 16, 5, (2, 2)),
            _block(16, 32, 3, (1, 2)),
            _block(32, 40, 3, (2, 2)),
            _block(40, 64, 3, (1, 2)),
        )
        self.follow = nn.Sequential(nn.Conv1d(320, 96, 1), nn.ReLU(), nn.Conv1d(96, 128, 3, padding=1), nn.ReLU())
        self.read = nn.Sequential(nn.Linear(inputs, 192), nn.GELU(), nn.Dropout(0.3))
        outputs = len(GENRES) + len(PARTS) + len(SHAPES)
        self.conclude = nn.Sequential(
            nn.Linear(3 * 128 + 192, 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, outputs)
        )

    def forward(self, picture: Tensor, description: Tensor) -> Tensor:
        seen = self.look(picture).permute(0, 1, 3, 2).flatten(1, 2)
        course = self.follow(seen)
        pooled = [course.mean(2), course.amax(2), course.std(2)]
        result: Tensor = self.conclude(torch.cat([*pooled, self.read(description)], 1))
        return result


def _block(inputs: int, outputs: int, size: int, stride: tuple[int, int]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@dataclass
class Judge:
    """The trained network with its descriptions' mean and scale."""

    net: Network
    mean: Tensor
    scale: Tensor

    @torch.no_grad()
    def __call__(self, clips: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of clips float32 [T] at 32 kHz: genres [N, 16], parts [N, 32] (positive: heard), shapes [N, 3]."""
        picture, description = (torch.from_numpy(np.stack(column)) for column in zip(*map(hear, clips), strict=True))
        return self.weigh(picture, description)

    @torch.no_grad()
    def weigh(self, picture: Tensor, description: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for what `hear` gave."""
        rows = [
            self.net(_floats(picture[i : i + 64]), (description[i : i + 64] - self.mean) / self.scale)
            for i in range(0, len(picture), 64)
        ]
        return _split(torch.cat(rows))


def _split(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    genre, parts, shape = out.split([len(GENRES), len(PARTS), len(SHAPES)], 1)
    return genre, parts, shape


def _floats(picture: Tensor) -> Tensor:
    return picture.float() / 64 - 1


@dataclass
class Examples:
    """Clips as the judge hears them, and what is true of each; `clear` where more than one part tells the genre."""

    picture: Tensor
    description: Tensor
    genre: Tensor
    parts: Tensor
    shape: Tensor
    clear: Tensor

    def __len__(self) -> int:
        return len(self.genre)


def examples(seed: int, count: int, *, natural: float = NATURAL) -> Examples:
    """`count` clips of seeds from `seed` on; a share `natural` of them are rendered without the codec."""
    codec = build()
    rows = []
    for i in range(count):
        rng = np.random.default_rng(seed + i)
        score = compose(seed + i, SECONDS, training=False)
        codes = tokens(score)[:, : int(SECONDS * 50)]
        if rng.random() < natural:
            clip = render(score, SECONDS, seed + i, effects=bool(rng.random() < 0.5)).mix.mean(0)
        else:
            with torch.no_grad():
                clip = codec.decode(torch.from_numpy(codes).long()[None])[0, 0].numpy()
        clear = score.shape in {"full", "no drums"}
        rows.append((*hear(clip), list(GENRES).index(score.genre), audible(score, codes), shape_of(score), clear))
    picture, description, genre, parts, shape, clear_all = zip(*rows, strict=True)
    return Examples(
        torch.from_numpy(np.stack(picture)),
        torch.from_numpy(np.stack(description)),
        torch.tensor(genre),
        torch.tensor(parts).float(),
        torch.tensor(shape),
        torch.tensor(clear_all),
    )


def gather(work: Path, count: int, first: int = 0, every: int = 1) -> Iterator[Path]:
    """The files of `count` clips in work/judge, made where they are not there yet. Several processes may share the
    work: each makes every `every`-th file from number `first` on."""
    folder = work / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, -(-count // SHARD), every):
        path = folder / f"{number:03d}.pt"
        if not path.exists():
            began = time.monotonic()
            made = vars(examples(40_000_000 + number * SHARD, SHARD))
            part = path.with_suffix(".part")
            torch.save(made, part)
            part.replace(path)
            log.info("judge: clips %d to %d, %.0f s", number * SHARD, (number + 1) * SHARD, time.monotonic() - began)
        yield path


def train(work: Path, count: int = 12_000, minutes: float = 20.0, batch: int = 32) -> Judge:
    """Train on `count` clips for `minutes`, report on others, and keep the judge at work/judge.pt."""
    shards = [torch.load(path, weights_only=True) for path in gather(work, count)]
    data = Examples(**{name: torch.cat([s[name] for s in shards]) for name in shards[0]})
    del shards
    mean, scale = data.description.mean(0), data.description.std(0) + 0.05
    torch.manual_seed(0)
    net = Network(data.description.shape[1])
    log.info("judge: %d clips, %.2f M parameters", len(data), sum(p.numel() for p in net.parameters()) / 1e6)
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    began, steps, told = time.monotonic(), 0, 0.0
    order = torch.randperm(len(data))
    while (share := (time.monotonic() - began) / (minutes * 60)) < 1:
        at = steps * batch % (len(data) - batch + 1) if len(data) > batch else 0
        if at < batch:
            order = torch.randperm(len(data))
        loss = _loss(net, data, order[at : at + batch], mean, scale)
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, steps / 100 + 0.01) * (0.5 + 0.5 * float(np.cos(np.pi * share)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        steps += 1
        if share > told:
            told += 0.05
            log.info(
                "judge: %3.0f %%, step %d, pass %.1f, loss %.3f", share * 100, steps, steps * batch / len(data), loss
            )
            torch.save({"net": net.state_dict(), "mean": mean, "scale": scale}, work / "judge.part")
    net.eval()
    torch.save({"net": net.state_dict(), "mean": mean, "scale": scale}, work / "judge.pt")
    judge = Judge(net, mean, scale)
    log.info("judge on corpus clips it has not heard: %s", report(judge))
    return judge


def _loss(net: Network, data: Examples, pick: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Of clips a little louder or softer, begun anywhere, with some noise."""
    picture = _floats(data.picture[pick]).roll(int(torch.randint(0, 500, ())), 2)
    picture = picture + 0.15 * torch.randn(len(pick), 1, 1, 1) + 0.03 * torch.randn_like(picture)
    description = (data.description[pick] - mean) / scale
    description = description + 0.2 * torch.randn_like(description)
    genre, parts, shape = _split(net(picture, description))
    clear = data.clear[pick].float()
    told = functional.cross_entropy(genre, data.genre[pick], reduction="none", label_smoothing=0.02)
    return (
        (told * clear).sum() / clear.sum().clamp(min=1)
        + 6 * functional.binary_cross_entropy_with_logits(parts, data.parts[pick])
        + 0.3 * functional.cross_entropy(shape, data.shape[pick])
    )


def report(judge: Judge, count: int = 400) -> dict[str, float]:
    """How often the judge is right on corpus clips, natural and decoded."""
    result = {}
    for name, natural in (("decoded", 0.0), ("natural", 1.0)):
        real = examples(60_000_000, count // 2, natural=natural)
        genre, parts, shape = judge.weigh(real.picture, real.description)
        right = {
            "genre": (genre.argmax(1) == real.genre)[real.clear],
            "part heard": parts[real.parts > 0.5] > 0,
            "absent part heard": parts[real.parts < 0.5] > 0,
            "shape": shape.argmax(1) == real.shape,
        }
        result |= {f"{what}, {name}": round(float(yes.float().mean()), 3) for what, yes in right.items()}
    return result


def confusion(judge: Judge, real: Examples) -> list[tuple[int, str, str]]:
    """What the judge takes for something else: (how often, true genre, told genre), the most frequent first."""
    told = judge.weigh(real.picture, real.description)[0].argmax(1)
    names = list(GENRES)
    pairs = [
        (names[int(t)], names[int(g)]) for t, g, c in zip(real.genre, told, real.clear, strict=True) if c and t != g
    ]
    return sorted(((pairs.count(pair), *pair) for pair in set(pairs)), reverse=True)


def load(work: Path) -> Judge:
    kept = torch.load(work / "judge.pt", weights_only=True)
    net = Network(len(kept["mean"]))
    net.load_state_dict(kept["net"])
    return Judge(net.eval(), kept["mean"], kept["scale"])
