"""Memory: what a model takes, what there is, and giving it back for real."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from contextlib import suppress
from typing import Final

import psutil

from modules.contract import Decoder
from modules.musicgen.catalog import DIFFUSION, Entry, Shape

log = logging.getLogger(__name__)

WEIGHT_BYTES: Final[dict[str, float]] = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    # A float32 scale for every 128 weights, and for every 32.
    "int8": 1 + 4 / 128,
    "int4": 0.5 + 4 / 32,
}
"""Bytes a weight of the decoder takes."""
CACHE_BYTES: Final[dict[str, int]] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 1}
"""Bytes a key or value takes: with int8 and int4 weights they are int8, their scales lie in the weights."""
DELAY_STEPS: Final = 4
"""Positions beyond a window's frames: the first one, and the delays of the published patterns."""
PREPENDED_STEPS: Final = 512
"""Room reckoned for what melody models put before the first step."""
_MB: Final = 1_000_000
_T5_PARAMETERS, _ENCODEC_PARAMETERS, _DEMUCS_PARAMETERS = 110 * _MB, 59 * _MB, 42 * _MB
_OVERHEAD_BYTES: Final = 300 * _MB
"""The decoding of a window, activations and what the libraries keep."""
_RENDERING_BYTES: Final = 900 * _MB
"""What a window of Multi-Band Diffusion takes beside its weights."""


def estimate_bytes(model: Entry, precision: str, decoder: Decoder = "codec") -> int:
    """About how much memory the model takes on its device while it generates one take.

    Args:
        model: an entry of the catalogue; one of unknown shape counts as nothing but the overhead.
        precision: of the decoder; the text encoder, the codec and the separator stay in float32.
        decoder: what makes sound of the tokens.
    """
    return _model_bytes(model, precision) + (diffusion_bytes() if decoder == "diffusion" else 0)


def diffusion_bytes() -> int:
    """About how much Multi-Band Diffusion takes: its file's float32 weights, once it is here, and a window's work."""
    return sum(path.stat().st_size for path in DIFFUSION.local()) + _RENDERING_BYTES


def _model_bytes(model: Entry, precision: str) -> int:
    beside = 0
    for part in model.parts:
        beside += {"T5": _T5_PARAMETERS, "htdemucs": _DEMUCS_PARAMETERS}.get(part.name, 0)
    if model.loader == "audiocraft":
        beside += _ENCODEC_PARAMETERS
    if model.shape is None:
        return beside * 4 + _OVERHEAD_BYTES
    frames = int(model.window_s * model.frame_rate_hz)
    decoder = model.shape.parameters * WEIGHT_BYTES[precision] + cache_bytes(model.shape, frames, precision)
    return int(decoder + beside * 4 + _OVERHEAD_BYTES)


def cache_bytes(shape: Shape, frames: int, precision: str, takes: int = 1) -> int:
    """Self-attention's keys and values over a window, the conditional and the unconditional row of each take."""
    positions = frames + DELAY_STEPS + (0 if shape.cross_attention else PREPENDED_STEPS)
    return 2 * 2 * takes * shape.layers * shape.dim * positions * _cache_width(precision)


def step_bytes(model: Entry, precision: str, seconds: float) -> int:
    """What a step reads, on average over one take of so much music: every weight, and half of the keys and values."""
    if model.shape is None:
        return 0
    frames = int(min(seconds, model.window_s) * model.frame_rate_hz)
    read = model.shape.parameters * WEIGHT_BYTES[precision] + cache_bytes(model.shape, frames, precision) / 2
    return int(read)


def _cache_width(precision: str) -> int:
    width = CACHE_BYTES[precision]
    if width == 1:
        from modules.musicgen.backends.onnx import int8_cache_works

        # A build of ONNX Runtime without the operator keeps float32.
        return 1 if int8_cache_works() else 4
    return width


def available_bytes(device: str) -> int:
    """What a new model may take on `device` now."""
    if device == "cuda":
        import torch

        with suppress(RuntimeError):  # a card that is lost: the next job finds that out
            return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)


def total_bytes(device: str) -> int:
    """All of the device's memory."""
    if device == "cuda":
        import torch

        with suppress(RuntimeError):
            return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().total)


def resident_bytes() -> int:
    """What this process holds."""
    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, ONNX Runtime or Python says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    words = str(error).lower()
    told = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(phrase in words for phrase in told)


def give_back() -> None:
    """Hand memory that nothing refers to any more back to the system and the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        # A card that is lost has nothing to give back, and says so with an error.
        with suppress(RuntimeError):
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if torch.backends.mps.is_available():
                torch.mps.empty_cache()
    if sys.platform == "linux":
        # glibc keeps freed blocks for later; without this the process stays as large as it ever was.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
