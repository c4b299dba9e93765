"""The server as a person starts it, in a process of its own, and what holds it up or brings it down."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from modules import contract
from modules.settings import ROOT, Settings
from modules.studio import Studio
from modules.web import app as web_app
from modules.web import openapi
from modules.web.app import StudioServer, address, announce, bind_problem, create_app
from tests.live_server import Live, running
from tests.pace import assert_within, slowness
from tests.test_openapi import Fuzz

FIRST_PAGE_S = 1.0
HEAVY = ("torch", "torchaudio", "audiocraft", "transformers", "demucs", "onnxruntime", "librosa", "scipy", "av")
POSIX = os.name == "posix"


def settings_in(folder: Path) -> Settings:
    return Settings(
        port=0, data_dir=folder / "data", state_dir=folder / "state", cache_dir=folder / "cache",
        models_dir=folder / "models", no_browser=True, offline=True,
    )  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    folders = {"--data-dir": "data", "--state-dir": "state", "--cache-dir": "cache", "--models-dir": "models"}
    flags = [part for flag, name in folders.items() for part in (flag, str(folder / name))]
    return [sys.executable, str(ROOT / "webui.py"), "--port", "0", "--no-browser", "--offline", *flags, *more]


@contextmanager
def program(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running program and the address that it printed."""
    process = subprocess.Popen(
        command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"no address in {line!r}"
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        body: bytes = answer.read()
        return body


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with running(settings_in(tmp_path)) as server:
        yield server


# ------------------------------------------------------------------------------------ starting, stopping
def test_the_first_page_comes_within_a_second_of_starting_the_process(tmp_path: Path) -> None:
    def seen() -> float:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        started = time.perf_counter()
        with program(folder) as (_, url):
            assert b"<html" in get(url)
            return time.perf_counter() - started

    assert_within(FIRST_PAGE_S, seen, tries=5)


def test_the_page_is_served_before_the_model_stack_is_imported(tmp_path: Path) -> None:
    script = f"""
import json, sys, threading, urllib.request
from pathlib import Path
import webui
from modules.settings import parse
from modules.studio import Studio
from modules.web.app import StudioServer, create_app
settings = parse({command(tmp_path)[2:]!r})
server = StudioServer(create_app(Studio(settings), settings), settings)
threading.Thread(target=server.serve_forever, daemon=True).start()
page = urllib.request.urlopen(f"http://127.0.0.1:{{server.port}}/").read()
assert b"<html" in page
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
sys.stdout.flush()
import os
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(not POSIX, reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_stops_in_time_though_clients_hold_on_to_it(tmp_path: Path, number: signal.Signals) -> None:
    with program(tmp_path) as (process, url), ExitStack() as held:
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        for request in (
            b"",
            b"GET / HT",
            f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 99\r\n\r\n-".encode(),
            handshake(port),
        ):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(request)
        get(url + "api/health")
        started = time.perf_counter()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert time.perf_counter() - started < 5 * slowness()


def test_a_port_in_use_is_one_clear_line_and_exit_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*command(tmp_path), "--port", str(port)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert str(port) in lines[0]
    assert "in use" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(98, "x"), "in use"),
        (OSError(10048, "x"), "in use"),
        (OSError(13, "x"), "over 1023"),
        (OSError(99, "Cannot assign"), "Cannot assign"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_in_one_line(error: OSError, words: str) -> None:
    line = bind_problem("10.1.1.1", 80, error)
    assert words in line
    assert "\n" not in line


def test_a_host_that_is_not_ours_is_a_clear_error(tmp_path: Path) -> None:
    settings = replace(settings_in(tmp_path), host="203.0.113.7")
    with running(settings_in(tmp_path)) as other, pytest.raises(contract.Conflict, match=r"203\.0\.113\.7"):
        StudioServer(create_app(other.studio, settings), settings)


@pytest.mark.parametrize(
    ("host", "listen", "token", "url"),
    [
        ("127.0.0.1", False, "", "http://127.0.0.1:5/"),
        ("::1", False, "", "http://[::1]:5/"),
        ("127.0.0.1", True, "abc", "http://127.0.0.1:5/?token=abc"),
        ("192.168.1.2", False, "abc", "http://192.168.1.2:5/?token=abc"),
        ("127.0.0.1", True, "a b&c#é", "http://127.0.0.1:5/?token=a%20b%26c%23%C3%A9"),
    ],
)
def test_the_address_is_one_that_opens_on_this_machine(host: str, listen: bool, token: str, url: str) -> None:
    assert address(Settings(host=host, listen=listen), 5, token) == url


def test_the_browser_is_opened_unless_it_is_not_wanted_or_there_is_no_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda _url: opened.set())
    monkeypatch.setattr(web_app, "has_display", lambda: False)
    announce("http://127.0.0.1:5/", Settings())
    monkeypatch.setattr(web_app, "has_display", lambda: True)
    announce("http://127.0.0.1:5/", Settings(no_browser=True))
    assert not opened.wait(0.2)
    announce("http://127.0.0.1:5/", Settings())
    assert opened.wait(5)
    assert capsys.readouterr().out.count("http://127.0.0.1:5/\n") == 3


def test_a_display_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not web_app.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert web_app.has_display()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("WAYLAND_DISPLAY")
    assert web_app.has_display()


# ------------------------------------------------------------------------------------- what holds it up
def test_half_open_requests_hold_nothing_up_and_end_at_their_deadline(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "HEADER_DEADLINE_S", 3.0)
    with ExitStack() as held:
        clients = [held.enter_context(socket.create_connection(("127.0.0.1", live.port))) for _ in range(60)]
        for client in clients:
            client.sendall(b"GET /api/health HTTP/1.1\r\nHost: ")
        assert live.ask("GET", "/api/health").status == 200
        assert live.server.connections >= 60, "it was answered while they were still open"
        # One byte now and then does not move the deadline.
        until = time.monotonic() + 30
        while live.server.connections and time.monotonic() < until:
            with suppress(OSError):
                for client in clients:
                    client.sendall(b"x")
            time.sleep(0.1)
        assert live.server.connections == 0


def test_a_connection_beyond_the_cap_is_answered_at_once_and_the_next_one_after_a_leave_is_served(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "MAX_CONNECTIONS", 5)
    with ExitStack() as held:
        for _ in range(5):
            held.enter_context(socket.create_connection(("127.0.0.1", live.port)))
        until = time.monotonic() + 5
        while live.server.connections < 5 and time.monotonic() < until:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", live.port), timeout=5) as refused:
            assert refused.recv(100).startswith(b"HTTP/1.1 503")
    until = time.monotonic() + 5
    while live.server.connections and time.monotonic() < until:
        time.sleep(0.01)
    assert live.ask("GET", "/api/health").status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
    ids=lambda data: repr(data[:18]),
)
def test_what_is_not_http_is_refused_in_the_envelope_and_with_the_headers(live: Live, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while block := client.recv(65536):
            received += block
    if received:
        head, _, body = received.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 4\d\d|HTTP/1\.1 505", head), head
        assert json.loads(body)["ok"] is False
        assert b"Content-Security-Policy" in head
        assert b"Python" not in head
    assert live.ask("GET", "/api/health").status == 200


def test_a_refused_upload_s_sender_sees_the_refusal(live: Live) -> None:
    size = 600 * 1024 * 1024
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.putrequest("POST", "/api/uploads")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    connection.send(b"x" * 5_000_000)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "too_large"
    connection.close()


# --------------------------------------------------------------------------------------------- many clients
def handshake(port: int) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def heard(clients: list[socket.socket], word: bytes, within_s: float) -> int:
    """How many clients receive something with `word` in it."""
    waiting = dict.fromkeys(clients, b"")
    end = time.monotonic() + within_s
    while waiting and time.monotonic() < end:
        for client in select.select(list(waiting), [], [], 0.2)[0]:
            waiting[client] += client.recv(65536)
            if word in waiting[client]:
                del waiting[client]
    return len(clients) - len(waiting)


def test_two_hundred_pages_are_told_and_cost_little_memory(live: Live) -> None:
    job = live.studio.submit({"kind": "generate", "client_id": "c", "prompt": "p"})
    before_mb = psutil.Process().memory_info().rss / 1e6
    with ExitStack() as held:
        clients = []
        for _ in range(200):
            client = held.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=20))
            client.sendall(handshake(live.port))
            clients.append(client)
        assert heard(clients, b"pingInterval", 30) == 200
        for client in clients:
            client.sendall(b"\x81\x82\0\0\0\0" + b"40")
        assert heard(clients, b'"hello"', 30) == 200

        def told(word: str) -> float:
            started = time.perf_counter()
            live.studio.change_job(job.id, status="running", unknown_words=[word])
            assert heard(clients, word.encode(), 30) == 200
            return time.perf_counter() - started

        words = iter(("everybody", "everyone", "all"))
        assert_within(1.0, lambda: told(next(words)))
        assert live.ask("GET", "/api/health").status == 200
        assert psutil.Process().memory_info().rss / 1e6 - before_mb < 120


# ------------------------------------------------------------------------------------ the real studio
def test_no_fuzzed_request_makes_a_5xx_of_the_real_studio(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    studio = Studio(settings)
    try:
        with running(settings, studio=studio) as live:  # type: ignore[arg-type]
            fuzz = Fuzz(json.loads(json.dumps(openapi.document())), seed=7)
            statuses: set[int] = set()
            end = time.monotonic() + 8
            for _ in range(400):
                method, path, rest = fuzz.request()
                answer = live.ask(method, path, **rest)
                statuses.add(answer.status)
                assert answer.status < 500, (method, path, rest, answer.body[:300])
                if time.monotonic() > end:
                    break
            assert {200, 400, 404} <= statuses
    finally:
        studio.stop()
