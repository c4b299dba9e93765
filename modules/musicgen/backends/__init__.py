"""Ways of running the decoder. One file each; `choose` picks, `ladder` says which arithmetic to try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.musicgen.engine import Engine, ModelFacts
    from modules.settings import Settings


def ladder(settings: Settings, device: str) -> list[tuple[str, str]]:
    """Precisions worth trying on `device`, best first, each with the reason for it.

    One named with --precision is the only one. The manager goes down the list when memory runs out.
    """
    if device == "cpu":
        if settings.precision not in ("auto", "float32"):
            return [("float32", f"the reference backend on a CPU computes in float32, not {settings.precision}")]
        return [("float32", "a CPU")]
    if settings.precision in ("float32", "float16", "bfloat16"):
        return [(settings.precision, "asked for with --precision")]
    return [("float16", "half precision, as audiocraft on a GPU")]


def choose(settings: Settings, lm: Any, device: str, facts: ModelFacts) -> Engine:
    """The engine for a loaded LMModel.

    Args:
        settings: backend, threads and what else a backend may want.
        lm: audiocraft's LMModel, in eval mode on `device`, in the precision `facts` names.
        device: "cpu", "cuda" or "mps".
    """
    from modules.musicgen.backends.reference import ReferenceEngine

    why = "asked for" if settings.backend == "reference" else "the only backend of this version"
    return ReferenceEngine(lm, device, facts, why=why)
