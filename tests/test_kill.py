"""kill -9 of the whole program at a hundred random moments while it makes, splits and deletes tracks.

The children come from a fork server that has everything imported already, so that a life costs milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import soundfile

from modules.contract import Conflict, NotFound, QueueFull, Track, TrackQuery
from modules.settings import Settings
from modules.studio import Studio
from tests.fakes import FakeEngine, FakeManager, FakeSeparator

KILLS = 100
QUEUE = 6
MOST_TRACKS = 12
PATIENCE_S = 30.0


def studio_in(folder: Path) -> Studio:
    settings = Settings(data_dir=folder / "data", state_dir=folder / "state", max_queue=QUEUE)
    return Studio(settings, manager=FakeManager(engine=FakeEngine(step_s=0.0002)), separator=FakeSeparator())


def live(folder: Path, first_client: int, seed: int) -> None:
    """A life: fill the queue, delete at random, until the kill. Promises and starts are written down at once."""
    chance = random.Random(seed)
    promised = os.open(folder / "promised", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    started = os.open(folder / "started", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    studio = studio_in(folder)
    run = studio.jobs_queue._run

    def noted_run(job: Any, context: Any) -> None:
        os.write(started, f"{job.client_id}\n".encode())
        run(job, context)

    studio.jobs_queue._run = noted_run
    studio.start()
    client = first_client
    while True:
        with suppress(QueueFull):
            studio.submit(some_request(studio, f"c{client:06d}", chance))
            os.write(promised, f"c{client:06d}\n".encode())
            client += 1
        delete_some(studio, chance)
        time.sleep(0.001)


def some_request(studio: Studio, client_id: str, chance: random.Random) -> dict[str, Any]:
    tracks = studio.tracks(TrackQuery(limit=50))[0]
    body: dict[str, Any] = {
        "client_id": client_id, "prompt": "rain", "duration": 1.0, "takes": chance.choice([1, 1, 2]),
        "format": chance.choice(["wav", "flac"]), "stems": chance.choice(["none", "none", "bass"]),
    }  # fmt: skip
    if tracks and chance.random() < 0.3:
        body["continuation"] = {"track": chance.choice(tracks).name, "mode": "continue"}
    elif tracks and chance.random() < 0.2:
        return {"kind": "split", "client_id": client_id, "track": chance.choice(tracks).name}
    return {"kind": "generate", **body}


def delete_some(studio: Studio, chance: random.Random) -> None:
    tracks = studio.tracks(TrackQuery(limit=500))[0]
    if len(tracks) > MOST_TRACKS and chance.random() < 0.1:
        studio.clear()
    elif len(tracks) > 3:
        with suppress(NotFound, Conflict):
            studio.delete(chance.choice(tracks).name)


# ------------------------------------------------------------------------------------------------- checking
def check_folders(folder: Path, studio: Studio) -> None:
    """Every pair is whole and nothing else is there."""
    settings = studio.settings
    expected: set[str] = set()
    for track in studio.tracks(TrackQuery(limit=500))[0]:
        expected |= {track.file, f"{track.name}.json"}
        expected |= {f"{track.name}.tokens.npz"} if track.has_tokens else set()
        check_track(studio, settings, track)
    assert {path.name for path in settings.audio_dir.iterdir()} - {".studio"} == expected
    assert list((settings.audio_dir / ".studio" / "tmp").iterdir()) == []
    with_stems = {track.name for track in studio.tracks(TrackQuery(limit=500, stems=True))[0]}
    assert {path.name for path in settings.stems_dir.iterdir()} == with_stems
    assert not list((settings.state_dir / "live").glob("*"))
    assert not [path for path in settings.jobs_dir.iterdir() if path.suffix not in (".json", "")]


def check_track(studio: Studio, settings: Settings, track: Track) -> None:
    path = studio.audio_file(track.name)
    assert path.stat().st_size == track.bytes
    held = soundfile.info(str(path))
    assert held.frames / held.samplerate == pytest.approx(track.duration_s, abs=1e-3)
    assert json.loads((settings.audio_dir / f"{track.name}.json").read_text())["name"] == track.name
    if track.has_tokens:
        assert studio.library.tokens(track.name) is not None
    folder = settings.stems_dir / track.name
    there = {stem.name for stem in folder.iterdir()} if folder.exists() else set()
    assert there == set(track.stems.values())


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def wait(condition: Callable[[], bool], child: BaseProcess | None = None) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert child is None or child.is_alive(), "the program ended by itself"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def wait_for_lines(path: Path, count: int, child: BaseProcess) -> None:
    wait(lambda: len(lines(path)) >= count, child)


@pytest.mark.slow
def test_a_hundred_kills_leave_whole_pairs_and_the_whole_queue(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.test_kill", "pyloudnorm"])
    chance = random.Random(11)
    promised: list[str] = []
    made = 0
    for kill in range(KILLS):
        # The last client_id again: the answer to it may have died with the program before.
        first = max((int(client[1:]) for client in promised), default=0)
        child = server.Process(target=live, args=(tmp_path, first, kill))
        child.start()
        # Every fifth dies while it starts; the others once a few jobs are under way, anywhere in what they do.
        if kill % 5:
            wait_for_lines(tmp_path / "started", len(lines(tmp_path / "started")) + chance.randrange(1, 3), child)
        time.sleep(chance.uniform(0.0, 0.06))
        child.kill()
        child.join()
        promised = lines(tmp_path / "promised")
        studio = studio_in(tmp_path)
        check_folders(tmp_path, studio)
        made += studio.library.count()
        studio.stop()

    studio = studio_in(tmp_path)
    waiting = [job.client_id for job in studio.jobs_queue.active()]
    studio.start()
    wait(lambda: not studio.jobs_queue.active())
    studio.stop()
    final = {job.client_id: job.status for job in studio.jobs(finished=10_000)}
    before = lines(tmp_path / "started")
    assert made > KILLS, "the program hardly made anything"
    assert Counter(before).most_common(1)[0][1] == 1, "a job ran twice"
    assert not set(before) & set(waiting), "a job ran, and waits to run again"
    assert set(promised) <= final.keys(), "a promised job is lost"
    assert set(final.values()) <= {"done", "failed", "interrupted"}
    assert Counter(final.values())["interrupted"] <= KILLS
    failed = [job.error for job in studio.jobs(finished=10_000) if job.status == "failed"]
    # A track may be gone by the time a job that goes on from it runs, when it was deleted before it was asked for.
    assert {error.code for error in failed if error} <= {"not_found"}
