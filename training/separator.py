"""Train models/tiny-stems: a small HTDemucs on the corpus' stems, kept in demucs' own folder format."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.utils.data
from torch import Tensor

from modules.musicgen import compat

compat.prepare()
from demucs.apply import apply_model  # noqa: E402
from demucs.htdemucs import HTDemucs  # noqa: E402

from modules.musicgen.tiny.codec import LayeredCodec  # noqa: E402
from training.codec.build import build  # noqa: E402
from training.codec.layout import tokens  # noqa: E402
from training.corpus.instruments import FRAME_RATE_HZ, SAMPLE_RATE_HZ, VOCAL_PRESETS, Audio  # noqa: E402
from training.corpus.render import STEMS, render  # noqa: E402
from training.corpus.score import LAYERS, Score, compose  # noqa: E402
from training.files import save_weights, write_yaml  # noqa: E402

log = logging.getLogger(__name__)
RATE_HZ = 44_100
PIECE_S = 13.0  # five segments
FIRST_PIECE = 70_000_000  # pieces that the language model's training does not hear
SHELF = 48  # segments to draw from
LEARNING_RATE = 2e-3
AVERAGED_STEPS = 100
SIGNATURE = "0a7e57e5"  # the file's name; any eight hex digits
SEGMENT = Fraction(13, 5)  # seconds
ARGS: list[list[str]] = [list(STEMS)]
KWARGS: dict[str, Any] = {
    "channels": 12,
    "growth": 2,
    "depth": 4,
    "nfft": 4096,
    "t_layers": 1,
    "t_cross_first": True,  # the one layer is where spectrogram and waveform hear of each other
    "t_heads": 4,
    "t_hidden_scale": 2.0,
    "bottom_channels": 128,
    "dconv_comp": 4,
    "samplerate": RATE_HZ,
    "segment": SEGMENT,
}


def model() -> HTDemucs:
    return HTDemucs(*ARGS, **KWARGS)


@lru_cache(maxsize=1)
def _codec() -> LayeredCodec:
    return build().eval()


def stems_of(seed: int, seconds: float, *, training: bool = True) -> Audio:
    """A piece's stems, float32 [4, 2, T] at 44.1 kHz, each at a loudness of its own.

    Two of three are rendered as notes; the rest sound as the embedded model's codec makes them, so that what the
    program plays offline can be taken apart as well.
    """
    rng = np.random.default_rng(seed)
    score = _score(seed, seconds, rng, training=training)
    stems = _as_the_codec_plays(score, seconds) if rng.random() < 1 / 3 else render(score, seconds, seed).stems
    gains = rng.uniform(0.5, 1.2, len(STEMS))
    return np.stack(
        [soxr.resample(stems[n].T, SAMPLE_RATE_HZ, RATE_HZ).T * g for n, g in zip(STEMS, gains, strict=True)]
    ).astype(np.float32)


def _score(seed: int, seconds: float, rng: np.random.Generator, *, training: bool) -> Score:
    """A piece; every third is one that is sung, which one of ten in the corpus is."""
    number = FIRST_PIECE + seed
    if rng.random() < 1 / 3:
        others = (number + other * 1_000_000_007 for other in range(40))
        number = next((n for n in others if _is_sung(compose(n, 0.5, training=training))), number)
    return compose(number, seconds, training=training)


def _is_sung(score: Score) -> bool:
    return bool(VOCAL_PRESETS & set(score.instruments.values()))


@torch.no_grad()
def _as_the_codec_plays(score: Score, seconds: float) -> dict[str, Audio]:
    """The stems as the codec's four layers, each decoded alone: float32 [2, T] by name."""
    codec = _codec()
    codes = torch.from_numpy(tokens(score)).long()[None, :, : round(seconds * FRAME_RATE_HZ)]
    layers = codec.spread(codec.overlap(codec.decode_latent(codes)))[0].numpy()
    length = int(seconds * SAMPLE_RATE_HZ)
    stems = {name: np.zeros((2, length), np.float32) for name in STEMS}
    for layer, sound in zip(LAYERS, layers, strict=True):
        sung = score.instruments.get(layer) in VOCAL_PRESETS
        name = layer if layer in {"drums", "bass"} else "vocals" if sung else "other"
        stems[name][:, : sound.shape[1]] += sound[:, :length]
    return stems


def _sounding(shelf: list[Audio], stem: int, rng: np.random.Generator) -> Audio:
    """A segment in which the stem sounds, most of the time."""
    for _ in range(4):
        found = shelf[rng.integers(len(shelf))]
        if np.abs(found[stem]).max() > 1e-3:
            break
    return found


class Clips(torch.utils.data.IterableDataset[Tensor]):
    """Stems [4, 2, T] without end, drawn from a shelf of pieces; half of them mix stems of different pieces.

    A process of its own makes them (see `batches`), each from its own seeds.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        rng, length, seed = np.random.default_rng((self.seed, number)), int(SEGMENT * RATE_HZ), self.seed + number
        shelf: list[Audio] = []
        while True:
            piece = stems_of(seed, PIECE_S)
            seed += workers
            shelf += [piece[..., at : at + length] for at in range(0, piece.shape[-1] - length + 1, length)]
            if len(shelf) < SHELF // 2:
                continue
            for _ in range(int(PIECE_S / float(SEGMENT))):
                if rng.random() < 0.5:
                    stems = np.stack([_sounding(shelf, i, rng)[i] for i in range(len(STEMS))])
                else:
                    stems = shelf[rng.integers(len(shelf))]
                flip = rng.random() < 0.5
                yield torch.from_numpy(np.ascontiguousarray(stems[:, ::-1] if flip else stems))
            del shelf[: max(0, len(shelf) - SHELF)]


def batches(seed: int, size: int, workers: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Mixes [B, 2, T] and stems [B, 4, 2, T] at 44.1 kHz, made by processes beside the training."""
    loader = torch.utils.data.DataLoader(Clips(seed), batch_size=size, num_workers=workers, prefetch_factor=4)
    for target in loader:
        yield target.sum(1), target


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis."""
    scale = (estimate * target).sum(-1, keepdim=True) / ((target**2).sum(-1, keepdim=True) + 1e-8)
    wanted = scale * target
    return 10 * torch.log10((wanted**2).sum(-1) / (((estimate - wanted) ** 2).sum(-1) + 1e-8) + 1e-8)


@torch.no_grad()
def gain_db(net: HTDemucs, clips: int = 50) -> dict[str, float]:
    """SI-SDR in dB gained over the mix for each stem of held-out pieces in which it and another sounds; their mean.

    Pieces of 8 s of combinations that training never sees, separated as the program does it.
    """
    net.eval()
    device = next(net.parameters()).device
    gains: dict[str, list[float]] = {name: [] for name in STEMS}
    for clip in range(clips):
        target = torch.from_numpy(stems_of(9_000_000 + clip, 8.0, training=False)).to(device)
        mix = target.sum(0)
        estimate = apply_model(net, mix[None], shifts=0, overlap=0.25)[0]
        for i, name in enumerate(STEMS):
            if float(target[i].abs().max()) > 0.01 and float((mix - target[i]).abs().max()) > 0.01:
                before, after = (si_sdr(x.flatten(), target[i].flatten()) for x in (mix, estimate[i]))
                gains[name].append(float(after - before))
    net.train()
    found = {name: round(float(np.mean(v)), 2) for name, v in gains.items() if v}
    return {**found, "mean": round(float(np.mean(list(found.values()))), 2)}


def export(weights: Mapping[str, Tensor], out: Path, trained: dict[str, float]) -> None:
    """Write the folder that demucs.hf reads, <name>.yaml and <signature>.safetensors; the model card is kept."""
    folder = out / "tiny-stems"
    folder.mkdir(parents=True, exist_ok=True)
    segment = {"_type": "fraction", "numerator": SEGMENT.numerator, "denominator": SEGMENT.denominator}
    kwargs = json.dumps({**KWARGS, "segment": segment})
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": json.dumps(ARGS), "kwargs": kwargs}
    save_weights(weights, folder / f"{SIGNATURE}.safetensors", metadata)
    studio = {"title": "tiny-stems (embedded sketch separator)", "licence": "CC0-1.0", "sketch": True}
    write_yaml(
        folder / "tiny-stems.yaml", {"models": [SIGNATURE], "segment": None, "studio": studio, "trained": trained}
    )


def loss_of(estimate: Tensor, target: Tensor) -> Tensor:
    """What is wrong with each stem, in dB: its error beside itself, or beside the mix where it is silent.

    Mean absolute errors settle at silence for a stem that sounds half of the time; ratios of energy do not. The floors
    (30 dB beside a stem, 20 dB beside the mix) keep what is already right from counting.
    """
    error, energy = ((estimate - target) ** 2).mean((2, 3)), (target**2).mean((2, 3))
    mix = (target.sum(1) ** 2).mean((1, 2))[:, None] + 1e-7
    sounds = energy > 1e-4 * mix
    beside_itself = 10 * torch.log10(error / (energy + 1e-9) + 1e-3)
    beside_the_mix = 10 * torch.log10(error / mix + 1e-2)
    return torch.where(sounds, beside_itself, 0.3 * beside_the_mix).mean()


def train(work: Path, out: Path, minutes: float, device: str, batch: int = 0, *, decay: bool = False) -> None:
    """Train for some minutes, from work/separator.pt where it exists; export the average of the weights.

    decay: bring the learning rate to zero over these minutes (the last stage).

    Raises:
        RuntimeError: the loss is not finite.
    """
    torch.manual_seed(0)
    net = model().to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    path, step, before = work / "separator.pt", 0, 0.0
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    if path.exists():
        kept = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(kept["net"])
        optimiser.load_state_dict(kept["optimiser"])
        step, before, average = kept["step"], kept["seconds"], kept["average"]
    log.info("separator: %.2f M parameters, step %d", sum(p.numel() for p in net.parameters()) / 1e6, step)
    size = batch or (2 if device == "cpu" else 16)
    workers = 1 if device == "cpu" else max(1, (os.cpu_count() or 2) - 2)
    # no piece is seen twice: each step uses fewer pieces than clips
    source, began, running = batches(step * size, size, workers), time.monotonic(), 0.0
    saved = began

    def keep() -> None:
        part = path.with_suffix(".part")
        seconds = before + time.monotonic() - began
        kept = {"net": net.state_dict(), "average": average, "optimiser": optimiser.state_dict()}
        torch.save({**kept, "step": step, "seconds": seconds}, part)
        part.replace(path)

    while (elapsed := time.monotonic() - began) < minutes * 60:
        left = 1 - elapsed / (minutes * 60) if decay else 1.0
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * max(left, 0.01)
        mix, target = (v.to(device) for v in next(source))
        loss = loss_of(net(mix), target)
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"the loss is {float(loss)} at step {step}")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        for name, value in net.state_dict().items():
            average[name].lerp_(value, max(1 / step, 1 / AVERAGED_STEPS))
        running = loss.item() if step == 1 else running * 0.95 + loss.item() * 0.05
        if step % 20 == 0:
            log.info("separator step %d %.0f s loss %.3f", step, elapsed, running)
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            keep()
    keep()
    averaged = model().to(device)
    averaged.load_state_dict(average)
    gains = gain_db(averaged)
    log.info("separator: SI-SDR gain in dB %s", gains)
    if gains["mean"] > 0:
        trained = {
            "steps": step,
            "training_minutes": round((before + minutes * 60) / 60),
            "si_sdr_gain_db": gains["mean"],
        }
        export(average, out, trained)
