"""A studio without a model: the real interface over real files in a folder, so that the web layer is tested alone."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import threading
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from modules import contract
from modules.contract import (
    Conflict,
    GenerateRequest,
    Health,
    Hello,
    Job,
    LibraryChange,
    Loudness,
    Mix,
    ModelInfo,
    NotFound,
    QueueFull,
    SeparatorInfo,
    StemNotes,
    TooLarge,
    Track,
    TrackPatch,
    TrackQuery,
    UnknownModel,
    Upload,
)
from modules.settings import VERSION, Settings

WHEN = "2026-11-24T06:15:00+00:00"
RATE_HZ = 32_000


def write_wav(path: Path, seconds: float = 0.5) -> None:
    """A rising ramp: every sample differs from its neighbours, so a wrong range is seen."""
    frames = int(seconds * RATE_HZ)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(struct.pack(f"<{frames}h", *((n * 7) % 30_000 for n in range(frames))))


class FakeStudio:
    """Implements modules.web.routes.Studio. Jobs only move when a test moves them."""

    def __init__(self, settings: Settings, *, capacity: int = 8) -> None:
        self.settings, self.capacity = settings, capacity
        settings.audio_dir.mkdir(parents=True, exist_ok=True)
        settings.stems_dir.mkdir(parents=True, exist_ok=True)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        self.library: dict[str, Track] = {}
        self.queue: dict[str, Job] = {}
        self.blocks: dict[str, list[bytes]] = {}
        self.temporary: list[Path] = []
        self.uploaded: list[tuple[str, int]] = []
        self.mixes: list[Mix] = []
        self.noted: set[tuple[str, str]] = set()
        self.failing: Exception | None = None
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._listeners: list[tuple[Callable[[Job], None], Callable[[LibraryChange], None]]] = []

    # ------------------------------------------------------------------------------- for the tests
    def add_track(self, name: str, *, stems: tuple[str, ...] = (), locked: bool = False, seconds: float = 0.5) -> Track:
        path = self.settings.audio_dir / f"{name}.wav"
        write_wav(path, seconds)
        folder = self.settings.stems_dir / name
        for stem in stems:
            folder.mkdir(parents=True, exist_ok=True)
            write_wav(folder / f"{stem}.wav", seconds)
        track = Track(
            name=name, file=path.name, created_at=WHEN, prompt="a test", model="small", checkpoint_hash=None, asked={},
            used={}, seed=1, format="wav", sample_rate_hz=RATE_HZ, channels=1, duration_s=seconds,
            bytes=path.stat().st_size, loudness=Loudness(integrated_lufs=-20.0, peak_dbfs=-3.0), locked=locked,
            stems={stem: f"{stem}.wav" for stem in stems},
        )  # fmt: skip
        self.library[name] = track
        self.tell_library(LibraryChange(added=[track]))
        return track

    def change_job(self, job_id: str, **changes: Any) -> Job:
        with self._lock:
            job = self.queue[job_id]
            self.queue[job_id] = job = job.model_copy(update={"rev": job.rev + 1, **changes})
        for on_job, _ in self._listeners:
            on_job(job)
        return job

    def tell_library(self, change: LibraryChange) -> None:
        for _, on_library in self._listeners:
            on_library(change)

    # --------------------------------------------------------------------------------- the interface
    def subscribe(self, on_job: Callable[[Job], None], on_library: Callable[[LibraryChange], None]) -> None:
        self._listeners.append((on_job, on_library))

    def hello(self) -> Hello:
        return Hello(version=VERSION, jobs=self.jobs(), tracks=len(self.library), models=self.models())

    def health(self) -> Health:
        if self.failing:
            raise self.failing
        return Health(
            version=VERSION, device="cpu", device_name="test", stack="cold", model=None, model_state="none",
            queue={"queued": len(self.queue), "running": 0},
        )  # fmt: skip

    def models(self) -> list[ModelInfo]:
        return [
            ModelInfo(
                id="small", title="Small", repo="facebook/musicgen-small", params_m=300.0, channels=1, melody=False,
                max_window_s=30.0, licence="CC-BY-NC-4.0", state="downloadable", download_bytes=1,
            )
        ]  # fmt: skip

    def load_model(self, model_id: str, client_id: str | None = None) -> Job:
        if model_id != "small":
            raise UnknownModel(f"model: {model_id!r} is not in the catalogue", field="model")
        return self._enqueue("load", client_id or f"load-{next(self._ids)}", {"kind": "load", "model": model_id})

    def unload_model(self, model_id: str) -> None:
        if model_id != "small":
            raise UnknownModel(f"model: {model_id!r} is not in the catalogue", field="model")

    def submit(self, body: Any) -> Job:
        request = contract.parse_submitted(body)
        kind = "generate" if isinstance(request, GenerateRequest) else "split"
        return self._enqueue(kind, request.client_id, request.model_dump(mode="json", by_alias=True))

    def _enqueue(self, kind: Any, client_id: str, request: dict[str, Any]) -> Job:
        with self._lock:
            for job in self.queue.values():
                if job.client_id == client_id:
                    return job
            if len(self.queue) >= self.capacity:
                raise QueueFull(f"{self.capacity} jobs wait already", details={"retry_after_s": 7})
            job = Job(
                id=f"job{next(self._ids)}", client_id=client_id, rev=1, kind=kind, status="queued", phase="queued",
                created_at=WHEN, request=request,
            )  # fmt: skip
            self.queue[job.id] = job
        for on_job, _ in self._listeners:
            on_job(job)
        return job

    def estimate(self, body: Any) -> Mapping[str, Any]:
        contract.parse_submitted(body)
        return {"seconds": 3.0, "fits": True}

    def jobs(self) -> list[Job]:
        return list(self.queue.values())

    def job(self, job_id: str) -> Job:
        if job_id not in self.queue:
            raise NotFound("there is no such job", field="id")
        return self.queue[job_id]

    def cancel(self, job_id: str, *, keep: bool = False) -> Job:
        job = self.job(job_id)
        if job.status == "done":
            raise Conflict("the job is done already", field="id")
        return self.change_job(job_id, status="cancelled", phase="finished", unknown_words=["kept"] if keep else [])

    def live_audio(self, job_id: str) -> Iterator[bytes] | None:
        job = self.job(job_id)
        if job_id not in self.blocks:
            if job.status == "done":
                return None
            raise Conflict("the job has no sound yet", field="id")
        return iter(self.blocks[job_id])

    def tracks(self, query: TrackQuery) -> tuple[list[Track], str | None, int]:
        found = [track for track in self.library.values() if query.q in track.name]
        page = found[: query.limit]
        return page, (page[-1].name if len(found) > len(page) else None), len(found)

    def track(self, name: str) -> Track:
        if name not in self.library:
            raise NotFound(f"there is no track {name[:120]!r}", field="name")
        return self.library[name]

    def patch(self, name: str, patch: TrackPatch) -> Track:
        changes = patch.model_dump(exclude_none=True)
        self.library[name] = track = self.track(name).model_copy(update=changes)
        self.tell_library(LibraryChange(changed=[track]))
        return track

    def delete(self, name: str) -> None:
        if self.track(name).locked:
            raise Conflict("the track is locked", field="name")
        del self.library[name]
        (self.settings.audio_dir / f"{name}.wav").unlink()
        shutil.rmtree(self.settings.stems_dir / name, ignore_errors=True)
        self.tell_library(LibraryChange(removed=[name]))

    def clear(self) -> tuple[int, int]:
        names = [name for name, track in self.library.items() if not track.locked]
        for name in names:
            self.delete(name)
        return len(names), len(self.library)

    def audio_file(self, name: str) -> Path:
        return self.settings.audio_dir / self.track(name).file

    def stem_file(self, name: str, stem: str) -> Path:
        return self.settings.stems_dir / name / self.track(name).stems[stem]

    def converted(self, name: str, audio_format: str, sample_rate: str) -> Path:
        path = self.settings.state_dir / f"{next(self._ids)}.{audio_format}"
        path.write_bytes(f"{audio_format} {sample_rate} ".encode() + os.urandom(200_000))
        self.temporary.append(path)
        return path

    def peaks(self, name: str, bins: int, stem: str = "") -> list[list[float]]:
        self.track(name)
        return [[-0.5, 0.5]] * bins

    def separators(self) -> list[SeparatorInfo]:
        facts = {"title": "Fake", "stems": ["drums"], "licence": "CC0", "state": "ready", "download_bytes": 0}
        return [SeparatorInfo.model_validate({"id": "fake", **facts})]

    def notes(self, name: str, stem: str) -> StemNotes:
        self.noted.add((self.track(name).name, stem))
        return StemNotes(seconds=0.5, notes=[(0.0, 0.4, 60, 90)])

    def midi(self, name: str, stem: str) -> bytes:
        if (name, stem) not in self.noted:
            raise NotFound("the notes are not known yet", field="stem")
        return b"MThd"

    def mixdown(self, name: str, stream: BinaryIO, mix: Mix) -> Track:
        self.mixes.append(mix)
        return self.add_track(f"{name}_mix{self.upload(stream, name).id}")

    def upload(self, stream: BinaryIO, filename: str) -> Upload:
        size = 0
        while block := stream.read(64 * 1024):
            size += len(block)
            if size > self.settings.max_upload_mb * 1024 * 1024:
                raise TooLarge("the upload is too large", field="file")
        self.uploaded.append((filename, size))
        name = contract.clean_text(filename)[:120] or "clip"
        return Upload(id=f"up{next(self._ids)}", name=name, seconds=1.0, sample_rate_hz=RATE_HZ, channels=1)
