"""The one WSGI guard around everything the server answers, Socket.IO's endpoint included.

Flask's own hooks never see /socket.io, so the rules stand here, outside Flask and outside Socket.IO. Each rule is a
defence with a name; a test builds the app without one and shows that the attack then works.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import threading
import time
import urllib.parse
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, TypeAlias

from werkzeug.wrappers import Response

from modules import contract
from modules.contract import (
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    StudioError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)
from modules.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Defence: TypeAlias = "Callable[[WSGIEnvironment], Response | None]"

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SOCKET_PATH = "/socket.io"
LOGIN_PATH = "/login"
UPLOAD_PATHS = re.compile(r"^/api/(uploads|tracks/[^/]+/mixdown)$")
"""Where a body may be as large as an upload; everywhere else it is JSON."""
DOCUMENT_PATHS = frozenset({"/", "/api/docs"})
"""What another site may link to: pages, and they answer the same to everybody."""

MAX_HEADER_BYTES = 16 * 1024
MAX_TARGET_BYTES = 8 * 1024
MAX_LOGIN_BYTES = 4 * 1024
MULTIPART_OVERHEAD_BYTES = 64 * 1024
LOGIN_FAILURES, LOGIN_WINDOW_S = 10, 300.0
"""Wrong tokens one address may send in the window before everything it sends is refused."""
COOKIE_MAX_AGE_S = 30 * 24 * 3600

_HOST = re.compile(r"^(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::(?P<port>\d{1,5}))?$", re.IGNORECASE)
_ENCODED_TRICKS = re.compile(r"%(?:2e|2f|5c|00)", re.IGNORECASE)
_TRUSTED_BY_PROXIES = re.compile(
    r"^HTTP_(X_FORWARDED.*|FORWARDED|X_REAL_IP|X_ORIGINAL_.*|X_REWRITE_.*|X_SCRIPT_NAME|X_HTTP_METHOD.*|"
    r"X_METHOD_OVERRIDE|X_HOST|TRUE_CLIENT_IP|PROXY)$"
)

_LOGIN_STYLE = (
    "body{font:16px system-ui,sans-serif;background:#14161a;color:#e8eaed;display:grid;place-content:center;"
    "min-height:100vh;margin:0}form{display:grid;gap:12px;width:min(320px,90vw)}"
    "input,button{font:inherit;padding:10px;border-radius:6px;border:1px solid #5f6670;min-height:40px}"
    "button{background:#8ab4f8;color:#14161a;border:0}p{margin:0}"
)
_LOGIN_STYLE_HASH = base64.b64encode(hashlib.sha256(_LOGIN_STYLE.encode()).digest()).decode()


def content_security_policy(style: str = "'self'") -> str:
    """The policy of every answer. `style` is the style sources: a nonce or a hash, never 'unsafe-inline'."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src {style}",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "font-src 'self'",
            "connect-src 'self'",
            "worker-src 'self'",
            "manifest-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Security-Policy", content_security_policy()),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Permissions-Policy",
        "camera=(), microphone=(), geolocation=(), payment=(), usb=(), serial=(), midi=(), display-capture=()",
    ),
    ("Cache-Control", "no-store"),
)
"""Added to every answer that does not set its own."""


@dataclass(frozen=True)
class Policy:
    """Who may talk to the server and how much they may send."""

    hosts: frozenset[str] | None
    """Names and addresses we answer to, lower case; None: any, which demands a token."""
    token: str = ""
    """Empty: no token is asked for (loopback)."""
    max_upload_bytes: int = 512 * 1024 * 1024
    max_json_bytes: int = contract.MAX_JSON_BYTES
    session_secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """The policy of a run: loopback names plus --host; any name, but a token, once others can reach us."""
        exposed = is_exposed(settings)
        wildcard = settings.bind_host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
        token = (settings.token or secrets.token_urlsafe(24)) if exposed else ""
        return cls(
            hosts=None if wildcard else LOOPBACK_NAMES | {settings.host.lower().strip("[]")},
            token=token,
            max_upload_bytes=settings.max_upload_mb * 1024 * 1024,
        )

    @property
    def session(self) -> str:
        """What the cookie holds: derived, so that the cookie never gives the token away."""
        return hmac.new(self.session_secret, self.token.encode(), "sha256").hexdigest()


def is_exposed(settings: Settings) -> bool:
    """True when other machines can reach the server: --listen, or a --host that is not loopback."""
    if settings.listen:
        return True
    host = settings.host.strip("[]").lower()
    if host in LOOPBACK_NAMES:
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


class Attempts:
    """Failed logins by address in a sliding window, in bounded memory."""

    def __init__(self, limit: int = LOGIN_FAILURES, window_s: float = LOGIN_WINDOW_S, addresses: int = 1024) -> None:
        self._limit, self._window_s, self._addresses = limit, window_s, addresses
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Raises TooManyRequests once `address` has used up its failures."""
        with self._lock:
            failures = self._failures.get(address)
            now = time.monotonic()
            while failures and now - failures[0] > self._window_s:
                failures.popleft()
            if failures and len(failures) >= self._limit:
                wait_s = max(1, round(self._window_s - (now - failures[0])))
                raise TooManyRequests(
                    f"too many wrong tokens from this address: try again in {wait_s} s",
                    field="token", details={"retry_after_s": wait_s},
                )  # fmt: skip

    def failed(self, address: str) -> None:
        with self._lock:
            self._failures.setdefault(address, deque(maxlen=self._limit)).append(time.monotonic())
            self._failures.move_to_end(address)
            while len(self._failures) > self._addresses:
                self._failures.popitem(last=False)


class Guard:
    """Checks every request before any application code, and adds the security headers to every answer.

    Args:
        app: Flask's WSGI application AFTER Socket.IO has wrapped itself around it.
        policy: who may talk to us.
        without: names of defences to leave out. Only for the tests that prove what each one is for.
    """

    def __init__(self, app: WSGIApplication, policy: Policy, *, without: Collection[str] = ()) -> None:
        self._app = app
        self.policy = policy
        self._attempts = Attempts()
        self._headers = "headers" not in without
        defences: dict[str, Defence] = {
            "framing": self._framing,
            "path": self._path,
            "host": self._host,
            "forwarded": self._forwarded,
            "fetch_site": self._fetch_site,
            "origin": self._origin,
            "token": self._token,
        }
        unknown = set(without) - set(defences) - {"headers"}
        if unknown:
            raise ValueError(f"there is no defence named {sorted(unknown)}")
        self._defences = [check for name, check in defences.items() if name not in without]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start = self._with_headers(start_response) if self._headers else start_response
        try:
            for defence in self._defences:
                answer = defence(environ)
                if answer is not None:
                    return answer(environ, start)
        except StudioError as error:
            return error_response(error)(environ, start)
        return self._app(environ, start)

    # ------------------------------------------------------------------------------------- defences
    def _framing(self, environ: WSGIEnvironment) -> None:
        """Methods we know, sizes within bounds, and no request that two parsers could read differently."""
        method = environ["REQUEST_METHOD"]
        if method not in METHODS:
            raise MethodNotAllowed(f"{method[:20]}: there is no such method here")
        if len(environ.get("RAW_URI", "")) > MAX_TARGET_BYTES:
            raise TooLarge(f"the address is longer than {MAX_TARGET_BYTES} bytes")
        total = sum(len(key) + len(value) for key, value in environ.items() if key.startswith("HTTP_"))
        if total > MAX_HEADER_BYTES:
            raise TooLarge(f"the headers are {total} bytes, at most {MAX_HEADER_BYTES} are taken")
        length, encoding = environ.get("CONTENT_LENGTH", ""), environ.get("HTTP_TRANSFER_ENCODING", "")
        if encoding and (length or encoding.strip().lower() != "chunked"):
            raise InvalidRequest("Transfer-Encoding: only a plain chunked body without Content-Length is taken")
        if not length:
            return
        if not (length.isascii() and length.isdigit()):
            raise InvalidRequest("Content-Length: must be one number")
        self._check_length(environ["PATH_INFO"], int(length))

    def _check_length(self, path: str, length: int) -> None:
        if UPLOAD_PATHS.match(path):
            most, kind = self.policy.max_upload_bytes + MULTIPART_OVERHEAD_BYTES, "upload"
        elif path == LOGIN_PATH:
            most, kind = MAX_LOGIN_BYTES, "form"
        else:
            most, kind = self.policy.max_json_bytes, "body"
        if length > most:
            raise TooLarge(f"the {kind} is {length} bytes, at most {most} are taken", field="body")

    def _path(self, environ: WSGIEnvironment) -> None:
        """No spelling of a path that a file system or another parser could read as a different one."""
        raw = environ.get("RAW_URI", "").split("?", 1)[0]
        path = environ["PATH_INFO"]
        segments = path.split("/")
        if (
            _ENCODED_TRICKS.search(raw)
            or "//" in path
            or "\\" in path
            or any(ord(char) < 0x20 or ord(char) == 0x7F for char in path)
            or any(segment in (".", "..") for segment in segments)
            or not path.startswith("/")
        ):
            raise NotFound("there is nothing at this address")
        try:
            path.encode("latin-1").decode("utf-8")
        except UnicodeError:
            raise NotFound("there is nothing at this address") from None

    def _host(self, environ: WSGIEnvironment) -> None:
        """The Host must be a name of ours with our port: a foreign name that resolves to us is DNS rebinding."""
        host = environ.get("HTTP_HOST", "")
        match = _HOST.match(host)
        if match is None:
            raise Forbidden("Host: is missing or not a host name", field="Host")
        if self.policy.hosts is None:
            return
        name = (match["six"] or match["name"]).lower()
        port = match["port"] or "80"
        if name not in self.policy.hosts or port != environ["SERVER_PORT"]:
            raise Forbidden(f"Host: {host[:100]} is not an address of this server", field="Host")

    def _forwarded(self, environ: WSGIEnvironment) -> None:
        """We stand behind no proxy: what claims to come from one is a lie, so nothing inside may see it."""
        for key in [key for key in environ if _TRUSTED_BY_PROXIES.match(key)]:
            del environ[key]

    def _fetch_site(self, environ: WSGIEnvironment) -> None:
        """Requests that a browser says another site caused are refused, except plain links to the pages.

        same-site is not enough: cookies and sites ignore ports, so another program on localhost is same-site.
        """
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is None or site == "same-origin":
            return
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and not is_socket(environ["PATH_INFO"]):
            if site == "none":
                return  # typed or bookmarked by the person: no page can cause this
            mode, target = environ.get("HTTP_SEC_FETCH_MODE"), environ.get("HTTP_SEC_FETCH_DEST")
            if mode == "navigate" and target == "document" and environ["PATH_INFO"] in DOCUMENT_PATHS:
                return
        raise Forbidden(f"Sec-Fetch-Site: {site[:40]} requests are refused", field="Sec-Fetch-Site")

    def _origin(self, environ: WSGIEnvironment) -> None:
        """A page of another origin may neither change anything nor open a socket. null is another origin."""
        socket = is_socket(environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and not socket:
            return
        if socket and "j" in urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True):
            # JSONP answers are scripts: any page could include one, and browsers send no Origin for it.
            raise Forbidden("j: script answers are not given", field="j")
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            return
        ours = f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST', '')}"
        if origin.lower() != ours.lower():
            raise Forbidden(f"Origin: {origin[:100]} is not this server", field="Origin")

    # ---------------------------------------------------------------------------------------- token
    def _token(self, environ: WSGIEnvironment) -> Response | None:
        """With --listen everybody shows the token: a cookie, a Bearer header, or once in the address."""
        if not self.policy.token:
            return None
        address = str(environ.get("REMOTE_ADDR", ""))
        if self._has_session(environ):
            return _to_start(environ) if environ["PATH_INFO"] == LOGIN_PATH else None
        self._attempts.check(address)
        if environ["PATH_INFO"] == LOGIN_PATH and environ["REQUEST_METHOD"] == "POST":
            return self._login(environ, address)
        bearer = environ.get("HTTP_AUTHORIZATION", "")
        if bearer[:7].lower() == "bearer ":
            self._check_token(bearer[7:].strip(), address)
            return None
        if environ["PATH_INFO"] == "/" and environ["REQUEST_METHOD"] == "GET":
            given = urllib.parse.parse_qs(environ.get("QUERY_STRING", "")).get("token", [])
            if given:
                self._check_token(given[0], address)
                return self._welcome(environ)
        if environ["PATH_INFO"] in ("/", LOGIN_PATH) and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return _login_page("")
        raise Unauthorized(
            "this server asks for its token: a cookie from /login, or Authorization: Bearer", field="token"
        )

    def _has_session(self, environ: WSGIEnvironment) -> bool:
        try:
            cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        except CookieError:
            return False
        morsel = cookies.get(cookie_name(environ))
        return morsel is not None and _same(morsel.value, self.policy.session)

    def _login(self, environ: WSGIEnvironment, address: str) -> Response:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        form = environ["wsgi.input"].read(min(length, MAX_LOGIN_BYTES)).decode("utf-8", "replace")
        given = urllib.parse.parse_qs(form, max_num_fields=10).get("token", [""]) if form.count("&") < 10 else [""]
        try:
            self._check_token(given[0].strip(), address)
        except Unauthorized as error:
            return _login_page(error.message)
        return self._welcome(environ)

    def _check_token(self, given: str, address: str) -> None:
        if not _same(given, self.policy.token):
            self._attempts.failed(address)
            raise Unauthorized("this is not the token that the program printed when it started", field="token")

    def _welcome(self, environ: WSGIEnvironment) -> Response:
        response = _to_start(environ)
        response.set_cookie(
            cookie_name(environ), self.policy.session, max_age=COOKIE_MAX_AGE_S, httponly=True, samesite="Strict",
            secure=environ["wsgi.url_scheme"] == "https",
        )  # fmt: skip
        return response

    # -------------------------------------------------------------------------------------- headers
    def _with_headers(self, start_response: StartResponse) -> StartResponse:
        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None, /) -> Callable[[bytes], object]:
            present = {name.lower() for name, _ in headers}
            headers = headers + [(name, value) for name, value in SECURITY_HEADERS if name.lower() not in present]
            return start_response(status, headers, exc_info)  # type: ignore[arg-type]

        return start


def is_socket(path: str) -> bool:
    return path == SOCKET_PATH or path.startswith(SOCKET_PATH + "/")


def cookie_name(environ: WSGIEnvironment) -> str:
    """Cookies ignore ports: the port in the name keeps two programs on one machine apart."""
    return f"studio_{environ['SERVER_PORT']}"


def error_response(error: StudioError) -> Response:
    """A StudioError as the failure envelope, with Retry-After and WWW-Authenticate where they belong."""
    response = Response(json.dumps(contract.failure(error)), error.status, mimetype="application/json")
    retry_after_s = error.details.get("retry_after_s")
    if error.status == 429:
        response.headers["Retry-After"] = str(retry_after_s or 5)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _to_start(environ: WSGIEnvironment) -> Response:
    del environ  # the redirect is relative: whatever name the visitor used stays
    return Response(status=303, headers={"Location": "/"})


def _login_page(problem: str) -> Response:
    """A form without script. It tells nothing about the program's state."""
    shown = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>audiocraft-webui</title><style>{_LOGIN_STYLE}</style>"
        f'<form method="post" action="{LOGIN_PATH}"><p>The program printed a token when it started.</p>{shown}'
        '<label for="token">Token</label><input id="token" name="token" type="password" required autofocus '
        'autocomplete="current-password"><button>Open</button></form></html>'
    )
    response = Response(page, 401, mimetype="text/html")
    response.headers["Content-Security-Policy"] = content_security_policy(f"'sha256-{_LOGIN_STYLE_HASH}'")
    # Under no-referrer browsers send a form's Origin as null, which the origin defence refuses.
    response.headers["Referrer-Policy"] = "same-origin"
    return response
