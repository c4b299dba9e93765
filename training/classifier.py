"""A small judge, trained on the corpus alone: genre, instruments, and drums-only / no drums / both.

It hears ten seconds: scores decoded by the codec (four of five) and scores rendered naturally, with or without effects.
What it hears of a clip: how much there is of each of 400 kinds of patches of two spectrograms (a short window for
time, a long one for pitch), and what `describe` says of the rhythm and the levels. A small network weighs it.
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
WORDS, PATCH = 400, 5  # kinds of patches, and their length in frames of 20 ms
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


class Patches(nn.Module):
    """How much a picture has of each of `words` kinds of patches, found by k-means on whitened patches and never
    trained further (Coates, Ng 2011): float [B, 2, 500, 80] -> mean and deviation over time [B, 2 * words]."""

    def __init__(self, words: int = WORDS, kept: int = 48) -> None:
        super().__init__()
        self.project: Tensor
        self.middle: Tensor
        self.words: Tensor
        self.register_buffer("project", torch.zeros(kept, 2 * 80 * PATCH))
        self.register_buffer("middle", torch.zeros(2 * 80 * PATCH))
        self.register_buffer("words", torch.zeros(words, kept))

    def cut(self, picture: Tensor) -> Tensor:
        """Every patch of PATCH frames, one begun each second frame, without its mean level: [B, N, 2 * 80 * PATCH]."""
        cut = picture.unfold(2, PATCH, 2).permute(0, 2, 1, 4, 3).flatten(2)
        return cut - cut.mean(2, keepdim=True)

    def forward(self, picture: Tensor) -> Tensor:
        seen = (self.cut(picture) - self.middle) @ self.project.T
        apart = (seen**2).sum(2, keepdim=True) - 2 * seen @ self.words.T + (self.words**2).sum(1)
        apart = apart.clamp(min=0).sqrt()
        near = (apart.mean(2, keepdim=True) - apart).clamp(min=0)
        return torch.cat([near.mean(1), near.std(1)], 1)

    @torch.no_grad()
    def find(self, pictures: Tensor, rounds: int = 8) -> None:
        """Learn the words from some clips' pictures."""
        patches = torch.cat([self.cut(_floats(one[None]))[0][::8] for one in pictures])
        self.middle.copy_(patches.mean(0))
        values, vectors = torch.linalg.eigh((patches - self.middle).T @ (patches - self.middle) / len(patches))
        kept = len(self.project)
        self.project.copy_((vectors[:, -kept:] / (values[-kept:] + 0.1).sqrt()).T)
        seen = (patches - self.middle) @ self.project.T
        words = seen[torch.randperm(len(seen))[: len(self.words)]].clone()
        for _ in range(rounds):
            nearest = (seen @ words.T - (words**2).sum(1) / 2).argmax(1)
            counts = torch.bincount(nearest, minlength=len(words))[:, None]
            sums = torch.zeros_like(words).index_add_(0, nearest, seen)
            words = torch.where(counts > 0, sums / counts.clamp(min=1), words)
        self.words.copy_(words)


class Network(nn.Module):
    """Standardised features [B, inputs] -> logits [B, genres + parts + shapes]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        outputs = len(GENRES) + len(PARTS) + len(SHAPES)
        self.layers = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(inputs, 256), nn.GELU(), nn.Dropout(0.35),
            nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, outputs),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layers(features)
        return result


@dataclass
class Judge:
    """The trained network with what its features come from, their mean and scale."""

    patches: Patches
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
        return _split(self.net((_features(self.patches, picture, description) - self.mean) / self.scale))

    def save(self, path: Path) -> None:
        kept = {"patches": self.patches.state_dict(), "net": self.net.state_dict()}
        torch.save({**kept, "mean": self.mean, "scale": self.scale}, path)


@torch.no_grad()
def _features(patches: Patches, picture: Tensor, description: Tensor) -> Tensor:
    """[N, inputs] of what `hear` gave of N clips."""
    seen = [patches(_floats(picture[i : i + 8])) for i in range(0, len(picture), 8)]
    return torch.cat([torch.cat(seen), description], 1)


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
                clip = codec.decode(torch.from_numpy(codes).long()[None])[0].mean(0).numpy()
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


def train(work: Path, count: int = 4000, steps: int = 3000, batch: int = 128) -> Judge:
    """Train on `count` clips, report on others, and keep the judge at work/judge.pt."""
    patches = Patches()
    features: list[Tensor] = []
    rest: list[tuple[Tensor, ...]] = []
    for path in gather(work, count):
        shard = Examples(**torch.load(path, weights_only=True))
        if not features:
            torch.manual_seed(0)
            patches.find(shard.picture)
            log.info("judge: %d kinds of patches found", len(patches.words))
        features.append(_features(patches, shard.picture, shard.description))
        rest.append((shard.genre, shard.parts, shard.shape, shard.clear))
    x = torch.cat(features)
    mean, scale = x.mean(0), x.std(0) + 0.02 * x.std(0).mean()
    x = (x - mean) / scale
    labels = tuple(torch.cat(column) for column in zip(*rest, strict=True))
    net = Network(x.shape[1])
    log.info("judge: %d clips, %d features each", len(x), x.shape[1])
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    for step in range(steps):
        pick = torch.randint(len(x), (batch,))
        loss = _loss(net(x[pick] + 0.2 * torch.randn(batch, x.shape[1])), *(column[pick] for column in labels))
        optimiser.param_groups[0]["lr"] = 1.5e-3 * (0.5 + 0.5 * float(np.cos(np.pi * step / steps))) + 1e-6
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 500 == 0:
            log.info("judge: step %d, loss %.3f", step, loss)
    judge = Judge(patches, net.eval(), mean, scale)
    judge.save(work / "judge.pt")
    return judge


def _loss(out: Tensor, genre: Tensor, parts: Tensor, shape: Tensor, clear: Tensor) -> Tensor:
    told_genre, told_parts, told_shape = _split(out)
    genres = functional.cross_entropy(told_genre, genre, reduction="none", label_smoothing=0.02)
    return (
        (genres * clear).sum() / clear.sum().clamp(min=1)
        + 6 * functional.binary_cross_entropy_with_logits(told_parts, parts)
        + 0.3 * functional.cross_entropy(told_shape, shape)
    )


def report(judge: Judge, count: int = 400) -> dict[str, float]:
    """How often the judge is right on corpus clips, natural and decoded."""
    result: dict[str, float] = {}
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
    patches, net = Patches(), Network(len(kept["mean"]))
    patches.load_state_dict(kept["patches"])
    net.load_state_dict(kept["net"])
    return Judge(patches, net.eval(), kept["mean"], kept["scale"])
