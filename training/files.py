"""How the finished models are written: readable configs and weights in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(content))), encoding="utf-8")


def save_weights(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> int:
    """Write tensors, float32 ones as float16; returns the numbers in them."""
    kept = {n: (v.half() if v.dtype == torch.float32 else v).contiguous() for n, v in tensors.items()}
    save_file(kept, path, metadata)
    path.chmod(0o644)  # safetensors makes it readable to its owner alone
    return sum(v.numel() for v in kept.values())
