"""The stages that are not the language model's training."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from training import lm as lm_stage
from training.codec.build import CONFIG, build
from training.files import save_weights, write_yaml

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


def export(work: Path, out: Path) -> Path:
    """Write models/tiny from the averaged weights of the last checkpoint; the model card is kept."""
    folder = out / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    kept = torch.load(work / "lm.pt", map_location="cpu", weights_only=True)
    size = save_weights(kept["average"], folder / "state_dict.safetensors") / 1e6
    config = lm_stage.lm_config(lm_stage.Recipe(**kept["recipe"]))
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
    save_weights(build().state_dict(), folder / "compression_state_dict.safetensors")
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
