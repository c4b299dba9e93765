"""A process that opens libraries and works in them until it is killed; started by test_library.

It imports everything once, then forks a worker for each line `<folder> <seed>` on its standard input and answers
with the worker's process id, so that a hundred kills do not cost a hundred starts.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from modules.contract import TrackPatch, TrackQuery
from modules.library import Library
from tests.library_parts import add, add_stems


def work(root: Path, seed: int) -> None:
    """Save, delete, clean up, split and patch, for ever."""
    chance = random.Random(seed)
    library = Library(root / "audio", root / "stems")
    names = [track.name for track in library.page(TrackQuery(limit=500))[0]]
    while True:
        deed = chance.random()
        if len(names) < 4 or deed < 0.4:
            names.append(add(library, tokens=True).name)
        elif deed < 0.6:
            library.delete(names.pop(chance.randrange(len(names))))
        elif deed < 0.65:
            library.delete_unlocked()
            names = []
        elif deed < 0.85:
            add_stems(library, chance.choice(names), root / "split")
        else:
            library.patch(chance.choice(names), TrackPatch(favourite=chance.random() < 0.5))


def main() -> None:
    for line in sys.stdin:
        root, seed = line.split()
        worker = os.fork()
        if worker == 0:
            work(Path(root), int(seed))
        print(worker, flush=True)  # noqa: T201 - the answer
        os.waitpid(worker, 0)
        print("gone", flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
