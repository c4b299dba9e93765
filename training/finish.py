"""The stages that are not the language model's training."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training import lm as lm_stage
from training.codec.build import CONFIG, build

log = logging.getLogger(__name__)
STUDIO = {
    "loader": "tiny",
    "title": "tiny (embedded sketch model)",
    "licence": "CC0-1.0",
    "sketch": True,
    "channels": 2,
    "melody": True,
    "sample_rate_hz": 32000,
    "frame_rate_hz": 50.0,
}


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors makes it readable to its owner alone


def export(work: Path, out: Path) -> Path:
    """Write models/tiny from the averaged weights of the last checkpoint; the model card is kept."""
    folder = out / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    kept = torch.load(work / "lm.pt", map_location="cpu", weights_only=True)
    weights = {name: value.half().contiguous() for name, value in kept["average"].items()}
    _save(weights, folder / "state_dict.safetensors")
    config = lm_stage.lm_config(lm_stage.Recipe(**kept["recipe"]))
    size = sum(v.numel() for v in weights.values()) / 1e6
    trained = {
        "steps": kept["step"],
        "frames": kept["frames"],
        "hours_of_music": round(kept["frames"] / 50 / 3600, 1),
        "training_minutes": round(kept["seconds"] / 60),
    }
    write_yaml(folder / "config.yaml", {**config, "studio": {**STUDIO, "params_m": round(size, 1)}, "trained": trained})
    codec(out)
    log.info("exported %s: %.1f M parameters, step %d", folder, size, kept["step"])
    return folder


def codec(out: Path) -> None:
    """Write the codec's half of models/tiny."""
    folder = out / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.dtype == torch.float32 else value).contiguous()
        for name, value in build().state_dict().items()
    }
    _save(state, folder / "compression_state_dict.safetensors")
    write_yaml(folder / "compression_config.yaml", {"compression_model": "layered_codec", "layered_codec": CONFIG})


def run(args: argparse.Namespace) -> None:
    if args.stage == "codec":
        codec(args.out)
    elif args.stage == "export":
        export(args.work, args.out)
    elif args.stage == "separator":
        from training import separator

        separator.train(args.work, args.out, args.minutes, args.device, args.batch, decay=args.decay)
    elif args.stage == "melody":
        from training import adherence

        adherence.run(args)
    else:
        from training import evaluate

        evaluate.run(args)
