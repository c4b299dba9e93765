"""Ways of running the decoder. One file each; `choose` picks, `ladder` says which arithmetic to try.

reference      audiocraft's own loop: slow, exact, for every model
onnx           CPUs: ONNX Runtime with float32, int8 or int4 weights
cuda           NVIDIA cards: half precision, each step one captured graph
torch_static   everything else, in float32
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modules.contract import InvalidParameter

if TYPE_CHECKING:
    from modules.musicgen.backends.interface import Backend
    from modules.musicgen.backends.weights import DecoderWeights
    from modules.musicgen.conditions import Conditioner
    from modules.musicgen.engine import Engine, ModelFacts
    from modules.musicgen.patterns import DelayPattern
    from modules.settings import Settings

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""(done, total) of a conversion; may raise to end it."""

ONNX_PRECISIONS = ("float32", "int8", "int4")
DEVICE_BACKENDS = {"cpu": "onnx", "cuda": "cuda", "mps": "torch"}


def ladder(settings: Settings, device: str) -> list[tuple[str, str]]:
    """Precisions worth trying on `device`, best first, each with the reason for it.

    One named with --precision is the only one. The manager goes down the list when memory runs out.
    """
    backend = _backend(settings, device)
    if backend == "onnx":
        if settings.precision in ONNX_PRECISIONS:
            return [(settings.precision, "asked for with --precision")]
        chosen = [
            ("int8", "twice as fast as float32 on a CPU and next to it in quality"),
            ("int4", "int8 does not fit"),
        ]
        if settings.precision != "auto":
            chosen[0] = ("int8", f"a CPU is slow in {settings.precision}")
        return chosen
    if device == "cpu" or backend == "torch":
        if settings.precision not in ("auto", "float32"):
            return [("float32", f"the {backend} backend computes in float32, not {settings.precision}")]
        return [("float32", f"the {backend} backend computes in float32")]
    if settings.precision in ("float32", "float16", "bfloat16"):
        return [(settings.precision, "asked for with --precision")]
    return [("float16", "half precision, as audiocraft on a GPU")]


class NeedsWholeModel(Exception):
    """Only audiocraft's own loop can run this model, and it was loaded with one layer."""


def reads_layer_by_layer(settings: Settings, device: str) -> bool:
    """Whether `choose` is content with an LMModel of one layer and `layer_states`, the parameters of all of them.

    A converted decoder needs no torch weights at all, and a conversion one layer's at a time.
    """
    return _backend(settings, device) == "onnx"


def choose(
    settings: Settings, lm: Any, device: str, facts: ModelFacts, progress: Progress = lambda _done, _total: None
) -> Engine:
    """The engine for a loaded LMModel.

    Args:
        settings: backend, threads, the cache's folder.
        lm: audiocraft's LMModel, in eval mode on `device`. The onnx backend keeps its conditioners alone; where
            `reads_layer_by_layer` says so it may have one layer.
        device: "cpu", "cuda" or "mps".
        progress: told of a conversion.
    Raises:
        ModelBroken: a layer is missing or has another shape.
        DiskFull: there is no room for a conversion.
        InvalidParameter: --backend names one that does not run on this device.
        NeedsWholeModel: only the reference backend can run the model and it has one layer.
    """
    from modules.musicgen.backends.reference import ReferenceEngine
    from modules.musicgen.backends.weights import DecoderWeights, Unsupported
    from modules.musicgen.conditions import Conditioner
    from modules.musicgen.loop import LoopEngine
    from modules.musicgen.patterns import delay_pattern

    wanted = _backend(settings, device)
    if wanted == "reference":
        return ReferenceEngine(lm, device, facts, why="--backend reference")
    try:
        pattern = delay_pattern(lm.pattern_provider, facts.cardinality)
        weights, conditioner = DecoderWeights(lm), Conditioner(lm, device, facts)
        backend = _open(wanted, settings, weights, conditioner, pattern, device, facts, progress)
    except Unsupported as reason:
        if settings.backend != "auto":
            raise InvalidParameter(f"--backend {settings.backend}: {facts.model} needs another, {reason}") from reason
        if "layer_states" in vars(lm):
            raise NeedsWholeModel(str(reason)) from reason
        log.warning("%s runs on audiocraft's own loop: %s", facts.model, reason)
        return ReferenceEngine(lm, device, facts, why=f"audiocraft's own loop, because {reason}")
    return LoopEngine(backend, conditioner, pattern, facts)


def _backend(settings: Settings, device: str) -> str:
    """The backend's name: the one asked for, or the device's."""
    if settings.backend == "auto":
        return DEVICE_BACKENDS[device]
    if (settings.backend == "cuda" and device != "cuda") or (settings.backend == "onnx" and device != "cpu"):
        raise InvalidParameter(f"--backend {settings.backend} does not run on the device {device}")
    return settings.backend


def _open(
    wanted: str,
    settings: Settings,
    weights: DecoderWeights,
    conditioner: Conditioner,
    pattern: DelayPattern,
    device: str,
    facts: ModelFacts,
    progress: Progress,
) -> Backend:
    from modules.musicgen.backends.torch_static import TorchBackend

    if wanted == "onnx":
        from modules.musicgen.backends.onnx import open_onnx

        why = "--backend onnx" if settings.backend == "onnx" else "ONNX Runtime is the fastest on a CPU"
        threads = settings.threads or physical_cores()
        return open_onnx(weights, conditioner, pattern, facts, settings.cache_dir / "onnx", threads, why, progress)
    if wanted == "cuda":
        from modules.musicgen.backends.cuda import CudaBackend

        why = "--backend cuda" if settings.backend == "cuda" else "captured steps are the fastest on a card"
        return CudaBackend(weights, device, facts.precision, why)
    why = f"--backend {settings.backend}" if settings.backend != "auto" else f"the backend for {device}"
    return TorchBackend(weights, device, why)


def physical_cores() -> int:
    """Cores to compute with: two threads on the halves of one core only take turns."""
    import os

    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
