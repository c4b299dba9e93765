"""What jobs took on this machine, kept over restarts, and what the next one should take."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from modules.contract import DiskFull, GenerateRequest, ModelInfo
from modules.disk import write_atomic

log = logging.getLogger(__name__)

_WEIGHT = 0.4
"""How much the newest measurement counts against what was known."""
_MAX_ENTRIES = 500


class Measurements:
    """Smoothed figures by name, e.g. ("steps_per_s", "small", "onnx", "int8", "cpu", "1").

    A damaged or missing file is no error: it is measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._figures = _read(path)

    def get(self, *key: str) -> float | None:
        """The figure, or None when nothing was measured."""
        with self._lock:
            return self._figures.get("|".join(key))

    def nearest(self, *key: str) -> float | None:
        """The figure under the longest beginning of `key` that something was measured for (the newest one)."""
        for length in range(len(key), 1, -1):
            start = "|".join(key[:length])
            with self._lock:
                found = [figure for name, figure in self._figures.items() if f"{name}|".startswith(f"{start}|")]
            if found:
                return found[-1]
        return None

    def add(self, figure: float, *key: str) -> None:
        """Take one measurement in; it is on disk when this returns, if the disk lets it."""
        name = "|".join(key)
        with self._lock:
            old = self._figures.pop(name, figure)
            self._figures[name] = old + _WEIGHT * (figure - old)
            while len(self._figures) > _MAX_ENTRIES:
                del self._figures[next(iter(self._figures))]
            data = json.dumps(self._figures, indent=1).encode()
        try:
            write_atomic(self._path, data)
        except (OSError, DiskFull):
            # A figure that is lost is measured again by the next job.
            log.warning("the measurements cannot be kept", exc_info=True)


def _read(path: Path) -> dict[str, float]:
    try:
        body = json.loads(path.read_bytes())
        return {str(name): float(figure) for name, figure in body.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


_READ_BYTES_PER_S = {"cpu": 15e9, "cuda": 400e9, "mps": 60e9}
"""How fast a usual machine reads memory: a guess for the time before the first measurement."""
_RENDERED_X = {"cpu": 0.006, "cuda": 1.0, "mps": 0.1}
"""How many seconds of sound Multi-Band Diffusion renders in one, by the same kind of guess."""
_LEAST_STEP_BYTES = 20e6
_LOAD_BYTES_PER_S = 400e6
_FIRST_SOUND_FRAMES = 30


def forecast(
    known: Measurements, request: GenerateRequest, info: ModelInfo, status: dict[str, Any], step_bytes: int
) -> dict[str, Any]:
    """See Studio.estimate. `step_bytes` is what a step reads from memory."""
    engine = status.get("engine")
    device = engine.device if engine else str(status.get("device", "cpu"))
    backend, precision = (engine.backend, engine.precision) if engine else ("", "")
    measured = known.nearest("steps_per_s", info.id, backend, precision, device, str(request.takes))
    pace = measured or _guessed_steps_per_s(device, step_bytes, request)
    load_s = 0.0
    if status.get("model") != info.id:
        load_s = known.get("load_s", info.id) or (info.params_m or 0.0) * 4e6 / _LOAD_BYTES_PER_S
    frames = request.made_s * info.frame_rate_hz
    decode_x = known.get("decode_x", info.id)
    rest_s = 0.0 if not decode_x else (request.takes - 1) * request.made_s / decode_x
    sure = measured is not None
    if request.decoder == "diffusion":
        rendered_x = known.get(*render_key(device))
        sure = sure and rendered_x is not None
        rest_s = request.takes * request.made_s / (rendered_x or _by_device(_RENDERED_X, device))
    return {
        "seconds": round(load_s + frames / pace + rest_s, 1),
        "first_sound_s": round(load_s + _FIRST_SOUND_FRAMES / pace, 1),
        "measured": sure,
    }


def render_key(device: str) -> tuple[str, ...]:
    """Under what name the pace of Multi-Band Diffusion is remembered: it is one network for all models."""
    return ("render_x", device)


def _by_device(figures: dict[str, float], device: str) -> float:
    return next((figure for name, figure in figures.items() if device.startswith(name)), figures["cpu"])


def _guessed_steps_per_s(device: str, step_bytes: int, request: GenerateRequest) -> float:
    """Reading memory is what a step takes; takes share the weights."""
    speed = _by_device(_READ_BYTES_PER_S, device)
    return min(speed / max(step_bytes, _LEAST_STEP_BYTES), 400.0) / (1 + 0.2 * (request.takes - 1))
