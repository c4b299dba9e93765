"""Small real tracks for tests of the library and of what stands on it; imports no test tools."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from modules import audio
from modules.contract import EngineInfo, Loudness, Track
from modules.library import Library

WHEN = datetime(2026, 3, 9, 7, 5, tzinfo=timezone.utc)
BEEP_FRAMES = 3200


def draft(name: str, **facts: Any) -> Track:
    base: dict[str, Any] = {
        "name": name, "file": "", "created_at": WHEN.isoformat(), "prompt": "warm piano", "model": "small",
        "checkpoint_hash": None, "asked": {"artist": ""}, "used": {}, "seed": 7, "format": "wav",
        "sample_rate_hz": 32_000, "channels": 1, "duration_s": 0.1, "bytes": 0,
        "loudness": Loudness(integrated_lufs=None, peak_dbfs=-6.0),
        "engine": EngineInfo(backend="reference", precision="float32", device="cpu"),
    }  # fmt: skip
    return Track(**{**base, **facts})


def write_beep(path: Path) -> None:
    audio.encode(audio.Clip(np.full((1, BEEP_FRAMES), 0.25, np.float32), 32_000), path, "wav")


def add(library: Library, *, tokens: bool = False, **facts: Any) -> Track:
    name = library.reserve_name("", facts.get("model", "small"), facts.get("seed", 7), WHEN)
    codes = np.arange(40).reshape(4, 10) if tokens else None
    return library.save(draft(name, **facts), write_beep, codes)


def add_stems(library: Library, name: str, folder: Path, stems: tuple[str, ...] = ("drums", "bass")) -> Track:
    folder.mkdir(exist_ok=True)
    for stem in stems:
        write_beep(folder / stem)
    return library.add_stems(name, {stem: folder / stem for stem in stems}, {"separator": "tiny"})


def fill(root: Path, count: int) -> None:
    """Lay `count` pairs on the disk without the library: real JSON, audio of no bytes."""
    (root / "audio").mkdir(parents=True)
    asked = {
        "prompt": "warm lo-fi piano number @", "model": "small", "duration": 30.0, "top_k": 250, "top_p": 0.0,
        "temperature": 1.0, "cfg_coef": 3.0, "seed": 7, "takes": 1, "artist": "", "format": "wav",
        "sample_rate": "original", "stems": "none",
    }  # fmt: skip
    facts = {
        "prompt": asked["prompt"], "asked": asked, "used": asked, "duration_s": 30.0, "checkpoint_hash": "c" * 64,
        "versions": {"studio": "0.1.0", "torch": "2.13.0", "audiocraft": "1.3.0", "python": "3.11.7"},
        "timings_s": {"load": 2.0, "generate": 30.0, "decode": 3.0, "encode": 0.2},
    }  # fmt: skip
    text = draft("small_@_09032026_07_05", **facts).model_dump_json(indent=2)
    for index in range(count):
        path = root / "audio" / f"small_{index}_09032026_07_05"
        path.with_suffix(".json").write_text(text.replace("@", str(index)), encoding="utf-8")
        path.with_suffix(".wav").touch()
