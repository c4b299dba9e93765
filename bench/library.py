"""How quick a large library is: cold start, a page, search, cleaning up. `python -m bench.library [--tracks N]`

The peer in the same run is a library without an index: it reads the folder's JSON for each page, as a small program
would that keeps no state.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.report import Stopwatch, fastest, seconds, stopwatch, table
from modules.contract import TrackQuery
from modules.library import Library
from tests.library_parts import fill

PROMISED = {"cold start": "1.50 s", "a page of 100": "50.0 ms", "search": "50.0 ms"}


def read_folder(folder: Path, word: str = "") -> list[dict[str, Any]]:
    """The newest hundred tracks, from the files themselves."""
    tracks = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
    found = [track for track in tracks if word in track["prompt"]]
    return sorted(found, key=lambda track: str(track["created_at"]), reverse=True)[:100]


def measure(root: Path, count: int) -> list[list[str]]:
    fill(root, count)
    folder = root / "audio"
    peer_page, _ = fastest(lambda: read_folder(folder), 3)
    peer_search, _ = fastest(lambda: read_folder(folder, "number 77"), 3)
    rows: list[list[str]] = []

    def row(name: str, run: Stopwatch, peer: Stopwatch | None = None) -> None:
        without = seconds(peer.wall_s) if peer else "-"
        rows.append([name, seconds(run.wall_s), seconds(run.cpu_s), PROMISED.get(name, "-"), without])

    with stopwatch() as start:
        library = Library(folder, root / "stems")
    row("cold start", start)
    with library:
        with stopwatch() as first:
            _, cursor, _ = library.page(TrackQuery())
        row("first page of 100", first)
        row("a page of 100", fastest(lambda: library.page(TrackQuery(cursor=cursor or "")), 20)[0], peer_page)
        row("search", fastest(lambda: library.page(TrackQuery(q="number 77")), 20)[0], peer_search)
        filters = TrackQuery(q="piano", model="small", favourite=False, sort="duration")
        row("search with three filters", fastest(lambda: library.page(filters), 20)[0])
        with stopwatch() as clear:
            library.delete_unlocked()
        row("delete all", clear)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=10_000)
    count = parser.parse_args().tracks
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), count)
    header = ["", "wall", "processor", "promised", "without an index (wall)"]
    print(table(f"A library of {count:,} tracks", header, rows))


if __name__ == "__main__":
    main()
