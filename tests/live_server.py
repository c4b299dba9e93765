"""A real server on a free port of this machine, in this process, for the tests of the web layer."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modules.settings import Settings
from modules.web.app import StudioServer, create_app
from modules.web.guard import Policy
from tests.fake_studio import FakeStudio


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


@dataclass
class Live:
    """One running server and how to talk to it byte by byte."""

    server: StudioServer
    studio: FakeStudio
    policy: Policy

    @property
    def port(self) -> int:
        return int(self.server.port)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: Any = None, json_: Any = None
    ) -> Answer:
        """A request exactly as given: the path is not normalised, a Host header may be a lie."""
        headers = dict(headers or {})
        if json_ is not None:
            body = json.dumps(json_)
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            data = body.encode() if isinstance(body, str) else body
            if data is not None and "Content-Length" not in headers and "Transfer-Encoding" not in headers:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            response = connection.getresponse()
            return Answer(response.status, response.msg, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Send bytes, return everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            received = b""
            while block := connection.recv(65536):
                received += block
            return received


@contextmanager
def running(
    settings: Settings, *, studio: FakeStudio | None = None, policy: Policy | None = None, without: Collection[str] = ()
) -> Iterator[Live]:
    studio = studio or FakeStudio(settings)
    app = create_app(studio, settings, policy=policy, without=without)
    server = StudioServer(app, settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Live(server, studio, app.extensions["guard"].policy)
    finally:
        server.shutdown()
        app.extensions["broadcast"].stop()
        server.close_all()
        thread.join(5)
