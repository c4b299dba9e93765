"""A studio with the real separator in a process of its own, to be killed: splits the one track there is, and says how
far it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from modules.contract import Job, LibraryChange, TrackQuery
from modules.settings import Settings
from modules.stems import Separator
from modules.studio import Studio
from tests.fakes import FakeManager


def settings_in(folder: Path) -> Settings:
    return Settings(
        data_dir=folder / "data", state_dir=folder / "state", models_dir=folder / "models", offline=True, device="cpu",
        threads=1,
    )  # fmt: skip


def studio_in(folder: Path) -> Studio:
    settings = settings_in(folder)
    return Studio(settings, manager=FakeManager(), separator=Separator(settings))


def main() -> None:
    studio = studio_in(Path(sys.argv[1]))

    def follow(job: Job) -> None:
        sys.stdout.write(f"{job.status} {job.phase} {job.done:.3f}\n")
        sys.stdout.flush()

    def ignore(_: LibraryChange) -> None:
        return

    studio.subscribe(follow, ignore)
    studio.start()
    (track,) = studio.tracks(TrackQuery())[0]
    studio.submit({"kind": "split", "client_id": "first", "track": track.name})
    studio.submit({"kind": "split", "client_id": "second", "track": track.name, "stems": "bass"})
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
