"""Socket.IO over a real server: what reaches the page, what it may send, and what a bad client cannot do."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import socketio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typing_extensions import Self

from modules import contract
from modules.contract import Hello, Job, LibraryChange
from modules.settings import VERSION, Settings
from modules.web import events
from modules.web.events import MAX_MESSAGE_BYTES, Broadcast, ClientQueue
from tests.fake_studio import WHEN
from tests.live_server import Live, running

JOB = {"kind": "generate", "client_id": "c1", "prompt": "piano"}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    settings = Settings(port=0, data_dir=tmp_path / "data", state_dir=tmp_path / "state", no_browser=True)
    with running(settings) as server:
        yield server


class Page:
    """A Socket.IO client that remembers what it was told."""

    def __init__(self, live: Live, transport: str = "websocket") -> None:
        self.told: list[tuple[str, Any, float]] = []
        self._news = threading.Condition()
        self.client = socketio.Client(reconnection=False)
        for event in ("hello", "job", "library"):
            self.client.on(event, self._remember(event))
        self.client.connect(live.origin, transports=[transport])

    def _remember(self, event: str) -> Callable[[Any], None]:
        def remember(payload: Any) -> None:
            with self._news:
                self.told.append((event, payload, time.monotonic()))
                self._news.notify_all()

        return remember

    def of(self, event: str) -> list[Any]:
        with self._news:
            return [payload for name, payload, _ in self.told if name == event]

    def wait(self, event: str, fits: Callable[[Any], bool] = lambda _: True, within_s: float = 5.0) -> Any:
        def found() -> Any:
            return next((payload for name, payload, _ in self.told if name == event and fits(payload)), None)

        with self._news:
            assert self._news.wait_for(found, within_s), f"no such {event} came"
            return found()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()


def job_of(rev: int, job_id: str = "j", **changes: Any) -> Job:
    return Job.model_validate(
        {
            "id": job_id, "client_id": job_id, "rev": rev, "kind": "generate", "status": "running",
            "phase": "generating", "created_at": WHEN, "request": {}, **changes,
        }
    )  # fmt: skip


def until(fits: Callable[[], bool], within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while not fits():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------------------------- the exchange
@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_hello_comes_first_with_everything_a_page_needs(live: Live, transport: str) -> None:
    live.studio.add_track("song")
    job = live.studio.submit(JOB)
    with Page(live, transport) as page:
        hello = page.wait("hello")
    assert (hello["protocol"], hello["version"], hello["tracks"]) == (contract.PROTOCOL, VERSION, 1)
    assert [known["id"] for known in hello["jobs"]] == [job.id]
    Hello.model_validate_json(json.dumps(hello))


def test_a_submitted_job_is_acknowledged_with_the_http_envelope_and_broadcast(live: Live) -> None:
    with Page(live) as sender, Page(live) as watcher:
        answer = sender.client.call("submit", JOB, timeout=5)
        assert (answer["ok"], answer["job"]["status"]) == (True, "queued")
        again = sender.client.call("submit", JOB, timeout=5)
        assert again["job"]["id"] == answer["job"]["id"]
        assert watcher.wait("job")["id"] == answer["job"]["id"]
    assert len(live.studio.queue) == 1


def test_cancelling_is_acknowledged_and_may_keep_what_was_heard(live: Live) -> None:
    job = live.studio.submit(JOB)
    with Page(live) as page:
        answer = page.client.call("cancel", {"id": job.id, "keep": True}, timeout=5)
        assert (answer["job"]["status"], answer["job"]["unknown_words"]) == ("cancelled", ["kept"])


@pytest.mark.parametrize(
    ("event", "body", "code"),
    [
        ("submit", {"kind": "generate"}, "invalid_parameter"),
        ("submit", None, "invalid_request"),
        ("submit", [1, 2], "invalid_request"),
        ("submit", {**JOB, "duration": 1e9}, "invalid_parameter"),
        ("submit", {**JOB, "unknown": 1}, "invalid_parameter"),
        ("cancel", "text", "invalid_request"),
        ("cancel", {"id": 5}, "invalid_parameter"),
        ("cancel", {"id": "none"}, "not_found"),
        ("cancel", {"id": "none", "keep": "yes"}, "invalid_parameter"),
    ],
)
def test_what_cannot_be_done_is_acknowledged_as_a_failure(live: Live, event: str, body: Any, code: str) -> None:
    with Page(live) as page:
        answer = page.client.call(event, body, timeout=5)
    assert (answer["ok"], answer["error"]["code"]) == (False, code)


def test_a_defect_is_acknowledged_without_its_inside(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_body: Any) -> Job:
        raise RuntimeError("secret")

    monkeypatch.setattr(live.studio, "submit", broken)
    with Page(live) as page:
        answer = page.client.call("submit", JOB, timeout=5)
    assert answer["error"]["code"] == "internal"
    assert "secret" not in json.dumps(answer)


def test_library_changes_reach_every_page(live: Live) -> None:
    with Page(live) as one, Page(live) as two:
        for page in (one, two):
            page.wait("hello")
        live.studio.add_track("song")
        for page in (one, two):
            change = page.wait("library", lambda change: bool(change["added"]))
            LibraryChange.model_validate_json(json.dumps(change))
            assert change["added"][0]["name"] == "song"
        live.studio.delete("song")
        assert one.wait("library", lambda change: change["removed"] == ["song"])


def test_a_burst_of_progress_becomes_at_most_ten_snapshots_a_second_and_ends_with_the_last(live: Live) -> None:
    job = live.studio.submit(JOB)
    with Page(live) as page:
        page.wait("hello")
        started = time.monotonic()
        while time.monotonic() - started < 1.0:
            live.studio.change_job(job.id, status="running", phase="generating", done=1.0)
            time.sleep(0.001)
        last = live.studio.change_job(job.id, status="done", phase="finished")
        assert page.wait("job", lambda snapshot: snapshot["rev"] == last.rev)["status"] == "done"
        revisions = [snapshot["rev"] for snapshot in page.of("job")]
        seconds = time.monotonic() - started
    assert revisions == sorted(set(revisions))
    assert 3 <= len(revisions) <= seconds * 10 + 2


# ------------------------------------------------------------------------------------ the broadcaster
class Recorder:
    """Collects what a Broadcast emits."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.sent: list[tuple[str, dict[str, Any], float]] = []
        self._delay_s = delay_s

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        time.sleep(self._delay_s)
        self.sent.append((event, payload, time.monotonic()))

    def jobs(self) -> list[dict[str, Any]]:
        return [payload for event, payload, _ in self.sent if event == "job"]


def test_an_older_snapshot_never_follows_a_newer_one() -> None:
    recorder = Recorder()
    broadcast = Broadcast(recorder, interval_s=0.01)
    for rev in (5, 3, 4, 5):
        broadcast.job(job_of(rev))
        time.sleep(0.02)
    broadcast.job(job_of(6))
    assert until(lambda: len(recorder.sent) == 2)
    broadcast.stop()
    assert [job["rev"] for job in recorder.jobs()] == [5, 6]


def test_jobs_do_not_wait_for_each_other() -> None:
    recorder = Recorder()
    broadcast = Broadcast(recorder, interval_s=10.0)
    broadcast.job(job_of(1, "a"))
    assert until(lambda: len(recorder.sent) == 1)
    broadcast.job(job_of(2, "a"))
    broadcast.job(job_of(1, "b"))
    assert until(lambda: len(recorder.sent) == 2)
    broadcast.stop()
    assert [job["id"] for job in recorder.jobs()] == ["a", "b"]


def test_telling_the_broadcaster_takes_no_time_however_slow_sending_is() -> None:
    broadcast = Broadcast(Recorder(delay_s=0.5), interval_s=0.0)
    started = time.perf_counter()
    for rev in range(1000):
        broadcast.job(job_of(rev))
        broadcast.library(LibraryChange(removed=["x"]))
    assert time.perf_counter() - started < 10, "two thousand times half a second, if it waited"
    broadcast.stop()


def test_an_emit_that_raises_does_not_end_the_thread() -> None:
    sent: list[int] = []

    def emit(_event: str, payload: dict[str, Any]) -> None:
        if payload["rev"] == 1:
            raise OSError("gone")
        sent.append(payload["rev"])

    broadcast = Broadcast(emit, interval_s=0.0)
    broadcast.job(job_of(1))
    assert until(lambda: not broadcast._jobs)
    broadcast.job(job_of(2))
    assert until(lambda: sent == [2])
    broadcast.stop()


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), max_size=30))
def test_whatever_the_order_the_highest_revision_of_each_job_is_the_last_one_sent(told: list[tuple[str, int]]) -> None:
    recorder = Recorder()
    broadcast = Broadcast(recorder, interval_s=0.0)
    for job_id, rev in told:
        broadcast.job(job_of(rev, job_id))
    highest = {job_id: max(rev for other, rev in told if other == job_id) for job_id, _ in told}
    assert until(lambda: {job["id"]: job["rev"] for job in recorder.jobs()} == highest)
    broadcast.stop()
    for job_id in highest:
        revisions = [job["rev"] for job in recorder.jobs() if job["id"] == job_id]
        assert revisions == sorted(set(revisions))


def test_changes_of_one_track_that_wait_together_become_one(live: Live) -> None:
    track = live.studio.add_track("song")
    release, entered = threading.Event(), threading.Event()
    sent: list[dict[str, Any]] = []

    def emit(event: str, payload: dict[str, Any]) -> None:
        if event == "job":
            entered.set()
            release.wait(5)
        else:
            sent.append(payload)

    broadcast = Broadcast(emit, interval_s=0.0)
    broadcast.job(job_of(1))
    assert entered.wait(5)
    broadcast.library(LibraryChange(added=[track]))
    broadcast.library(LibraryChange(changed=[track.model_copy(update={"favourite": True})]))
    broadcast.library(LibraryChange(removed=["other"]))
    release.set()
    assert until(lambda: bool(sent))
    broadcast.stop()
    assert [(t["name"], t["favourite"]) for t in sent[0]["added"]] == [("song", True)]
    assert (sent[0]["changed"], sent[0]["removed"]) == ([], ["other"])


# --------------------------------------------------------------------------------------- bad clients
class Raw:
    """A WebSocket client that sends whatever bytes it likes."""

    def __init__(self, live: Live, *, headers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", live.port), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n{headers}"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            self.head += self.socket.recv(4096)

    def frame(self, payload: bytes, *, first: int = 0x81, length: int | None = None) -> None:
        size = len(payload) if length is None else length
        head = bytes([first])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        self.socket.sendall(head + b"\0\0\0\0" + payload)

    def ended(self, within_s: float = 10.0) -> bool:
        """True once the server has closed the connection."""
        self.socket.settimeout(within_s)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def memory_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_a_websocket_of_another_origin_is_refused(live: Live, origin: str) -> None:
    with Raw(live, headers=f"Origin: {origin.format(port=live.port)}\r\n") as client:
        assert client.head.startswith(b"HTTP/1.1 403")


def test_a_websocket_of_our_origin_is_accepted_and_never_compressed(live: Live) -> None:
    headers = f"Origin: {live.origin}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
    with Raw(live, headers=headers) as client:
        assert client.head.startswith(b"HTTP/1.1 101")
        assert b"permessage-deflate" not in client.head


def test_a_websocket_of_a_foreign_host_is_refused(live: Live) -> None:
    head = live.raw(
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 403")


def test_a_handshake_that_is_none_is_a_4xx(live: Live) -> None:
    for headers in (
        {},
        {"Connection": "Upgrade"},
        {"Connection": "Upgrade", "Sec-WebSocket-Version": "1"},
        {"Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AA=="},
    ):
        answer = live.ask("GET", "/socket.io/?EIO=4&transport=websocket", headers={"Upgrade": "websocket", **headers})
        assert 400 <= answer.status < 500, headers


def test_a_message_of_ten_megabytes_ends_its_connection_and_costs_no_memory(live: Live) -> None:
    before = memory_mb()
    with Raw(live) as client:
        client.frame(b"40")
        message = b"42" + json.dumps(["submit", {**JOB, "prompt": "x" * 10_000_000}]).encode()
        with contextlib.suppress(OSError):
            client.frame(message)
        assert client.ended()
    assert memory_mb() - before < 60
    assert not live.studio.queue


def test_a_frame_that_announces_gigabytes_ends_when_the_cap_is_passed(live: Live) -> None:
    before = memory_mb()
    with Raw(live) as client:
        with contextlib.suppress(OSError):
            client.frame(b"4" * (MAX_MESSAGE_BYTES + 100_000), length=2**40)
        assert client.ended()
    assert memory_mb() - before < 40


def test_a_message_in_endless_fragments_ends_when_the_cap_is_passed(live: Live) -> None:
    with Raw(live) as client:
        with contextlib.suppress(OSError):
            client.frame(b"4" * 60_000, first=0x01)
            for _ in range(20):
                client.frame(b"4" * 60_000, first=0x00)
        assert client.ended()


def test_a_compressed_frame_is_a_protocol_error(live: Live) -> None:
    before = memory_mb()
    bomb = zlib.compress(b"4" * 100_000_000, 6)[2:-4]
    with Raw(live, headers="Sec-WebSocket-Extensions: permessage-deflate\r\n") as client:
        client.frame(bomb, first=0xC1)
        assert client.ended()
    assert memory_mb() - before < 40


NONSENSE = [
    b"", b"9", b"4", b"42", b"42[", b"42" + b"[" * 100_000, b'42{"a":1}', b'42["nosuch"]', b"42[1]", b"45-[]",
    b"459999999999-", b"43[]", b"\xff\xfe", b"b" + b"A" * 100, b'42["submit"]', b'42/admin,["x"]', b"40/admin,",
    b'42["connect"]', b'42["disconnect"]', b"3", b"2probe", b"5", b"6", b"1", b"0",
]  # fmt: skip


@pytest.mark.parametrize("payload", NONSENSE, ids=lambda payload: repr(payload[:16]))
def test_a_packet_that_makes_no_sense_harms_nobody_else(live: Live, payload: bytes) -> None:
    with Page(live) as page, Raw(live) as client:
        client.frame(b"40")
        client.frame(payload)
        client.frame(b"\x00\x01", first=0x8F)
        assert page.client.call("cancel", {"id": "none"}, timeout=5)["error"]["code"] == "not_found"


def test_a_flood_of_messages_slows_only_its_sender(live: Live) -> None:
    message = b"42" + json.dumps(["cancel", {"id": "none"}]).encode()
    stop = threading.Event()

    def flood() -> None:
        # It ends with the error of a connection that is closed, or of one that takes no more.
        with Raw(live) as client, contextlib.suppress(OSError):
            client.frame(b"40")
            while not stop.is_set():
                client.frame(message)

    before = memory_mb()
    threads = threading.active_count()
    flooder = threading.Thread(target=flood, daemon=True)
    flooder.start()
    time.sleep(1.0)
    slowest = 0.0
    with Page(live) as page:
        for _ in range(20):
            started = time.perf_counter()
            assert page.client.call("cancel", {"id": "none"}, timeout=5)["ok"] is False
            slowest = max(slowest, time.perf_counter() - started)
        assert live.server.connections >= 2, "the flood was over too early"
    stop.set()
    assert slowest < 1.0
    assert memory_mb() - before < 60
    assert threading.active_count() - threads < 20


def test_a_client_that_never_reads_is_let_go_and_the_others_are_told_in_time(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_BEHIND", 20)
    monkeypatch.setattr(events, "SEND_PATIENCE_S", 1.0)
    job = live.studio.submit(JOB)
    with Page(live) as page, Raw(live) as stuck:
        stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.frame(b"40")
        page.wait("hello")
        for _ in range(40):
            last = live.studio.change_job(job.id, status="running", unknown_words=["n" * 200_000])
            page.wait("job", partial(at_least, last.rev), within_s=5)
        assert until(lambda: live.server.connections == 1)


def at_least(rev: int, snapshot: dict[str, Any]) -> bool:
    return bool(snapshot["rev"] >= rev)


def test_a_queue_that_is_too_far_behind_is_emptied_and_closed() -> None:
    waiting = ClientQueue()
    for number in range(events.MAX_BEHIND):
        waiting.put(number)
    assert waiting.qsize() == events.MAX_BEHIND
    waiting.put("one too many")
    assert waiting.qsize() == 1
    assert waiting.get() is None
    waiting.task_done()
    waiting.join()


def test_handshakes_beyond_the_cap_are_refused(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_CLIENTS", 5)
    answers = [live.ask("GET", "/socket.io/?EIO=4&transport=polling&xsid=1") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
    assert answers[-1].code == "too_many_requests"


def test_handshakes_faster_than_the_rate_are_refused_for_a_while(live: Live) -> None:
    bucket = events.Bucket(per_s=20.0, burst=3.0)
    assert [bucket.take() > 0 for _ in range(5)] == [False, False, False, True, True]
    assert until(lambda: bucket.take() == 0)
    assert live.ask("GET", "/socket.io/?EIO=4&transport=polling").status == 200


def test_threads_and_sockets_are_given_back_when_pages_close(live: Live) -> None:
    before = threading.active_count()
    for _ in range(5):
        with Page(live) as page:
            page.wait("hello")
        with Raw(live) as client:
            client.frame(b"garbage", first=0xFF)
    # Each client leaves one sleeping ping behind for less than its interval, and nothing else.
    assert until(lambda: live.server.connections == 0)
    assert until(lambda: threading.active_count() - before <= 12)
