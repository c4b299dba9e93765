"""Socket.IO: submit and cancel from the page; hello, job snapshots and library changes to it.

Snapshots go out from one thread through a latest-wins map, so neither the worker nor a slow client ever waits for
the other, and a burst of progress becomes at most ten events a second a job. The WebSocket itself is bounded here,
because Socket.IO checks a message's size only once all of it is in memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import simple_websocket
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI
from flask import Flask, request
from flask_socketio import SocketIO
from wsproto.utilities import ProtocolError

from modules import contract
from modules.contract import (
    CancelRequest,
    EventName,
    Internal,
    InvalidRequest,
    Job,
    LibraryChange,
    StudioError,
    TooManyRequests,
    Track,
)
from modules.web.guard import error_response, is_socket
from modules.web.routes import Studio

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.1
"""Between two snapshots of one job: ten a second."""
MAX_MESSAGE_BYTES = contract.MAX_JSON_BYTES
MAX_WAITING_MESSAGES = 32
"""Messages read from a client but not handled yet; then its socket is not read until they are."""
MESSAGES_PER_S, BURST = 25.0, 60.0
MAX_BEHIND = 512
"""Packets a client may lag behind before it is dropped; it reconnects and hello brings it up to date."""
MAX_CLIENTS = 300
HANDSHAKES_PER_S = 20.0
PING_INTERVAL_S, PING_TIMEOUT_S = 25, 20
SEND_PATIENCE_S = 10.0
"""How long a client may take none of what is sent to it."""
REMEMBERED_JOBS = 2000


# ------------------------------------------------------------------------------------------ broadcast
class Broadcast:
    """One thread that sends what is newest.

    Args:
        emit: sends one event to every client; called only from this thread.
    """

    def __init__(self, emit: Callable[[str, dict[str, Any]], None], *, interval_s: float = MIN_INTERVAL_S) -> None:
        self._emit = emit
        self._interval_s = interval_s
        self._jobs: dict[str, Job] = {}
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._tracks: dict[str, tuple[str, Track | None]] = {}
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="broadcast", daemon=True)
        self._thread.start()

    def job(self, job: Job) -> None:
        """Take a snapshot; returns at once. An older one than is known is dropped."""
        with self._wake:
            waiting = self._jobs.get(job.id)
            known = max(waiting.rev if waiting else -1, self._sent.get(job.id, (-1, 0.0))[0])
            if job.rev > known:
                self._jobs[job.id] = job
                self._wake.notify()

    def library(self, change: LibraryChange) -> None:
        """Take a change; returns at once. Changes of one track that wait together become one."""
        with self._wake:
            for track in change.added:
                self._tracks[track.name] = ("added", track)
            for track in change.changed:
                waiting = self._tracks.get(track.name)
                self._tracks[track.name] = (waiting[0] if waiting and waiting[1] else "changed", track)
            for name in change.removed:
                self._tracks[name] = ("removed", None)
            self._wake.notify()

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(1.0)

    def _run(self) -> None:
        while True:
            jobs, change = self._collect()
            if jobs is None:
                return
            for job in jobs:
                self._send(EventName.JOB, job)
            if change is not None:
                self._send(EventName.LIBRARY, change)

    def _send(self, event: EventName, payload: Job | LibraryChange) -> None:
        try:
            self._emit(event.value, payload.model_dump(mode="json", by_alias=True))
        except Exception:  # the thread must outlive whatever one client's socket raises
            logger.exception("an event could not be sent")

    def _collect(self) -> tuple[list[Job] | None, LibraryChange | None]:
        """Wait for something that may be sent now, and take it. (None, None): stop."""
        with self._wake:
            while True:
                if self._stopped:
                    return None, None
                now = time.monotonic()
                due = [job for job in self._jobs.values() if self._due(job.id) <= now]
                if due or self._tracks:
                    break
                soonest = min((self._due(job_id) for job_id in self._jobs), default=None)
                self._wake.wait(None if soonest is None else max(0.0, soonest - now))
            for job in due:
                del self._jobs[job.id]
                self._sent[job.id] = (job.rev, now)
                self._sent.move_to_end(job.id)
            while len(self._sent) > REMEMBERED_JOBS:
                self._sent.popitem(last=False)
            return due, self._take_change()

    def _due(self, job_id: str) -> float:
        return self._sent.get(job_id, (-1, -self._interval_s))[1] + self._interval_s

    def _take_change(self) -> LibraryChange | None:
        if not self._tracks:
            return None
        waiting, self._tracks = self._tracks, {}
        return LibraryChange(
            added=[track for kind, track in waiting.values() if track and kind == "added"],
            changed=[track for kind, track in waiting.values() if track and kind == "changed"],
            removed=[name for name, (kind, _) in waiting.items() if kind == "removed"],
        )


# ------------------------------------------------------------------------------- bounded transports
class Wire:
    """A WebSocket's socket: whole frames, one at a time, and an end to waiting for a client that is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._incoming = connection
        # The same connection, with a patience of its own: a pong may take a minute to come, a send may not.
        self._outgoing = connection.dup()
        self._incoming.settimeout(PING_INTERVAL_S + PING_TIMEOUT_S + 5.0)
        self._outgoing.settimeout(SEND_PATIENCE_S)
        self._sending = threading.Lock()

    def recv(self, size: int) -> bytes:
        return self._incoming.recv(size)

    def send(self, data: bytes) -> int:
        # With a timeout set, socket.send may take a part of a frame; two threads send (answers and pongs).
        with self._sending:
            try:
                self._outgoing.sendall(data)
            except OSError:
                self._shut()
                raise
        return len(data)

    def fileno(self) -> int:
        return self._incoming.fileno()

    def close(self) -> None:
        self._shut()
        self._outgoing.close()
        self._incoming.close()

    def _shut(self) -> None:
        # Wakes whoever waits in recv, which closing alone does not.
        with contextlib.suppress(OSError):
            self._incoming.shutdown(socket.SHUT_RDWR)


class Bucket:
    """A token bucket: so many at once, so many a second in the long run."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst, self._left = per_s, burst, burst
        self._filled_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, *, wait: bool = False) -> float:
        """Take one. Returns the seconds until it is there: 0 when it is; with `wait` it is taken all the same."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._filled_at) * self._per_s)
            self._filled_at = now
            if self._left >= 1 or wait:
                self._left -= 1
                return max(0.0, -self._left / self._per_s)
            return (1 - self._left) / self._per_s


class BoundedServer(simple_websocket.Server):  # type: ignore[misc]
    """A WebSocket that stops reading from a client which sends faster than it is answered."""

    def __init__(self, environ: WSGIEnvironment, **options: Any) -> None:
        self._rate = Bucket(MESSAGES_PER_S, BURST)
        super().__init__(environ, max_message_size=MAX_MESSAGE_BYTES, **options)

    def receive(self, timeout: float | None = None) -> Any:
        """The next message, not faster than MESSAGES_PER_S in the long run."""
        message = super().receive(timeout)
        time.sleep(self._rate.take(wait=True))
        return message

    def _handle_events(self) -> bool:
        going: bool = super()._handle_events()
        while going and self.connected and len(self.input_buffer) > MAX_WAITING_MESSAGES:
            time.sleep(0.05)
        return going

    def _thread(self) -> None:
        # A malformed frame ends the library's reader without waking whoever waits for a message.
        try:
            super()._thread()
        except (ProtocolError, ValueError) as error:
            logger.debug("a WebSocket sent what is not WebSocket: %s", error)
            self.sock.close()
        finally:
            self.connected = False
            self.event.set()


class BoundedWebSocket(SimpleWebSocketWSGI):  # type: ignore[misc]
    """What Socket.IO makes of a WebSocket handshake: the bounded server, without compression.

    Compression is not negotiated: one small compressed frame can unfold into hundreds of megabytes, and each client's
    windows cost more memory than the rest of it.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ = {key: value for key, value in environ.items() if key != "HTTP_SEC_WEBSOCKET_EXTENSIONS"}
        environ["werkzeug.socket"] = Wire(environ["werkzeug.socket"])
        try:
            self.ws = BoundedServer(environ, **self.server_args)
        except (ProtocolError, simple_websocket.SimpleWebsocketError):
            return error_response(InvalidRequest("this is not a WebSocket handshake"))(environ, start_response)
        self.app(self)
        # The socket is used up: this is how werkzeug is told not to write an answer to it.
        raise ConnectionError


class ClientQueue(queue.Queue[Any]):
    """Packets that wait for one client. One that lags too far behind is let go of, not waited for."""

    def _put(self, item: Any) -> None:
        if item is not None and len(self.queue) >= MAX_BEHIND:
            self.queue.clear()
            self.unfinished_tasks = 0
            item = None  # Socket.IO's own sign for: close this client
        super()._put(item)


class StrictJson:
    """The json module for Socket.IO's packets: what nests too deeply is not JSON, instead of an unwound thread."""

    @staticmethod
    def dumps(value: Any, **options: Any) -> str:
        return json.dumps(value, **options)

    @staticmethod
    def loads(text: str | bytes, **options: Any) -> Any:
        try:
            return json.loads(text, **options)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class Handshakes:
    """Refuses what would open a Socket.IO session but is no handshake, or is one too many.

    Each session costs threads, one of which outlives it by a ping's interval, so the rate is bounded as well.
    """

    def __init__(self, app: WSGIApplication, sockets: Callable[[], Sized]) -> None:
        self._app, self._sockets = app, sockets
        self._rate = Bucket(HANDSHAKES_PER_S, MAX_CLIENTS)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_socket(environ["PATH_INFO"]):
            try:
                self._check(environ, parse_qs(environ.get("QUERY_STRING", "")))
            except StudioError as error:
                return error_response(error)(environ, start_response)
        return self._app(environ, start_response)

    def _check(self, environ: WSGIEnvironment, query: dict[str, list[str]]) -> None:
        upgrades = "HTTP_UPGRADE" in environ or query.get("transport") == ["websocket"]
        if upgrades and not is_websocket_handshake(environ):
            raise InvalidRequest("this is not a WebSocket handshake")
        if "sid" in query:
            return
        if len(self._sockets()) >= MAX_CLIENTS:
            raise TooManyRequests(f"{MAX_CLIENTS} pages are connected already: close some")
        wait_s = self._rate.take()
        if wait_s > 0:
            raise TooManyRequests("too many pages connect at once", details={"retry_after_s": max(1, round(wait_s))})


def is_websocket_handshake(environ: WSGIEnvironment) -> bool:
    """True when the headers are those of RFC 6455, section 4.2.1; the library checks less and breaks on some."""
    connection = [word.strip().lower() for word in environ.get("HTTP_CONNECTION", "").split(",")]
    return (
        environ["REQUEST_METHOD"] == "GET"
        and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        and "upgrade" in connection
        and environ.get("HTTP_SEC_WEBSOCKET_VERSION") == "13"
        and re.fullmatch(r"[A-Za-z0-9+/]{22}==", environ.get("HTTP_SEC_WEBSOCKET_KEY", "")) is not None
    )


# ------------------------------------------------------------------------------------------- Socket.IO
def attach(app: Flask, studio: Studio) -> Broadcast:
    """Put Socket.IO around `app.wsgi_app` and connect it to the studio. The guard goes around both, later."""
    socketio = SocketIO(
        app,
        async_mode="threading",
        # A client's events are handled in its own thread, one after another: a flood slows down only its sender.
        async_handlers=False,
        # hello is sent from the connect handler, so the client must be connected by then.
        always_connect=True,
        max_http_buffer_size=MAX_MESSAGE_BYTES,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_TIMEOUT_S,
        manage_session=False,
        http_compression=False,
        json=StrictJson,
        logger=_silent("socketio"),
        engineio_logger=_silent("engineio"),
    )
    engine = socketio.server.eio
    # engineio has no option for these two; the table is shared by all servers of the process, so it is copied.
    engine._async = {**engine._async, "websocket": BoundedWebSocket, "queue": ClientQueue}  # noqa: SLF001
    app.wsgi_app = Handshakes(app.wsgi_app, lambda: engine.sockets)  # type: ignore[method-assign]
    register_handlers(socketio, studio)
    broadcast = Broadcast(socketio.emit)
    studio.subscribe(broadcast.job, broadcast.library)
    return broadcast


def _silent(name: str) -> logging.Logger:
    """A logger for what only clients cause: a flood of nonsense must not become a flood in the log."""
    quiet = logging.getLogger(f"{__name__}.{name}")
    quiet.setLevel(logging.CRITICAL)
    return quiet


def register_handlers(socketio: SocketIO, studio: Studio) -> None:
    def connect(auth: Any = None) -> None:
        del auth
        hello = studio.hello().model_dump(mode="json", by_alias=True)
        socketio.emit(EventName.HELLO.value, hello, to=request.sid)  # type: ignore[attr-defined]

    def submit(body: Any = None, *_rest: Any) -> dict[str, Any]:
        return answer(lambda: studio.submit(body))

    def cancel(body: Any = None, *_rest: Any) -> dict[str, Any]:
        return answer(lambda: cancel_job(studio, body))

    socketio.on_event("connect", connect)
    socketio.on_event(EventName.SUBMIT.value, submit)
    socketio.on_event(EventName.CANCEL.value, cancel)


def cancel_job(studio: Studio, body: Any) -> Job:
    """{"id": ..., "keep": bool}, the keep optional."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    job_id = body.get("id")
    if not isinstance(job_id, str):
        raise contract.InvalidParameter("id: must be the id of a job", field="id")
    wish: CancelRequest = contract.parse(CancelRequest, {key: body[key] for key in body if key != "id"})
    return studio.cancel(job_id, keep=wish.keep)


def answer(call: Callable[[], Job]) -> dict[str, Any]:
    """The acknowledgement: the same envelope as over HTTP."""
    try:
        return contract.ok(job=call())
    except StudioError as error:
        return contract.failure(error)
    except Exception:  # the edge of the program: a client gets words, the log gets the stack
        logger.exception("an event failed")
        return contract.failure(Internal("something went wrong inside the program: its log has the details"))
