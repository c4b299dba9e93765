"""The queue: order, bounds, cancel, revisions, journals, restarts and kills."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import queue
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modules.contract import (
    FINAL_STATUSES,
    Cancelled,
    Conflict,
    DiskFull,
    GenerateRequest,
    InvalidParameter,
    Job,
    NotFound,
    QueueFull,
)
from modules.jobs import PUBLISH_EVERY_S, JobContext, JobQueue, Pace

SOON_S = 20.0


def request(client_id: str, prompt: str = "rain") -> GenerateRequest:
    return GenerateRequest(client_id=client_id, prompt=prompt)


class Stage:
    """A `run` whose jobs wait for the test: each command ends, fails or moves the running job."""

    def __init__(self) -> None:
        self.commands: queue.Queue[Callable[[JobContext], bool]] = queue.Queue()
        self.started: list[str] = []
        self.seen: list[Job] = []

    def run(self, job: Job, context: JobContext) -> None:
        self.started.append(job.id)
        while True:
            context.check()
            try:
                command = self.commands.get(timeout=0.002)
            except queue.Empty:
                continue
            if command(context):
                return

    def finish(self) -> None:
        self.commands.put(lambda _context: True)

    def fail(self, error: Exception) -> None:
        def raise_it(_context: JobContext) -> bool:
            raise error

        self.commands.put(raise_it)

    def do(self, action: Callable[[JobContext], None]) -> None:
        """Let the running job do something, and wait for it."""
        done = threading.Event()

        def act(context: JobContext) -> bool:
            action(context)
            done.set()
            return False

        self.commands.put(act)
        assert done.wait(SOON_S)


@contextmanager
def opened(folder: Path, stage: Stage, capacity: int = 4, keep_finished: int = 500) -> Iterator[JobQueue]:
    jobs = JobQueue(
        folder, stage.run, capacity=capacity, on_change=stage.seen.append, keep_finished=keep_finished
    )  # fmt: skip
    jobs.start()
    try:
        yield jobs
    finally:
        jobs.stop()


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def jobs(tmp_path: Path, stage: Stage) -> Iterator[JobQueue]:
    with opened(tmp_path / "jobs", stage) as found:
        yield found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def running(jobs: JobQueue, job_id: str) -> None:
    until(lambda: jobs.job(job_id).status == "running")


# --------------------------------------------------------------------------------------- order and bounds
def test_jobs_run_one_at_a_time_in_the_order_of_submission(jobs: JobQueue, stage: Stage) -> None:
    ids = [jobs.submit(request(f"c{n}")).id for n in range(4)]
    for job_id in ids:
        running(jobs, job_id)
        assert sum(job.status == "running" for job in jobs.jobs()) == 1
        stage.finish()
        assert jobs.wait(job_id, SOON_S).status == "done"
    assert stage.started == ids


def test_a_waiting_job_knows_how_many_are_before_it(jobs: JobQueue, stage: Stage) -> None:
    first, second, third = (jobs.submit(request(f"c{n}")).id for n in range(3))
    running(jobs, first)
    assert [jobs.job(second).position, jobs.job(third).position] == [0, 1]
    jobs.cancel(second)
    assert jobs.job(third).position == 0
    stage.finish()
    running(jobs, third)


def test_a_full_queue_says_when_to_come_back(jobs: JobQueue, stage: Stage) -> None:
    first = jobs.submit(request("c0"))
    running(jobs, first.id)
    for n in range(1, 5):
        jobs.submit(request(f"c{n}"))
    stage.do(lambda context: context.progress("generating", 0, 100))
    with pytest.raises(QueueFull) as full:
        jobs.submit(request("c9"))
    assert full.value.details["retry_after_s"] >= 1
    assert jobs.find("c9") is None


def test_the_same_client_id_is_the_same_job_whatever_happened_to_it(jobs: JobQueue, stage: Stage) -> None:
    first = jobs.submit(request("same"))
    assert jobs.submit(request("same", prompt="something else")).id == first.id
    running(jobs, first.id)
    stage.finish()
    jobs.wait(first.id, SOON_S)
    again = jobs.submit(request("same"))
    assert (again.id, again.status) == (first.id, "done")


def test_a_hundred_clicks_at_once_make_one_job(jobs: JobQueue) -> None:
    found: list[str] = []
    clicks = [threading.Thread(target=lambda: found.append(jobs.submit(request("click")).id)) for _ in range(100)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(found) == 100
    assert len(set(found)) == 1


def test_the_request_is_kept_whole_for_a_retry(jobs: JobQueue) -> None:
    asked = GenerateRequest.model_validate(
        {"client_id": "c", "prompt": "sea", "takes": 3, "continuation": {"track": "t", "from": 2.5}}
    )
    job = jobs.submit(asked)
    assert GenerateRequest.model_validate(job.request) == asked


# --------------------------------------------------------------------------------------------- cancelling
def test_a_queued_job_is_cancelled_at_once_and_never_runs(jobs: JobQueue, stage: Stage) -> None:
    first, second = jobs.submit(request("c0")), jobs.submit(request("c1"))
    running(jobs, first.id)
    assert jobs.cancel(second.id).status == "cancelled"
    stage.finish()
    jobs.wait(first.id, SOON_S)
    third = jobs.submit(request("c2"))
    running(jobs, third.id)
    assert second.id not in stage.started


def test_a_running_job_is_cancelled_at_its_next_step(jobs: JobQueue) -> None:
    job = jobs.submit(request("c0"))
    running(jobs, job.id)
    began = time.monotonic()
    jobs.cancel(job.id)
    assert jobs.wait(job.id, SOON_S).status == "cancelled"
    assert time.monotonic() - began < SOON_S / 2


def test_keep_reaches_the_running_job(tmp_path: Path) -> None:
    kept: list[bool] = []

    def run(_job: Job, context: JobContext) -> None:
        while not context.cancelled:
            time.sleep(0.001)
        kept.append(context.keep)
        context.tracks(["early"])
        raise Cancelled("stop")

    jobs = JobQueue(tmp_path, run)
    jobs.start()
    job = jobs.submit(request("c"))
    running(jobs, job.id)
    jobs.cancel(job.id, keep=True)
    ended = jobs.wait(job.id, SOON_S)
    jobs.stop()
    assert kept == [True]
    assert (ended.status, ended.track, ended.tracks) == ("cancelled", "early", ["early"])


def test_cancelling_what_has_ended_is_a_conflict_and_twice_is_none(jobs: JobQueue, stage: Stage) -> None:
    done, gone = jobs.submit(request("c0")), jobs.submit(request("c1"))
    running(jobs, done.id)
    jobs.cancel(gone.id)
    assert jobs.cancel(gone.id).status == "cancelled"
    stage.finish()
    jobs.wait(done.id, SOON_S)
    with pytest.raises(Conflict, match="done"):
        jobs.cancel(done.id)
    with pytest.raises(NotFound):
        jobs.cancel("nothing")


# ------------------------------------------------------------------------------------------------ failing
def test_an_error_of_ours_is_shown_and_the_next_job_runs(jobs: JobQueue, stage: Stage) -> None:
    first, second = jobs.submit(request("c0")), jobs.submit(request("c1"))
    running(jobs, first.id)
    stage.fail(InvalidParameter("top_k: 9000 is too much", field="top_k"))
    ended = jobs.wait(first.id, SOON_S)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.field) == ("invalid_parameter", "top_k")
    running(jobs, second.id)


def test_any_other_error_is_internal_with_its_stack_in_the_log_only(
    jobs: JobQueue, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    job = jobs.submit(request("c0"))
    running(jobs, job.id)
    stage.fail(ZeroDivisionError("/home/someone/secret"))
    ended = jobs.wait(job.id, SOON_S)
    assert ended.error is not None
    assert ended.error.code == "internal"
    assert "secret" not in ended.error.message
    assert "ZeroDivisionError: /home/someone/secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), "out_of_memory"), (OSError(errno.ENOSPC, "No space left"), "disk_full")]
)
def test_no_memory_and_no_disk_are_said_wherever_they_happen(
    jobs: JobQueue, stage: Stage, error: Exception, code: str
) -> None:
    job = jobs.submit(request("c0"))
    running(jobs, job.id)
    stage.fail(error)
    ended = jobs.wait(job.id, SOON_S)
    assert ended.error is not None
    assert ended.error.code == code


def test_a_listener_that_fails_does_not_end_the_worker(tmp_path: Path, stage: Stage) -> None:
    def listener(job: Job) -> None:
        if job.status in FINAL_STATUSES:
            raise RuntimeError("a defect")

    jobs = JobQueue(tmp_path, stage.run, on_change=listener)
    jobs.start()
    for n in range(3):
        job = jobs.submit(request(f"c{n}"))
        running(jobs, job.id)
        stage.finish()
        assert jobs.wait(job.id, SOON_S).status == "done"
    jobs.stop()


def test_what_follows_a_job_may_fail_without_harm(tmp_path: Path, stage: Stage) -> None:
    after: list[str] = []

    def after_job(job: Job) -> None:
        after.append(job.status)
        raise RuntimeError("a defect")

    jobs = JobQueue(tmp_path, stage.run, after_job=after_job)
    jobs.start()
    for n in range(2):
        job = jobs.submit(request(f"c{n}"))
        running(jobs, job.id)
        stage.finish()
        jobs.wait(job.id, SOON_S)
    jobs.stop()
    assert after == ["done", "done"]


# ----------------------------------------------------------------------------------------------- progress
def test_progress_is_published_ten_times_a_second_but_phases_and_ends_at_once(jobs: JobQueue, stage: Stage) -> None:
    job = jobs.submit(request("c0"))
    running(jobs, job.id)
    began = time.monotonic()

    def work(context: JobContext) -> None:
        for step in range(1, 301):
            context.progress("generating", step, 300)
            time.sleep(0.002)
        context.progress("decoding", 0, 1)

    stage.do(work)
    took = time.monotonic() - began
    steps = [seen for seen in stage.seen if seen.phase == "generating"]
    assert 3 <= len(steps) <= took / PUBLISH_EVERY_S + 3
    assert steps[0].done == 1
    assert steps[-1].done == 300
    assert stage.seen[-1].phase == "decoding"


def test_the_eta_comes_from_what_was_measured(jobs: JobQueue, stage: Stage) -> None:
    job = jobs.submit(request("c0"))
    running(jobs, job.id)

    def work(context: JobContext) -> None:
        for step in range(1, 101):
            context.progress("generating", step, 500, then_s=2.0)
            time.sleep(0.005)

    began = time.monotonic()
    stage.do(work)
    pace = 100 / (time.monotonic() - began)
    eta = jobs.job(job.id).eta_s
    assert eta is not None
    assert eta == pytest.approx(400 / pace + 2.0, rel=0.3)


def test_a_pace_is_smoothed_and_forgets_slowly() -> None:
    pace = Pace()
    assert pace.seconds_for(10) is None
    for second in range(20):
        pace.update(second, 100 * second)
    assert pace.rate == pytest.approx(100)
    pace.update(20, 1900 + 1000)
    assert pace.rate is not None
    assert 100 < pace.rate < 600
    assert pace.seconds_for(-5) == 0


def test_revisions_rise_with_every_published_change(jobs: JobQueue, stage: Stage) -> None:
    ids = [jobs.submit(request(f"c{n}")).id for n in range(3)]
    for job_id in ids:
        running(jobs, job_id)
        stage.do(lambda context: context.unknown_words(["xyzzy"]))
        stage.do(lambda context: context.live(1.5))
        stage.finish()
        jobs.wait(job_id, SOON_S)
    until(lambda: stage.seen[-1].status == "done")
    for job_id in ids:
        revs = [job.rev for job in stage.seen if job.id == job_id]
        assert len(revs) == len(set(revs))
        last = max((job for job in stage.seen if job.id == job_id), key=lambda job: job.rev)
        assert (last.status, last.unknown_words, last.live, last.live_s) == ("done", ["xyzzy"], True, 1.5)


# ------------------------------------------------------------------------------------------------ the disk
def test_a_job_that_cannot_be_written_down_is_not_taken(
    jobs: JobQueue, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = jobs.submit(request("c0"))
    running(jobs, first.id)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            jobs.submit(request("c1"))
        # The running job ends all the same.
        stage.finish()
        assert jobs.wait(first.id, SOON_S).status == "done"
    assert jobs.find("c1") is None
    assert jobs.submit(request("c1")).status == "queued"


def test_a_journal_that_cannot_be_read_is_put_aside_and_the_rest_goes_on(tmp_path: Path, stage: Stage) -> None:
    jobs = JobQueue(tmp_path, stage.run)
    kept = jobs.submit(request("kept"))
    (tmp_path / "broken.json").write_text('{"seq": 1, "job": {"id"')
    (tmp_path / "folder.json").mkdir()
    (tmp_path / ".x.json.part").write_text("half")
    again = JobQueue(tmp_path, stage.run)
    assert [job.id for job in again.jobs()] == [kept.id]
    assert (tmp_path / "broken.unreadable").exists()
    assert not (tmp_path / ".x.json.part").exists()


def test_only_the_last_finished_jobs_are_remembered(tmp_path: Path, stage: Stage) -> None:
    with opened(tmp_path, stage, keep_finished=3) as jobs:
        for n in range(6):
            job = jobs.submit(request(f"c{n}"))
            running(jobs, job.id)
            stage.finish()
            jobs.wait(job.id, SOON_S)
    with opened(tmp_path, stage, keep_finished=3) as jobs:
        assert [job.client_id for job in jobs.jobs()] == ["c3", "c4", "c5"]
        assert [job.client_id for job in jobs.jobs(finished=1)] == ["c5"]
        assert jobs.find("c0") is None
        assert len(list(tmp_path.glob("*.json"))) == 3


# ---------------------------------------------------------------------------------------------- stop, restart
def test_a_stop_interrupts_the_running_job_and_keeps_the_queued_ones(tmp_path: Path, stage: Stage) -> None:
    with opened(tmp_path, stage) as jobs:
        first, second = jobs.submit(request("c0")), jobs.submit(request("c1"))
        running(jobs, first.id)
        began = time.monotonic()
        jobs.stop()
        assert time.monotonic() - began < SOON_S / 2
        assert jobs.job(first.id).status == "interrupted"
        with pytest.raises(Conflict):
            jobs.submit(request("c2"))
    with opened(tmp_path, stage) as jobs:
        assert jobs.job(first.id).status == "interrupted"
        running(jobs, second.id)
        assert jobs.submit(request("c0")).id == first.id


def test_a_job_that_does_not_come_back_is_written_down_as_interrupted(tmp_path: Path) -> None:
    release = threading.Event()

    def run(_job: Job, _context: JobContext) -> None:
        release.wait(SOON_S)

    jobs = JobQueue(tmp_path, run)
    jobs.start()
    job = jobs.submit(request("c"))
    running(jobs, job.id)
    began = time.monotonic()
    jobs.stop(timeout_s=0.2)
    assert time.monotonic() - began < SOON_S / 2
    assert jobs.job(job.id).status == "interrupted"
    release.set()
    time.sleep(0.05)
    assert jobs.job(job.id).status == "interrupted", "a final status never changes"
    assert json.loads((tmp_path / f"{job.id}.json").read_text())["job"]["status"] == "interrupted"


def test_tracks_that_an_interrupted_job_had_saved_are_still_named(tmp_path: Path, stage: Stage) -> None:
    with opened(tmp_path / "a", stage) as jobs:
        job = jobs.submit(request("c"))
        running(jobs, job.id)
        stage.do(lambda context: context.tracks(["one", "two"]))
        shutil.copytree(tmp_path / "a", tmp_path / "b")  # as a kill would leave it
    found = JobQueue(tmp_path / "b", stage.run).job(job.id)
    assert (found.status, found.tracks) == ("interrupted", ["one", "two"])


class Machine(RuleBasedStateMachine):
    """Submits, cancels, ends and restarts in any order, beside a model that is too simple to be wrong."""

    capacity = 3

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.folders = 0
        self.stage = Stage()
        self.statuses: dict[str, str] = {}
        self.waiting: list[str] = []
        self.clients: dict[str, str] = {}
        self.runs: Counter[str] = Counter()
        self.open(self.root / "0")

    def open(self, folder: Path) -> None:
        self.folder = folder
        self.alive = alive = [True]
        self.jobs = JobQueue(
            folder,
            self.stage.run,
            capacity=self.capacity,
            on_change=lambda job: self.stage.seen.append(job) if alive else None,
        )
        self.jobs.start()

    def teardown(self) -> None:
        self.jobs.stop()
        shutil.rmtree(self.root)

    @property
    def running(self) -> str | None:
        return next((job_id for job_id, status in self.statuses.items() if status == "running"), None)

    def settle(self) -> None:
        """The worker takes the next job whenever it has none."""
        if self.running is None and self.waiting:
            self.statuses[self.waiting.pop(0)] = "running"
        until(lambda: {job.id: job.status for job in self.jobs.jobs()} == self.statuses)
        current = self.running
        # Between being shown as running and being run lies a moment.
        until(lambda: current is None or current in self.stage.started)

    @rule(number=st.integers(0, 14))
    def submit(self, number: int) -> None:
        client = f"client{number}"
        if client in self.clients:
            assert self.jobs.submit(request(client)).id == self.clients[client]
        elif len(self.waiting) == self.capacity:
            with pytest.raises(QueueFull):
                self.jobs.submit(request(client))
        else:
            job = self.jobs.submit(request(client))
            assert job.id not in self.statuses
            self.clients[client] = job.id
            self.statuses[job.id] = "queued"
            self.waiting.append(job.id)
        self.settle()

    @precondition(lambda self: self.statuses)
    @rule(data=st.data(), keep=st.booleans())
    def cancel(self, data: st.DataObject, keep: bool) -> None:
        # By client: job ids are random, and a failure must replay.
        job_id = self.clients[data.draw(st.sampled_from(sorted(self.clients)))]
        status = self.statuses[job_id]
        if status in FINAL_STATUSES - {"cancelled"}:
            with pytest.raises(Conflict):
                self.jobs.cancel(job_id, keep=keep)
            return
        self.jobs.cancel(job_id, keep=keep)
        self.statuses[job_id] = "cancelled"
        if job_id in self.waiting:
            self.waiting.remove(job_id)
        self.settle()

    @precondition(lambda self: self.running)
    @rule(error=st.sampled_from([None, ValueError("a defect"), InvalidParameter("prompt: no", field="prompt")]))
    def end(self, error: Exception | None) -> None:
        job_id = str(self.running)
        if error is None:
            self.stage.finish()
        else:
            self.stage.fail(error)
        self.statuses[job_id] = "done" if error is None else "failed"
        self.settle()

    @precondition(lambda self: self.running)
    @rule(steps=st.integers(1, 30))
    def report(self, steps: int) -> None:
        def work(context: JobContext) -> None:
            for step in range(steps):
                context.progress("generating", step, 30)

        self.stage.do(work)

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        folder = self.folder
        if kill:
            # What a kill leaves: the files as they are now, and a process that says no more.
            self.folders += 1
            folder = self.root / str(self.folders)
            shutil.copytree(self.folder, folder)
            self.alive.clear()
        self.jobs.stop()
        if self.running is not None:
            self.statuses[str(self.running)] = "interrupted"
        self.open(folder)
        self.settle()

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "statuses"):
            return
        assert {job.client_id: job.id for job in self.jobs.jobs()} == self.clients
        assert not [job_id for job_id, times in Counter(self.stage.started).items() if times > 1]
        assert [job.id for job in self.jobs.active() if job.status == "queued"] == self.waiting

    @invariant()
    def the_highest_revision_is_the_truth(self) -> None:
        if not hasattr(self, "statuses"):
            return
        newest: dict[str, Job] = {}
        for job in self.stage.seen + self.jobs.jobs():
            if job.id not in newest or job.rev > newest[job.id].rev:
                newest[job.id] = job
        assert {job_id: job.status for job_id, job in newest.items()} == self.statuses


TestInterleavings = Machine.TestCase
TestInterleavings.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# ----------------------------------------------------------------------------------------------- kill -9
KILLS = 100
QUEUE = 16


def _victim(folder: Path, first_client: int, seed: int) -> None:
    """Keeps a queue full while it runs quick jobs, writing down what was promised and what was started."""
    chance = random.Random(seed)
    promised = os.open(folder / "promised", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    started = os.open(folder / "started", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(job: Job, context: JobContext) -> None:
        os.write(started, f"{job.client_id}\n".encode())
        for step in range(chance.randrange(6)):
            context.progress("generating", step, 5)
            time.sleep(0.0005)

    jobs = JobQueue(folder / "jobs", run, capacity=QUEUE, keep_finished=100_000)
    jobs.start()
    client = first_client
    while True:
        try:
            jobs.submit(request(f"c{client:06d}"))
        except QueueFull:
            time.sleep(0.001)
            continue
        os.write(promised, f"c{client:06d}\n".encode())
        client += 1


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def wait_for_lines(path: Path, count: int) -> None:
    until(lambda: len(lines(path)) >= count)


@pytest.mark.slow
def test_a_hundred_kills_of_a_full_queue_lose_and_double_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    chance = random.Random(3)
    promised: list[str] = []
    for kill in range(KILLS):
        # The last client_id again: its answer may have died with the process before.
        first = max((int(client[1:]) for client in promised), default=0)
        victim = fork.Process(target=_victim, args=(tmp_path, first, kill))
        victim.start()
        # Every fourth dies while it starts, the others at work.
        enough = 0 if kill % 4 == 0 else len(promised) + chance.randrange(1, 5)
        wait_for_lines(tmp_path / "promised", enough)
        time.sleep(chance.uniform(0.0, 0.02))
        victim.kill()
        victim.join()
        promised = lines(tmp_path / "promised")
    started: list[str] = []
    last = JobQueue(tmp_path / "jobs", lambda job, _: started.append(job.client_id), keep_finished=100_000)
    waiting = [job.client_id for job in last.active()]
    last.start()
    until(lambda: not last.active())
    last.stop()
    before = lines(tmp_path / "started")

    assert len(set(promised)) > KILLS, "the victims hardly worked"
    assert started == waiting
    assert Counter(before + started).most_common(1)[0][1] == 1, "a job ran twice"
    assert before + started == sorted(before + started), "a job ran out of its turn"
    final = Counter(job.status for job in last.jobs())
    assert set(promised) <= {job.client_id for job in last.jobs()}, "a promised job is lost"
    assert final.keys() <= {"done", "interrupted"}
    assert final["interrupted"] <= KILLS
