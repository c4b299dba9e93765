"""Small separators in demucs' own hub format, made by the tests: real classes and keys, random weights."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

SOURCES = ("drums", "bass", "other", "vocals")
RATE_HZ = 44_100
SEGMENT_S = Fraction(7, 10)
SIX = (*SOURCES, "guitar", "piano")


def model(seed: int, sources: tuple[str, ...] = SOURCES, segment_s: Fraction = SEGMENT_S) -> Any:
    """A HTDemucs of 0.1 M parameters whose weights are loud enough to change what it hears."""
    import torch
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(seed)
    made = HTDemucs(
        sources=list(sources), channels=8, nfft=1024, depth=3, bottom_channels=16, t_layers=2, t_heads=2,
        t_hidden_scale=2.0, segment=segment_s, samplerate=RATE_HZ,
    )  # fmt: skip
    return made.eval()


def save(made: Any, path: Path) -> None:
    """Write a model as demucs' hub files are written: weights, and the constructor's arguments in the metadata."""
    from safetensors.torch import save_file

    args, kwargs = made._init_args_kwargs
    said = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": json.dumps(args, default=_encode),
        "kwargs": json.dumps(kwargs, default=_encode),
    }
    save_file({key: tensor.contiguous() for key, tensor in made.state_dict().items()}, path, metadata=said)


def _encode(value: Any) -> Any:
    assert isinstance(value, Fraction)
    return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}


def make_folder(
    models_dir: Path, name: str = "test-stems", *, seeds: tuple[int, ...] = (1,),
    weights: list[list[float]] | None = None, sketch: bool = True, sources: tuple[str, ...] = SOURCES,
) -> Path:  # fmt: skip
    """A separator folder of one or more small models."""
    folder = models_dir / name
    folder.mkdir(parents=True)
    for seed in seeds:
        save(model(seed, sources), folder / f"sig{seed}.safetensors")
    about = {"title": f"Test separator {name}", "licence": "none", "sketch": sketch, "stems": list(sources)}
    said: dict[str, Any] = {"models": [f"sig{seed}" for seed in seeds], "studio": about}
    if weights is not None:
        said["weights"] = weights
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(said))
    return folder
