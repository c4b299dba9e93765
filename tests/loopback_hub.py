"""A model hub on loopback: the routes and headers the real hub client asks for, over files the tests make."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by (repo, name), and what happens to those who ask.

    `break_after` cuts each answer after so many bytes (once for each entry taken from `breaks`); `ignore_ranges`
    answers a range with everything; `corrupt` sends other bytes than the checksum promises; `statuses` are sent in
    place of the next answers; `pause_s` is slept before each 64 kB; `requests` is the log.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.breaks: list[int] = []
        self.ignore_ranges = False
        self.corrupt = False
        self.statuses: list[int] = []
        self.pause_s = 0.0
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def add(self, repo: str, name: str, content: bytes) -> None:
        self.files[repo, name] = content

    def add_folder(self, root: Path, *repos: str) -> None:
        """Serve the files under `root/<repo>` of each repository."""
        for repo in repos:
            for path in (root / repo).iterdir():
                self.add(repo, path.name, path.read_bytes())

    def gets(self) -> list[tuple[str, str | None]]:
        """(path, Range) of every GET."""
        return [(path, span) for method, path, span in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).lstrip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.statuses:
            self._plain(self.hub.statuses.pop(0))
            return
        if path.startswith("api/models/"):
            self._list(path.removeprefix("api/models/").partition("/tree/")[0])
            return
        repo, _, rest = path.partition("/resolve/")
        content = self.hub.files.get((repo, rest.partition("/")[2]))
        if content is None:
            self._plain(404, "EntryNotFound")
            return
        start = self._start(len(content))
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self._send(bytes(255 - b for b in body) if self.hub.corrupt else body)

    def _plain(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, repo: str) -> None:
        """What the hub's API says is in a repository."""
        files = [
            {"type": "file", "oid": "0" * 40, "path": name, "size": len(content)}
            for (owner, name), content in self.hub.files.items()
            if owner == repo
        ]
        if not files:
            self._plain(404, "RepoNotFound")
            return
        body = json.dumps(files).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _start(self, size: int) -> int:
        span = self.headers.get("Range")
        if span is None or self.hub.ignore_ranges:
            return 0
        return min(int(span.removeprefix("bytes=").partition("-")[0]), size)

    def _send(self, body: bytes) -> None:
        if self.hub.breaks:
            self.wfile.write(body[: self.hub.breaks.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        for at in range(0, len(body), 1 << 16):
            time.sleep(self.hub.pause_s)
            self.wfile.write(body[at : at + (1 << 16)])


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub on a free port of loopback until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
