"""The embedded model as a person meets it: from a request to the finished track on the disk.

    python -m bench.tiny [--seconds 10] [--repeat 5] [--threads 2]

The program's own studio does it all: queue, engine in the precision it picks, codec, WAV and JSON in the library. The
model is loaded before, so a run is what each further prompt costs. Every run has a prompt and a seed of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import report
from modules.settings import Settings
from modules.studio import Studio

PROMPTS = (
    "techno, dark, 130 bpm, drum machine, acid bass, A minor",
    "спокойный эмбиент, пэд, без барабанов",
    "jazz with piano and upright bass, 120 bpm",
    "drums only, rock, 110 bpm",
    "solo piano, romantic, slow",
)
FLOOR_S, AIM_S = 6.0, 2.0
PATIENCE_S = 300.0


def run(studio: Studio, number: int, seconds: float) -> tuple[float, Any]:
    """Seconds from the request to the finished job, and the job."""
    began = time.perf_counter()
    request = {
        "kind": "generate", "client_id": f"bench-{number}", "prompt": PROMPTS[number % len(PROMPTS)],
        "duration": seconds, "seed": number, "model": "tiny", "format": "wav",
    }  # fmt: skip
    job = studio.jobs_queue.wait(studio.submit(request).id, PATIENCE_S)
    return time.perf_counter() - began, job


def on_disk(studio: Studio, job: Any) -> float:
    """Megabytes of the job's track, its JSON beside it.

    Raises:
        RuntimeError: the job failed, or a file is missing.
    """
    if job.status != "done":
        raise RuntimeError(f"job {job.id} ended as {job.status}: {job.error}")
    path = studio.audio_file(job.tracks[0])
    if not path.with_suffix(".json").is_file():
        raise RuntimeError(f"{path.name} has no JSON")
    return path.stat().st_size / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        studio = Studio(
            Settings(
                data_dir=root / "data", state_dir=root / "state", cache_dir=root / "cache", offline=True, device="cpu",
                threads=args.threads, model="tiny",
            )
        )  # fmt: skip
        studio.start()
        try:
            cold, job = run(studio, 0, args.seconds)
            on_disk(studio, job)
            runs = [run(studio, number, args.seconds) for number in range(1, args.repeat + 1)]
            size = on_disk(studio, runs[-1][1])
        finally:
            studio.stop()
    times = [wall for wall, _ in runs]
    rows = [
        ["first run: libraries, conversion and model loaded", report.seconds(cold), ""],
        [f"prompt to file, {args.seconds:g} s, median of {len(times)}", report.seconds(statistics.median(times)),
         f"floor {FLOOR_S:g} s, aim {AIM_S:g} s for 10 s"],
        ["fastest and slowest", f"{report.seconds(min(times))}, {report.seconds(max(times))}", f"{size:.1f} MB each"],
    ]  # fmt: skip
    print(report.table("tiny, from the request to the track", ["", "time", ""], rows))


if __name__ == "__main__":
    main()
