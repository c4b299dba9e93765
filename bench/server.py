"""How quick the page stays: GET /api/health under load, and 200 Socket.IO clients. Run: python -m bench.server

Each row is a server in a process of its own, so that what asks does not share its interpreter. The peer is the same
answer from a bare Flask application under the same werkzeug server: what the guard, the caps and the contract cost.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.report import machine

LOADS = ("idle", "python", "matmul", "generate")
"""What runs beside the requests: nothing, a Python loop that never lets go of the lock by itself (the worst case),
matrix products (what a decoder step is), a real generation by the embedded model."""
EVENTS = 50
JOB = {
    "id": "bench", "client_id": "bench", "rev": 0, "kind": "generate", "status": "running", "phase": "generating",
    "created_at": "2026-01-01T00:00:00+00:00", "request": {},
}  # fmt: skip


# ------------------------------------------------------------------------------------------ the server
def serve(kind: str, load: str) -> None:
    """The child: print the port, then serve until killed."""
    from modules.settings import ROOT, Settings
    from modules.studio import Studio
    from modules.web.app import SWITCH_INTERVAL_S, StudioServer, create_app

    if load == "generate" and not (ROOT / "models" / "tiny").is_dir():
        # Without it the row would show a failed job's load and call it a generation's.
        raise SystemExit("generate: there is no models/tiny to generate with")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(port=0, data_dir=Path(folder, "data"), state_dir=Path(folder, "state"), offline=True)
        studio = Studio(settings)
        ours = create_app(studio, settings)
        app: Any = ours if kind == "ours" else bare_app()
        server = StudioServer(app, settings)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        threading.Thread(target=work, args=(load, studio), daemon=True).start()
        threading.Thread(target=tell, args=(ours.extensions["broadcast"],), daemon=True).start()
        sys.stdout.write(f"port {server.port}\n")
        sys.stdout.flush()
        server.serve_forever()


def bare_app() -> Any:
    from flask import Flask

    app = Flask("bare")

    @app.get("/api/health")
    def health() -> dict[str, Any]:
        return {"ok": True, "health": {"version": "0", "queue": {"queued": 0, "running": 0}}}

    return app


def work(load: str, studio: Any) -> None:
    if load == "python":
        count = 0
        while True:
            count += 1
    if load == "matmul":
        import numpy as np

        left = np.random.default_rng(0).standard_normal((512, 512), np.float32)
        while True:
            left @ left
    if load == "generate":
        studio.start()
        while True:
            body = {
                "kind": "generate",
                "client_id": f"c{time.monotonic_ns()}",
                "prompt": "warm piano",
                "duration": 30.0,
            }
            job = studio.submit({**body, "model": "tiny"})
            while studio.job(job.id).status in ("queued", "running"):
                time.sleep(0.2)


def tell(broadcast: Any) -> None:
    """A snapshot five times a second that carries the moment it was told."""
    from modules.contract import Job

    for rev in range(1, 1_000_000):
        broadcast.job(Job.model_validate({**JOB, "rev": rev, "unknown_words": [f"@{time.monotonic_ns()}@"]}))
        time.sleep(0.2)


# -------------------------------------------------------------------------------------------- measuring
@dataclass
class Child:
    process: subprocess.Popen[str]
    port: int

    @property
    def memory_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    @property
    def threads(self) -> int:
        return int(psutil.Process(self.process.pid).num_threads())


def start(kind: str, load: str) -> Child:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.server", "--child", kind, load], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith("port "):
        raise SystemExit(f"the server did not start (exit status {process.wait()})")
    return Child(process, int(line.split()[1]))


def stop(child: Child) -> None:
    child.process.kill()
    child.process.wait()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ask_health(port: int, seconds: float) -> list[float]:
    """Milliseconds of each GET /api/health, one every 20 ms, each on a connection of its own as a page's are."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/api/health")
        connection.getresponse().read()
        connection.close()
        took.append((time.perf_counter() - started) * 1000)
        time.sleep(0.02)
    return took


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        (
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(4096)
    client.sendall(b"\x81\x82\0\0\0\0" + b"40")
    return client


def listen(clients: list[socket.socket], events: int) -> list[float]:
    """Milliseconds from telling the broadcaster to arriving, of so many events at every client."""
    took: list[float] = []
    end = time.monotonic() + 60
    while len(took) < events * len(clients) and time.monotonic() < end:
        for client in select.select(clients, [], [], 1.0)[0]:
            data = client.recv(65536)
            now = time.monotonic_ns()
            took += [(now - int(found)) / 1e6 for found in re.findall(rb"@(\d+)@", data)]
    return took


def health_row(kind: str, load: str, seconds: float) -> str:
    child = start(kind, load)
    try:
        if load == "generate":
            time.sleep(25.0)  # the stack is imported and the model is loaded by then
        ask_health(child.port, 1.0)
        took = ask_health(child.port, seconds)
    finally:
        stop(child)
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    return f"{kind:5} {load:9} {len(took):6} {p50:8.1f} {p99:8.1f} {max(took):8.1f}"


def clients_row(count: int) -> str:
    child = start("ours", "idle")
    try:
        ask_health(child.port, 0.5)
        before_mb, before_threads = child.memory_mb, child.threads
        with ExitStack() as held:
            clients = [held.enter_context(connect(child.port)) for _ in range(count)]
            listen(clients, 2)
            took = listen(clients, EVENTS)
            more_mb, more_threads = child.memory_mb - before_mb, child.threads - before_threads
    finally:
        stop(child)
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    return f"{count:7} {more_mb:8.1f} {more_threads:8} {len(took):8} {p50:8.1f} {p99:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "LOAD"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each row asks")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=[load for load in LOADS if load != "generate"])
    arguments = parser.parse_args()
    if arguments.child:
        serve(*arguments.child)
        return
    print(machine())
    print("\nGET /api/health, ms\nside  beside       asks      p50      p99      max")
    for load in arguments.loads:
        for kind in ("bare", "ours"):
            print(health_row(kind, load, arguments.seconds), flush=True)
    print("\nSocket.IO, ms from the change to its arrival\nclients   +MB     +threads  events      p50      p99")
    print(clients_row(arguments.clients), flush=True)


if __name__ == "__main__":
    main()
