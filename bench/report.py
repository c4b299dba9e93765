"""What every benchmark prints: the machine it ran on, and a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def machine() -> str:
    """One line: processor, cores that this process may use, memory, system, Python, and how busy it is right now."""
    parts = [_processor(), f"{_cores()} cores", _memory(), f"{platform.system()} {platform.release()}"]
    parts.append(f"Python {platform.python_version()}")
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f"{total / 2**30:.0f} GB"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under a title and the machine's line."""
    widths = [max(len(str(row[column])) for row in (header, *rows)) for column in range(len(header))]
    lines = [_line(header, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in rows]
    return "\n".join([f"## {title}", "", machine(), "", *lines, ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


class Stopwatch:
    """Wall and processor seconds of a block; the second tells what a busy machine added to the first."""

    wall_s = 0.0
    cpu_s = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield watch
    finally:
        watch.wall_s, watch.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def fastest(work: Callable[[], T], times: int) -> tuple[Stopwatch, T]:
    """Run `work` some times; the run that other work on the machine disturbed least, and the last result."""
    runs: list[Stopwatch] = []
    for _ in range(times):
        with stopwatch() as watch:
            result = work()
        runs.append(watch)
    return min(runs, key=lambda run: run.wall_s), result


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
