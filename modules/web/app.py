"""Builds the application, and serves it with werkzeug's threaded server, bounded."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote

from flask import Flask, render_template, request
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Response

from modules import contract
from modules.contract import Conflict, InvalidRequest, StudioError
from modules.settings import ROOT, VERSION, Settings
from modules.web import events, openapi, routes
from modules.web.guard import SECURITY_HEADERS, Guard, Policy, content_security_policy

logger = logging.getLogger(__name__)
access_log = logging.getLogger("modules.web.access")

LOCALES = ("en", "ru")
MAX_CONNECTIONS = 600
"""Each open connection holds a thread; beyond this a new one is answered 503 at once."""
HEADER_DEADLINE_S = 10.0
"""From connecting to the end of the request's headers: a half-open request holds its thread no longer."""
SILENCE_S = 30.0
"""The longest wait for the next bytes of a body, or for a client to take the next bytes of an answer."""
SWITCH_INTERVAL_S = 0.001
"""How long a busy thread keeps Python's lock when another asks. An answer takes it several times: at Python's own 5 ms
the page waits noticeably beside a generation."""
DRAIN_BYTES = 64 * 1024 * 1024
"""Read beyond the largest body we take, so that its sender still sees the refusal."""


def create_app(
    studio: routes.Studio, settings: Settings, *, policy: Policy | None = None, without: Collection[str] = ()
) -> Flask:
    """The whole web layer around a studio: routes, Socket.IO, and the guard outside both.

    Args:
        policy: who may talk to us; None derives it from the settings.
        without: defences to leave out (tests only, see Guard).
    """
    app = Flask("modules.web", root_path=str(ROOT), template_folder="templates", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = contract.MAX_JSON_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False
    routes.register(app, studio, settings)
    register_pages(app, settings)
    broadcast = events.attach(app, studio)
    guard = Guard(app.wsgi_app, policy or Policy.of(settings), without=without)
    app.wsgi_app = guard  # type: ignore[method-assign]
    app.extensions["guard"] = guard
    app.extensions["broadcast"] = broadcast
    return app


def register_pages(app: Flask, settings: Settings) -> None:
    facts = contract.page_facts(settings.max_upload_mb)

    @app.get("/")
    def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        locale = request.accept_languages.best_match(LOCALES, default=LOCALES[0])
        shell = render_template(
            "index.html", facts=facts, version=VERSION, protocol=contract.PROTOCOL, locale=locale, locales=LOCALES,
            csp_nonce=nonce,
        )  # fmt: skip
        response = Response(shell, mimetype="text/html")
        # The nonce is for the one style element that the waveform puts into its shadow root.
        response.headers["Content-Security-Policy"] = content_security_policy(f"'self' 'nonce-{nonce}'")
        response.headers["Vary"] = "Accept-Language"
        return response

    @app.get("/api/openapi.json")
    def openapi_json() -> Response:
        return Response(json.dumps(openapi.document(), ensure_ascii=False), mimetype="application/json")

    @app.get("/api/docs")
    def docs() -> str:
        document = openapi.document()
        return render_template("docs.html", document=document, operations=openapi.operations(document))


# --------------------------------------------------------------------------------------------- server
class _Metered(io.RawIOBase):
    """A connection's incoming bytes with an end: nobody sends for ever."""

    def __init__(self, connection: socket.socket, most: int) -> None:
        super().__init__()
        self._connection, self._left = connection, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._left <= 0:
            return 0
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Incoming(io.BufferedReader):
    """What a handler reads from."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size != 10_000_000:
            return super().read(size)
        # Werkzeug drains what is left of a request in reads of this size. It would wait for all of it, and an error
        # here would keep it from closing the answer, and with it the answer's files.
        try:
            return self.read1(size)
        except OSError:
            return b""


class Handler(WSGIRequestHandler):
    """One connection: deadlines, quiet logs, and refusals in the contract's envelope."""

    protocol_version = "HTTP/1.1"
    # http.server answers what it cannot read as HTTP/0.9, which has no headers.
    default_request_version = "HTTP/1.0"
    server_version = "audiocraft-webui"
    sys_version = ""
    timeout = SILENCE_S
    server: StudioServer

    def setup(self) -> None:
        super().setup()
        self.rfile = _Incoming(_Metered(self.connection, self.server.most_bytes), 64 * 1024)
        self.server.reading(self.connection)

    def parse_request(self) -> bool:
        complete = super().parse_request()
        self.server.read(self.connection)
        return complete

    def run_wsgi(self) -> None:
        try:
            super().run_wsgi()
        except ValueError:
            self.send_error(400)  # an address that is none, such as http://[

    def finish(self) -> None:
        self.server.read(self.connection)
        super().finish()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses before any application sees it."""
        del explain
        error = InvalidRequest(f"the request cannot be read: {(message or 'malformed')[:100]}")
        body = json.dumps(contract.failure(error)).encode()
        self.close_connection = True
        self.send_response(code)
        for name, value in (
            *SECURITY_HEADERS,
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ):
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return self.server_version

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # Without the query: it may hold the token.
        path = getattr(self, "path", "-").split("?", 1)[0].translate(self._control_char_table)
        access_log.debug("%s %s %s %s", getattr(self, "command", "-"), path, code, size)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        access_log.log(logging.WARNING if type == "error" else logging.DEBUG, message, *args)


class StudioServer(ThreadedWSGIServer):
    """werkzeug's threaded server with a cap on connections and a deadline for their headers.

    Raises:
        Conflict: the port is in use.
    """

    # On Windows SO_REUSEADDR lets a second program take a port that is in use.
    allow_reuse_address = sys.platform != "win32"
    request_queue_size = 256
    block_on_close = False

    def __init__(self, app: Flask, settings: Settings) -> None:
        self.most_bytes = settings.max_upload_mb * 1024 * 1024 + DRAIN_BYTES
        self._reading: dict[socket.socket, float] = {}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(settings.bind_host, settings.port, app, Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name service for our own name, which can take seconds.
        try:
            socketserver.TCPServer.server_bind(self)
        except (OSError, OverflowError) as error:
            self.server_close()
            raise Conflict(bind_problem(self.host, self.port, error), field="port") from None
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def connections(self) -> int:
        return len(self._open)

    def reading(self, connection: socket.socket) -> None:
        with self._lock:
            self._reading[connection] = time.monotonic() + HEADER_DEADLINE_S

    def read(self, connection: socket.socket) -> None:
        with self._lock:
            self._reading.pop(connection, None)

    def service_actions(self) -> None:
        """Called between accepts, a few times a second: end half-open requests whose time is up."""
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, deadline in self._reading.items() if deadline < now]
        for connection in late:
            shut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS
            if not full:
                self._open.add(request)
        if full:
            request.setblocking(False)
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        """End every open connection, so that no thread waits for one."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            shut(connection)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        access_log.log(logging.ERROR if type == "error" else logging.DEBUG, message, *args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        access_log.debug("a connection ended badly", exc_info=True)


def shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def bind_problem(host: str, port: int, error: OSError | OverflowError) -> str:
    """One line that says what is wrong with the address and what to do."""
    number = getattr(error, "errno", None)
    if number in (48, 98, 10048):
        return f"--port {port}: is in use by another program; stop it, or pass another --port (0 takes a free one)"
    if number in (13, 10013):
        return f"--port {port}: this system does not let you use it; pass one over 1023, such as 7860"
    return f"--host {host}: cannot listen there ({getattr(error, 'strerror', None) or error})"


def serve(app: Flask, settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until the main thread is interrupted (KeyboardInterrupt), then end every connection and return.

    Args:
        on_ready: called once with the address to open when the server answers; None prints it and opens the browser
            as the settings ask.
    Raises:
        Conflict: the port is in use.
    """
    server = StudioServer(app, settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    guard: Guard = app.extensions["guard"]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.25}, name="http", daemon=True)
    thread.start()
    try:
        url = address(settings, server.port, guard.policy.token)
        (on_ready or (lambda url: announce(url, settings)))(url)
        while thread.is_alive():
            # A bounded wait: on Windows an unbounded one cannot be interrupted.
            thread.join(0.5)
    except KeyboardInterrupt:
        logger.info("stopping")
    finally:
        server.shutdown()
        server.server_close()
        app.extensions["broadcast"].stop()
        server.close_all()


def address(settings: Settings, port: int, token: str = "") -> str:
    """What a person opens on this machine."""
    host = settings.bind_host
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def announce(url: str, settings: Settings) -> None:
    sys.stdout.write(f"audiocraft-webui {VERSION} is at {url}\n")
    sys.stdout.flush()
    if not settings.no_browser and has_display():
        threading.Thread(target=open_browser, args=(url,), name="browser", daemon=True).start()


def has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_browser(url: str) -> None:
    """Open the page. The port already listens by now, so the browser never shows a connection error."""
    try:
        webbrowser.open(url)
    except webbrowser.Error:
        logger.info("no browser could be opened: open %s yourself", url)


__all__ = ["StudioError", "StudioServer", "address", "create_app", "serve"]
