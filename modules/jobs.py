"""The queue and its one worker thread: order, progress, cancel, recovery. Knows no audio.

Each job has one JSON file, its journal, written before a change of status is shown to anyone, so that what a
person has seen is what a restart finds. Queued jobs go on in their order after a crash; the one that was running
becomes `interrupted`, because nobody can tell how far it got.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modules.contract import (
    FINAL_STATUSES,
    Cancelled,
    Conflict,
    DiskFull,
    Error,
    Internal,
    Job,
    JobPhase,
    JobRequest,
    JobStatus,
    NotFound,
    OutOfMemory,
    QueueFull,
    StudioError,
    is_disk_full,
)
from modules.disk import sweep_parts, sync_folder, write_atomic

log = logging.getLogger(__name__)

KEEP_FINISHED = 500
"""Finished jobs whose journals stay, so that a repeated client_id still finds its job after a restart."""
PUBLISH_EVERY_S = 0.1
"""Progress is published at most this often; a change of phase and the end are published at once."""
REVS_A_RUN = 2**24
"""Room for one run's revisions. A restart starts above it, so a page never keeps a stale snapshot for the newest."""
_SMOOTHING_S = 3.0
_FALLBACK_JOB_S = 10.0

Run = Callable[[Job, "JobContext"], None]


class Pace:
    """How fast a phase moves, in its own units a second, smoothed over a few seconds."""

    def __init__(self, prior: float | None = None) -> None:
        self.rate = prior
        self._measured = False
        self._at = 0.0
        self._done: float | None = None

    def update(self, now: float, done: float) -> None:
        """Take in that `done` units were done at `now` seconds."""
        if self._done is None or done < self._done:
            self._at, self._done = now, done
            return
        elapsed, gained = now - self._at, done - self._done
        # Batches of units arrive at once; a rate over less than 50 ms is noise.
        if elapsed < 0.05 or gained <= 0:
            return
        weight = 1.0 if not self._measured else 1 - math.exp(-elapsed / _SMOOTHING_S)
        old = gained / elapsed if self.rate is None else self.rate
        self.rate = old + weight * (gained / elapsed - old)
        self._measured = True
        self._at, self._done = now, done

    def seconds_for(self, units: float) -> float | None:
        """Seconds that `units` more will take, or None while nothing is known."""
        return None if not self.rate else max(0.0, units) / self.rate


@dataclass
class _Entry:
    """A job with what the queue alone needs to know about it."""

    job: Job
    seq: int
    cancel: bool = False
    keep: bool = False
    pace: Pace = field(default_factory=Pace)
    started: float = 0.0
    published: float = -math.inf
    phase_ended: bool = False


def _in_words(error: Exception) -> StudioError:
    """What a person is told of an error that no room below has a name for."""
    if isinstance(error, MemoryError):
        return OutOfMemory("the job needs more memory than there is; close other programs, or make the music shorter")
    if isinstance(error, OSError) and is_disk_full(error):
        return DiskFull("the disk is full: free some space and try again")
    return Internal("something went wrong inside the program; the log says what. The job can be tried again")


class JobContext:
    """What a running job sees of the queue: where to report, and whether to go on."""

    def __init__(self, queue: JobQueue, entry: _Entry) -> None:
        self._queue = queue
        self._entry = entry

    @property
    def cancelled(self) -> bool:
        """True once the job should stop, whoever asked."""
        return self._entry.cancel or self._queue.stopping

    @property
    def keep(self) -> bool:
        """True when the person who cancelled wants what was made so far."""
        return self._entry.cancel and self._entry.keep

    def check(self) -> None:
        """Unwind the job if it should stop.

        Raises:
            Cancelled: a person cancelled it or the program is shutting down.
        """
        if self.cancelled:
            raise Cancelled("the job was cancelled")

    def progress(
        self, phase: JobPhase, done: float = 0, total: float = 0, rate: float | None = None, *, then_s: float = 0.0
    ) -> None:
        """Report where the job is.

        Args:
            phase: what it is doing.
            done, total: in the phase's own unit; total 0 when not known.
            rate: units a second if the caller knows better than the queue's own measurement.
            then_s: seconds that the phases after this one will take, added to the ETA.
        """
        self._queue._progress(self._entry, phase, done, total, rate, then_s)  # noqa: SLF001 - two halves of one thing

    def live(self, seconds: float) -> None:
        """Say that this much of the job's audio can be listened to."""
        first = not self._entry.job.live
        self._queue._update(self._entry, at_once=first, live=True, live_s=round(seconds, 3))  # noqa: SLF001

    def unknown_words(self, words: Sequence[str]) -> None:
        """Say which words of the prompt the model does not read."""
        self._queue._update(self._entry, at_once=True, unknown_words=list(words))  # noqa: SLF001

    def tracks(self, names: list[str]) -> None:
        """Record the tracks that the job has made so far; they survive a crash of the job."""
        self._queue._record_tracks(self._entry, names)  # noqa: SLF001


class JobQueue:
    """Jobs in order, one at a time, on one thread.

    Args:
        directory: where the journals are kept.
        run: does a job; reports through its JobContext; raises StudioError to fail, Cancelled to unwind.
        capacity: jobs that may wait.
        on_change: called after every published change with the full snapshot, from any thread, outside the locks.
        after_job: called on the worker's thread once a job that ran has its final status.
        keep_finished: how many finished jobs are remembered.
    """

    def __init__(
        self, directory: Path, run: Run, *, capacity: int = 32, on_change: Callable[[Job], None] | None = None,
        after_job: Callable[[Job], None] | None = None, keep_finished: int = KEEP_FINISHED,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._run = run
        self._capacity = capacity
        self._on_change = on_change or (lambda _job: None)
        self._after_job = after_job or (lambda _job: None)
        self._keep_finished = keep_finished
        # _transition covers a change of status with its disk write; _state only memory, so that progress and
        # snapshots never wait for the disk. Taken in this order.
        self._transition = threading.Lock()
        self._state = threading.Condition(threading.Lock())
        self._entries: dict[str, _Entry] = {}
        self._by_client: dict[str, str] = {}
        self._waiting: deque[_Entry] = deque()
        self._finished: deque[str] = deque()
        self._running: _Entry | None = None
        self._job_s: dict[str, float] = {}
        self._rates: dict[tuple[str, str], float] = {}
        self._next_seq = 1
        self._worker: threading.Thread | None = None
        self.stopping = False
        self._recover()

    # ------------------------------------------------------------------------------------------- asking
    def submit(self, request: JobRequest) -> Job:
        """Put a job at the end of the queue; the same client_id is the same job, even after a restart.

        Raises:
            QueueFull: details hold `retry_after_s`, when a place should be free.
            Conflict: the program is shutting down.
            DiskFull: the journal cannot be written; the job was not taken.
        """
        with self._transition:
            known = self.find(request.client_id)
            if known is not None:
                return known
            if self.stopping:
                raise Conflict("the program is shutting down")
            self._require_a_place()
            entry = self._new_entry(request)
            self._write(entry.job, entry.seq)
            with self._state:
                self._entries[entry.job.id] = entry
                self._by_client[entry.job.client_id] = entry.job.id
                self._waiting.append(entry)
                self._state.notify_all()
        self._on_change(entry.job)
        return entry.job

    def cancel(self, job_id: str, *, keep: bool = False) -> Job:
        """Cancel a queued job at once, a running one within one of its steps.

        Args:
            keep: what a running job has made so far should become a track.

        Raises:
            NotFound: no such job.
            Conflict: it has ended otherwise already. Cancelling a cancelled job is no error.
        """
        with self._transition:
            with self._state:
                entry = self._entry(job_id)
                status = entry.job.status
                if status == "running":
                    entry.keep = entry.keep or keep
                    entry.cancel = True
                    return entry.job
            if status == "cancelled":
                return entry.job
            if status != "queued":
                raise Conflict(f"job {job_id} is {status} already")
            changed = self._end(entry, "cancelled", None)
        self._publish(changed)
        return entry.job

    def job(self, job_id: str) -> Job:
        """The job's snapshot. Raises NotFound."""
        with self._state:
            return self._entry(job_id).job

    def find(self, client_id: str) -> Job | None:
        """The job that was submitted under `client_id`, if it is remembered."""
        with self._state:
            job_id = self._by_client.get(client_id)
            return None if job_id is None else self._entries[job_id].job

    def jobs(self, finished: int | None = None) -> list[Job]:
        """Snapshots in the order of submission; `finished` limits the ended ones to the last so many."""
        with self._state:
            entries = sorted(self._entries.values(), key=lambda entry: entry.seq)
            jobs = [entry.job for entry in entries]
        ended = [job.id for job in jobs if job.status in FINAL_STATUSES]
        hidden = set() if finished is None else set(ended[: max(0, len(ended) - finished)])
        return [job for job in jobs if job.id not in hidden]

    def active(self) -> list[Job]:
        """The running job, then the waiting ones in order."""
        with self._state:
            running = [self._running.job] if self._running else []
            return running + [entry.job for entry in self._waiting]

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Block until the job has ended or the time is over; returns the snapshot either way. Raises NotFound."""
        with self._state:
            entry = self._entry(job_id)
            self._state.wait_for(lambda: entry.job.status in FINAL_STATUSES, timeout_s)
            return entry.job

    # ----------------------------------------------------------------------------------------- lifetime
    def start(self) -> None:
        """Start the worker thread; what a restart found queued goes on."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="jobs", daemon=True)
            self._worker.start()

    def stop(self, timeout_s: float = 4.0) -> None:
        """Stop taking jobs; the running one is interrupted within one of its steps, queued ones stay queued.

        Returns after `timeout_s` at the latest: a job that does not come back by then is written down as
        interrupted and its thread dies with the program.
        """
        with self._state:
            self.stopping = True
            self._state.notify_all()
        worker = self._worker
        if worker is None:
            return
        worker.join(timeout_s)
        with self._transition:
            entry = self._running
            stuck = entry is not None and worker.is_alive()
            changed = self._end(entry, "interrupted", None) if entry is not None and stuck else []
        self._publish(changed)

    # ----------------------------------------------------------------------------------------- the worker
    def _work(self) -> None:
        while True:
            entry = self._next()
            if entry is None:
                return
            status, error = self._run_one(entry)
            with self._transition:
                changed = self._end(entry, status, error)
            self._publish_safely(changed)
            self._clean_up(entry.job)

    def _next(self) -> _Entry | None:
        """The next job, already written down as running; None when the queue stops."""
        while True:
            with self._state:
                self._state.wait_for(lambda: self.stopping or bool(self._waiting))
            with self._transition:
                if self.stopping:
                    return None
                if not self._waiting:
                    continue
                entry = self._waiting[0]
                job = self._next_rev(entry.job, status="running", phase="preparing", position=0)
                self._write_or_log(job, entry.seq)
                with self._state:
                    self._waiting.popleft()
                    self._running = entry
                    entry.job, entry.started, entry.published = job, time.monotonic(), time.monotonic()
                    changed = [job, *self._renumber()]
            self._publish_safely(changed)
            return entry

    def _run_one(self, entry: _Entry) -> tuple[JobStatus, Error | None]:
        try:
            self._run(entry.job, JobContext(self, entry))
        except Cancelled:
            return ("cancelled" if entry.cancel else "interrupted"), None
        except StudioError as error:
            log.warning("job %s failed: %s: %s", entry.job.id, error.code, error.message)
            return "failed", error.to_error()
        except Exception as error:
            # The one place that catches everything: the worker must outlive any job.
            log.exception("job %s failed", entry.job.id)
            return "failed", _in_words(error).to_error()
        return "done", None

    def _end(self, entry: _Entry, status: JobStatus, error: Error | None) -> list[Job]:
        """Give the job its final status, on disk first. Called with _transition held; returns what to publish."""
        if entry.job.status in FINAL_STATUSES:
            return []
        with self._state:
            job = self._next_rev(entry.job, status=status, phase="finished", error=error, eta_s=None, position=0)
        self._write_or_log(job, entry.seq)
        with self._state:
            if entry.job.status == "running":
                self._learn(entry)
                self._running = None
            else:
                self._waiting.remove(entry)
            entry.job = job
            self._finished.append(job.id)
            changed = [job, *self._renumber()]
            forgotten = self._forget()
            self._state.notify_all()
        for job_id in forgotten:
            self._path(job_id).unlink(missing_ok=True)
        return changed

    def _learn(self, entry: _Entry) -> None:
        """Remember how long a job of this kind takes and how fast its phases move."""
        took = time.monotonic() - entry.started
        old = self._job_s.get(entry.job.kind, took)
        self._job_s[entry.job.kind] = old + 0.3 * (took - old)
        self._keep_rate(entry)

    def _keep_rate(self, entry: _Entry) -> None:
        if entry.pace.rate:
            self._rates[entry.job.kind, entry.job.phase] = entry.pace.rate

    def _forget(self) -> list[str]:
        """Drop the oldest finished jobs above the limit; returns their ids."""
        forgotten = []
        while len(self._finished) > self._keep_finished:
            job_id = self._finished.popleft()
            entry = self._entries.pop(job_id)
            self._by_client.pop(entry.job.client_id, None)
            forgotten.append(job_id)
        return forgotten

    def _renumber(self) -> list[Job]:
        """Bring the waiting jobs' positions up to date; returns the changed ones. Called with _state held."""
        changed = []
        for position, entry in enumerate(self._waiting):
            if entry.job.position != position:
                entry.job = self._next_rev(entry.job, position=position)
                changed.append(entry.job)
        return changed

    # --------------------------------------------------------------------------------------- a job reports
    def _progress(
        self, entry: _Entry, phase: JobPhase, done: float, total: float, rate: float | None, then_s: float
    ) -> None:
        now = time.monotonic()
        with self._state:
            new_phase = phase != entry.job.phase
            if new_phase:
                self._keep_rate(entry)
                entry.pace = Pace(self._rates.get((entry.job.kind, phase)))
                entry.phase_ended = False
            entry.pace.update(now, done)
            left = entry.pace.seconds_for(total - done) if total > 0 else None
            ended = total > 0 and done >= total and not entry.phase_ended
            entry.phase_ended = entry.phase_ended or ended
            shown = rate if rate is not None else entry.pace.rate
        self._update(
            entry, at_once=new_phase or ended, phase=phase, done=done, total=total, rate=shown,
            eta_s=None if left is None else round(left + then_s, 1),
        )  # fmt: skip

    def _update(self, entry: _Entry, *, at_once: bool, **changes: Any) -> None:
        """Change a running job's snapshot; publish it at once or when the last time is long enough ago."""
        now = time.monotonic()
        with self._state:
            if entry.job.status != "running":
                return
            due = at_once or now - entry.published >= PUBLISH_EVERY_S
            # An unpublished change keeps its rev: whoever holds that rev gets the next one soon.
            entry.job = self._next_rev(entry.job, **changes) if due else entry.job.model_copy(update=changes)
            if due:
                entry.published = now
            job = entry.job
        if due:
            self._on_change(job)

    def _record_tracks(self, entry: _Entry, names: list[str]) -> None:
        with self._transition:
            if entry.job.status != "running":
                return
            with self._state:
                entry.job = self._next_rev(entry.job, tracks=list(names), track=names[0] if names else None)
                job = entry.job
            self._write_or_log(job, entry.seq)
        self._on_change(job)

    # --------------------------------------------------------------------------------------------- parts
    def _entry(self, job_id: str) -> _Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise NotFound(f"there is no job {job_id!r}")
        return entry

    def _require_a_place(self) -> None:
        with self._state:
            if len(self._waiting) < self._capacity:
                return
            wait_s = self._seconds_to_a_place()
        raise QueueFull(
            f"{self._capacity} jobs are waiting already: try again in about {wait_s} s",
            details={"retry_after_s": wait_s, "capacity": self._capacity},
        )

    def _seconds_to_a_place(self) -> int:
        """Whole seconds until the running job ends and the next one leaves the line."""
        running = self._running
        if running is None:
            return 1
        if running.job.eta_s is not None:
            return max(1, math.ceil(running.job.eta_s))
        usual = self._job_s.get(running.job.kind, _FALLBACK_JOB_S)
        return max(1, math.ceil(usual - (time.monotonic() - running.started)))

    def _new_entry(self, request: JobRequest) -> _Entry:
        with self._state:
            seq, position = self._next_seq, len(self._waiting)
            self._next_seq += 1
        job = Job(
            id=uuid.uuid4().hex[:16],
            client_id=request.client_id,
            rev=1,
            kind=request.kind,
            status="queued",
            phase="queued",
            position=position,
            created_at=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            request=request.model_dump(mode="json", by_alias=True),
        )
        return _Entry(job, seq)

    def _next_rev(self, job: Job, **changes: Any) -> Job:
        return job.model_copy(update={**changes, "rev": job.rev + 1})

    def _publish(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._on_change(job)

    def _publish_safely(self, jobs: list[Job]) -> None:
        try:
            self._publish(jobs)
        except Exception:
            # Still the job loop: a listener's defect must not end the worker.
            log.exception("a listener of the queue failed")

    def _clean_up(self, job: Job) -> None:
        try:
            self._after_job(job)
        except Exception:
            # Still the job loop: the job has ended well or badly already, and the next one must start.
            log.exception("what follows job %s failed", job.id)

    # ------------------------------------------------------------------------------------------- journals
    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.json"

    def _write(self, job: Job, seq: int) -> None:
        body = {"seq": seq, "job": job.model_dump(mode="json")}
        write_atomic(self._path(job.id), json.dumps(body, ensure_ascii=False).encode())

    def _write_or_log(self, job: Job, seq: int) -> None:
        """Write a journal where there is no one to refuse: the job goes on without it."""
        try:
            self._write(job, seq)
        except (OSError, StudioError):
            log.exception("the journal of job %s cannot be written", job.id)

    def _recover(self) -> None:
        """Read the journals: queued jobs wait again in their order, running ones become interrupted."""
        self._directory.mkdir(parents=True, exist_ok=True)
        sweep_parts(self._directory)
        found = sorted(filter(None, map(self._read, self._directory.glob("*.json"))), key=lambda entry: entry.seq)
        first_rev = self._begin_run(found) * REVS_A_RUN
        for entry in found:
            self._entries[entry.job.id] = entry
            self._by_client[entry.job.client_id] = entry.job.id
            self._next_seq = max(self._next_seq, entry.seq + 1)
            if entry.job.status == "queued":
                entry.job = entry.job.model_copy(
                    update={"rev": max(entry.job.rev + 1, first_rev), "position": len(self._waiting)}
                )
                self._waiting.append(entry)
                continue
            if entry.job.status == "running":
                changes = {"status": "interrupted", "phase": "finished", "eta_s": None, "live": False}
                entry.job = entry.job.model_copy(update={**changes, "rev": max(entry.job.rev + 1, first_rev)})
                self._write_or_log(entry.job, entry.seq)
            self._finished.append(entry.job.id)
        for job_id in self._forget():
            self._path(job_id).unlink(missing_ok=True)
        sync_folder(self._directory)

    def _read(self, path: Path) -> _Entry | None:
        try:
            body = json.loads(path.read_bytes())
            return _Entry(Job.model_validate_json(json.dumps(body["job"])), int(body["seq"]))
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            # Not ours or damaged by the disk: put aside, so that nothing is thrown away and the start goes on.
            log.exception("the journal %s cannot be read and is put aside", path.name)
            with suppress(OSError):
                path.replace(path.with_suffix(".unreadable"))
            return None

    def _begin_run(self, found: list[_Entry]) -> int:
        """Count this start of the program, and make the count durable before any revision is given out."""
        path = self._directory / "runs"
        try:
            earlier = int(path.read_text())
        except (OSError, ValueError):
            earlier = max((entry.job.rev // REVS_A_RUN for entry in found), default=0)
        try:
            write_atomic(path, str(earlier + 1).encode())
        except (OSError, StudioError):
            log.exception("the count of starts cannot be written")
        return earlier + 1
