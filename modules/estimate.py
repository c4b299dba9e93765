"""What jobs took on this machine, kept over restarts, and what the next one should take."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from modules.contract import DiskFull
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
