"""Limits in seconds that mean the same on a machine that others use too.

A promise such as "a search of 10,000 tracks takes less than 50 ms" is made for the machine that it was measured on,
when nobody else works there. A fixed piece of work is timed beside what a test measures: where it takes twice as
long as it did there, the limit is twice as long too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]

PIECE_S = 0.012
"""What one piece of work takes on the machine that the promises were measured on, when it is quiet."""
PIECES = 3


def _piece() -> int:
    """Calls, attributes, small strings and a dictionary, as most of the program's own work is."""
    seen: dict[str, int] = {}
    for number in range(60_000):
        word = str(number % 1000)
        seen[word] = seen.get(word, 0) + len(word)
    return len(seen)


def slowness(clock: Clock = time.perf_counter) -> float:
    """How many times slower than it was promised the machine is now, at least 1.

    Args:
        clock: `time.process_time` where processor time was measured, so that only what slows the processor counts.
    """
    started = clock()
    for _ in range(PIECES):
        _piece()
    return max(1.0, (clock() - started) / PIECES / PIECE_S)


def assert_within(
    limit_s: float, measure: Callable[[], float], *, clock: Clock = time.perf_counter, tries: int = 3
) -> None:
    """The best of a few measurements is within the limit, on a machine as slow as this one is meanwhile.

    Args:
        measure: does the work and returns its seconds.
    """
    took: list[tuple[float, float]] = []
    for _ in range(tries):
        seconds = measure()
        took.append((seconds, limit_s * slowness(clock)))
        if seconds < took[-1][1]:
            return
    raise AssertionError(f"(seconds, allowed): {took}")
