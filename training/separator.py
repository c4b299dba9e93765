"""Train models/tiny-stems: a small HTDemucs on the corpus' stems, kept in demucs' own folder format."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.musicgen import compat

compat.prepare()
from demucs.htdemucs import HTDemucs  # noqa: E402

from training.corpus.instruments import SAMPLE_RATE_HZ  # noqa: E402
from training.corpus.render import STEMS, render  # noqa: E402
from training.corpus.score import compose  # noqa: E402

log = logging.getLogger(__name__)
SIGNATURE = "0a7e57e5"  # the file's name; any eight hex digits
SEGMENT = Fraction(39, 10)  # seconds
ARGS: list[list[str]] = [list(STEMS)]
KWARGS: dict[str, Any] = {
    "channels": 12,
    "growth": 2,
    "depth": 4,
    "nfft": 4096,
    "t_layers": 2,
    "t_heads": 4,
    "t_hidden_scale": 2.0,
    "bottom_channels": 128,
    "dconv_comp": 4,
    "samplerate": 44_100,
    "segment": SEGMENT,
}


def model() -> HTDemucs:
    return HTDemucs(*ARGS, **KWARGS)


def batches(seed: int, size: int, seconds: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Mixes [B, 2, T] and stems [B, 4, 2, T] at 44.1 kHz."""
    import soxr

    while True:
        stems = []
        for i in range(size):
            score = compose(70_000_000 + seed * size + i, seconds)
            made = render(score, seconds, seed * size + i).stems
            gains = np.random.default_rng(seed * size + i).uniform(0.5, 1.2, len(STEMS))
            stems.append(
                np.stack(
                    [soxr.resample(made[n].T, SAMPLE_RATE_HZ, 44_100).T * g for n, g in zip(STEMS, gains, strict=True)]
                )
            )
        target = torch.from_numpy(np.stack(stems).astype(np.float32))
        yield target.sum(1), target
        seed += 1


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis."""
    scale = (estimate * target).sum(-1, keepdim=True) / ((target**2).sum(-1, keepdim=True) + 1e-8)
    wanted = scale * target
    return 10 * torch.log10((wanted**2).sum(-1) / (((estimate - wanted) ** 2).sum(-1) + 1e-8) + 1e-8)


@torch.no_grad()
def gain_db(net: HTDemucs, clips: int = 12) -> dict[str, float]:
    """SI-SDR gained over the mix for each stem of held-out clips in which it sounds."""
    net.eval()
    device = next(net.parameters()).device
    gains: dict[str, list[float]] = {name: [] for name in STEMS}
    source = batches(9_000_000, 1, float(SEGMENT))
    for _ in range(clips):
        mix, target = (v.to(device) for v in next(source))
        estimate = net(mix)
        for i, name in enumerate(STEMS):
            if float(target[0, i].abs().max()) > 0.01 and float((mix[0] - target[0, i]).abs().max()) > 0.01:
                gain = si_sdr(estimate[0, i].flatten(), target[0, i].flatten()) - si_sdr(
                    mix[0].flatten(), target[0, i].flatten()
                )
                gains[name].append(float(gain))
    net.train()
    return {name: round(float(np.mean(v)), 2) for name, v in gains.items() if v}


def export(net: HTDemucs, out: Path) -> None:
    """Write the folder that demucs.hf reads: <name>.yaml and <signature>.safetensors."""
    folder = out / "tiny-stems"
    folder.mkdir(parents=True, exist_ok=True)
    kwargs = {
        **KWARGS,
        "segment": {"_type": "fraction", "numerator": SEGMENT.numerator, "denominator": SEGMENT.denominator},
    }
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": json.dumps(ARGS), "kwargs": json.dumps(kwargs)}
    save_file(
        {k: v.half().contiguous() for k, v in net.state_dict().items()}, folder / f"{SIGNATURE}.safetensors", metadata
    )
    from omegaconf import OmegaConf

    about = {
        "models": [SIGNATURE],
        "segment": None,
        "studio": {"title": "tiny-stems (embedded sketch separator)", "licence": "CC0-1.0", "sketch": True},
    }
    (folder / "tiny-stems.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(about)), encoding="utf-8")


def train(work: Path, out: Path, minutes: float, device: str, batch: int = 0) -> None:
    """Train for some minutes, from work/separator.pt where it exists; export only what gains on the mix."""
    torch.manual_seed(0)
    net = model().to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    path, step = work / "separator.pt", 0
    if path.exists():
        kept = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(kept["net"])
        optimiser.load_state_dict(kept["optimiser"])
        step = kept["step"]
    log.info("separator: %.2f M parameters, step %d", sum(p.numel() for p in net.parameters()) / 1e6, step)
    size = batch or (2 if device == "cpu" else 16)
    source, began, running = batches(step, size, float(SEGMENT)), time.monotonic(), 0.0
    while (elapsed := time.monotonic() - began) < minutes * 60:
        mix, target = (v.to(device) for v in next(source))
        loss = (net(mix) - target).abs().mean() / (target.abs().mean() + 1e-3)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        running = loss.item() if step == 1 else running * 0.95 + loss.item() * 0.05
        if step % 20 == 0:
            log.info("separator step %d %.0f s loss %.3f", step, elapsed, running)
    part = path.with_suffix(".part")
    torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, part)
    part.replace(path)
    gains = gain_db(net)
    log.info("separator: SI-SDR gain in dB %s", gains)
    if np.mean(list(gains.values())) > 0:
        export(net, out)
