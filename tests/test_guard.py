"""The guard, over real sockets. Each defence is also taken out, to see that the attack then works."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modules.contract import StudioError, TooManyRequests
from modules.settings import Settings
from modules.web import routes
from modules.web.guard import MAX_HEADER_BYTES, Attempts, Guard, Policy, is_exposed
from tests.fake_studio import FakeStudio
from tests.live_server import Answer, Live, running

JOB = {"kind": "generate", "client_id": "c1", "prompt": "piano"}
HANDSHAKE = "/socket.io/?EIO=4&transport=polling"
TOKEN = "correct-horse"  # noqa: S105 - the tests' own


def settings_in(folder: Path, **changes: object) -> Settings:
    base = Settings(port=0, data_dir=folder / "data", state_dir=folder / "state", max_upload_mb=1, no_browser=True)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(settings_in(tmp_path_factory.mktemp("guard"))) as server:
        server.studio.add_track("song")
        yield server


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that demands a token, though only this machine can reach it."""
    settings = settings_in(tmp_path_factory.mktemp("listening"))
    with running(settings, policy=Policy(hosts=None, token=TOKEN)) as server:
        yield server


# --------------------------------------------------------------------- every defence, with and without
def foreign_host(live: Live) -> Answer:
    return live.ask("GET", "/api/health", headers={"Host": f"evil.example:{live.port}"})


def foreign_host_on_the_socket(live: Live) -> Answer:
    return live.ask("GET", HANDSHAKE, headers={"Host": f"evil.example:{live.port}"})


def foreign_origin(live: Live) -> Answer:
    return live.ask("POST", "/api/jobs", json_=JOB, headers={"Origin": "https://evil.example"})


def null_origin(live: Live) -> Answer:
    return live.ask("POST", "/api/jobs", json_=JOB, headers={"Origin": "null"})


def origin_of_another_port(live: Live) -> Answer:
    return live.ask("POST", "/api/jobs", json_=JOB, headers={"Origin": f"http://127.0.0.1:{live.port + 1}"})


def origin_of_another_scheme(live: Live) -> Answer:
    return live.ask(
        "DELETE", "/api/tracks", json_={"confirm": True}, headers={"Origin": f"https://127.0.0.1:{live.port}"}
    )


def caused_by_another_site(live: Live) -> Answer:
    return live.ask("POST", "/api/jobs", json_=JOB, headers={"Sec-Fetch-Site": "cross-site"})


def caused_by_another_port(live: Live) -> Answer:
    return live.ask("POST", "/api/jobs", json_=JOB, headers={"Sec-Fetch-Site": "same-site"})


def embedded_in_another_site(live: Live) -> Answer:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "audio"}
    return live.ask("GET", "/api/tracks", headers=headers)


def navigated_to_data_by_another_site(live: Live) -> Answer:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    return live.ask("GET", "/api/tracks", headers=headers)


def socket_opened_by_another_port(live: Live) -> Answer:
    return live.ask("GET", HANDSHAKE, headers={"Sec-Fetch-Site": "same-site"})


def encoded_dots(live: Live) -> Answer:
    return live.ask("GET", "/static/css/x/%2e%2e/docs.css")


def plain_dots(live: Live) -> Answer:
    return live.ask("GET", "/static/css/x/../docs.css")


def encoded_slash(live: Live) -> Answer:
    return live.ask("GET", "/static/css%2Fdocs.css")


def long_headers(live: Live) -> Answer:
    return live.ask("GET", "/api/health", headers={"X-Long": "x" * (MAX_HEADER_BYTES + 1)})


def two_lengths(live: Live) -> Answer:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "5", "Content-Type": "application/json"}
    return live.ask("DELETE", "/api/models/small/load", headers=headers, body=b"0\r\n\r\n")


ATTACKS: list[tuple[str, Callable[[Live], Answer]]] = [
    ("host", foreign_host),
    ("host", foreign_host_on_the_socket),
    ("origin", foreign_origin),
    ("origin", null_origin),
    ("origin", origin_of_another_port),
    ("origin", origin_of_another_scheme),
    ("fetch_site", caused_by_another_site),
    ("fetch_site", caused_by_another_port),
    ("fetch_site", embedded_in_another_site),
    ("fetch_site", navigated_to_data_by_another_site),
    ("fetch_site", socket_opened_by_another_port),
    ("path", encoded_dots),
    ("path", plain_dots),
    ("path", encoded_slash),
    ("framing", long_headers),
    ("framing", two_lengths),
]


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Live]]:
    """Servers that lack one defence each, made when first asked for."""
    made: dict[str, Live] = {}
    open_servers = []

    def without(defence: str) -> Live:
        if defence not in made:
            context = running(settings_in(tmp_path_factory.mktemp(defence)), without={defence})
            open_servers.append(context)
            made[defence] = context.__enter__()
        return made[defence]

    yield without
    for context in open_servers:
        context.__exit__(None, None, None)


@pytest.mark.parametrize(("defence", "attack"), ATTACKS, ids=[attack.__name__ for _, attack in ATTACKS])
def test_an_attack_is_refused_and_works_once_its_defence_is_taken_out(
    defence: str, attack: Callable[[Live], Answer], live: Live, unguarded: Callable[[str], Live]
) -> None:
    refused = attack(live)
    assert 400 <= refused.status < 500
    assert refused.json["ok"] is False
    assert attack(unguarded(defence)).status < 300


def test_nothing_was_queued_by_the_refused_requests(live: Live) -> None:
    before = len(live.studio.queue)
    for attack in (foreign_origin, null_origin, caused_by_another_site):
        attack(live)
    assert len(live.studio.queue) == before


def test_a_planted_symlink_is_not_served_and_is_without_the_check(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"private")
    with running(settings) as live:
        live.studio.add_track("song", stems=("drums",))
        for planted, address in (
            (settings.audio_dir / "song.wav", "/api/tracks/song/audio"),
            (settings.stems_dir / "song" / "drums.wav", "/api/tracks/song/stems/drums"),
        ):
            planted.unlink()
            planted.symlink_to(secret)
            assert live.ask("GET", address).status == 404
        assert live.ask("GET", "/api/tracks/song/stems.zip").status == 404
        monkeypatch.setattr(routes, "open_inside", lambda path, folder: path.open("rb"))
        assert live.ask("GET", "/api/tracks/song/audio").body == b"private"


def test_a_symlinked_folder_of_stems_is_not_served(tmp_path: Path, settings: Settings) -> None:
    elsewhere = tmp_path / "elsewhere"
    with running(settings) as live:
        live.studio.add_track("song", stems=("drums",))
        (settings.stems_dir / "song").rename(elsewhere)
        (settings.stems_dir / "song").symlink_to(elsewhere, target_is_directory=True)
        assert live.ask("GET", "/api/tracks/song/stems/drums").status == 404


def test_what_a_proxy_would_say_reaches_nothing_inside(settings: Settings) -> None:
    headers = {"Origin": "http://evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    with running(settings, without={"origin"}) as live:
        assert live.ask("GET", HANDSHAKE, headers=headers).status == 400
    with running(settings, without={"origin", "forwarded"}) as live:
        assert live.ask("GET", HANDSHAKE, headers=headers).status == 200


def test_every_answer_carries_the_security_headers_and_lacks_them_without_the_guard(
    live: Live, settings: Settings
) -> None:
    for path in ("/api/health", "/api/nothing", "/static/css/docs.css", HANDSHAKE, "/api/%2e", "/api/docs"):
        headers = live.ask("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "camera=()" in headers["Permissions-Policy"]
        assert "Python" not in headers["Server"]
        assert "Werkzeug" not in headers["Server"]
    with running(settings, without={"headers"}) as bare:
        assert "Content-Security-Policy" not in bare.ask("GET", "/api/health").headers


def test_a_defence_that_does_not_exist_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="hots"):
        Guard(lambda environ, start: [], Policy(hosts=None), without={"hots"})


# ------------------------------------------------------------------------------------ what is let in
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_loopback_names_with_our_port_are_hosts_of_ours(live: Live, name: str) -> None:
    assert live.ask("GET", "/api/health", headers={"Host": f"{name}:{live.port}"}).status == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:1", "localhost.evil.example:{port}", "evil@localhost:{port}", "", "[::2]:{port}", "a b"],
)
def test_any_other_host_is_refused(live: Live, host: str) -> None:
    answer = live.ask("GET", "/api/health", headers={"Host": host.format(port=live.port)})
    assert (answer.status, answer.code) == (403, "forbidden")


def test_a_request_without_a_host_or_with_two_is_refused(live: Live) -> None:
    assert live.raw(b"GET /api/health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")
    two = f"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nHost: evil\r\n\r\n".encode()
    assert live.raw(two).startswith(b"HTTP/1.1 403")


def test_an_absolute_address_cannot_smuggle_a_foreign_host(live: Live) -> None:
    request = f"GET http://evil.example/api/health HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n\r\n"
    assert live.raw(request.encode()).startswith(b"HTTP/1.1 403")


def test_a_named_host_is_answered_and_demands_a_token() -> None:
    policy = Policy.of(Settings(host="studio.lan"))
    assert policy.hosts is not None
    assert "studio.lan" in policy.hosts
    assert policy.token


@pytest.mark.parametrize(
    ("host", "listen", "exposed"),
    [
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("::1", False, False),
        ("127.0.0.9", False, False),
        ("127.0.0.1", True, True),
        ("0.0.0.0", False, True),  # noqa: S104 - not bound here
        ("192.168.1.4", False, True),
        ("box.lan", False, True),
    ],
)
def test_whoever_is_reached_by_others_asks_for_a_token(host: str, listen: bool, exposed: bool) -> None:
    settings = Settings(host=host, listen=listen)
    assert is_exposed(settings) is exposed
    assert bool(Policy.of(settings).token) is exposed


def test_the_page_itself_may_be_linked_to_from_elsewhere(live: Live) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert live.ask("GET", "/api/docs", headers=headers).status == 200


def test_an_address_typed_by_the_person_is_answered(live: Live) -> None:
    assert live.ask("GET", "/api/tracks/song/audio", headers={"Sec-Fetch-Site": "none"}).status == 200


def test_the_page_and_scripts_may_change_things(live: Live) -> None:
    from_page = {"Origin": live.origin, "Sec-Fetch-Site": "same-origin"}
    assert live.ask("POST", "/api/jobs", json_=JOB, headers=from_page).status == 202
    assert live.ask("POST", "/api/jobs", json_=JOB).status == 202


def test_script_answers_of_the_socket_endpoint_are_not_given(live: Live) -> None:
    assert live.ask("GET", HANDSHAKE + "&j=0").code == "forbidden"


# ---------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("path", "length"),
    [("/api/jobs", 300_000), ("/api/uploads", 3_000_000), (HANDSHAKE, 300_000), ("/api/tracks/a", 300_000)],
)
def test_a_body_over_the_cap_is_refused_before_it_is_read(live: Live, path: str, length: int) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "5, 5", "0x10", "٣"])
def test_a_length_that_is_no_number_is_refused(live: Live, length: str) -> None:
    request = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: {length}\r\n\r\n"
    assert live.raw(request.encode()).startswith(b"HTTP/1.1 400")


def test_an_unknown_method_is_refused(live: Live) -> None:
    assert live.ask("PROPFIND", "/api/health").status == 405


# ---------------------------------------------------------------------------------------------- paths
TRAVERSALS = [
    "/api/tracks/..%2f..%2fsecret/audio",
    "/api/tracks/%2e%2e/audio",
    "/api/tracks/..",
    "/api/tracks/..%5c..%5cx",
    "/api/tracks/a%00b",
    "/api/tracks//song",
    "/api//health",
    "/static/css/../../webui.py",
    "/static/css/..%2f..%2fwebui.py",
    "/static/css/%2e%2e/%2e%2e/webui.py",
    "/static/css/..\\..\\webui.py",
    "/static/audio/song.wav",
    "/static/stems/song/drums.wav",
    "/static/",
    "/static/css/",
    "/static/css",
    "/api/jobs/..%2f",
    "/api/models/%2e%2e/load",
    "/api/tracks/song/stems/..%2fx",
    "/api/tracks/%ff%fe",
    "/api/tracks/a%0d%0ab",
    "/static/js/../css/docs.css",
    "/static/css/./docs.css",
    "/static/css/C:%5cx",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_spelling_of_a_path_leads_out_of_its_folder(live: Live, path: str) -> None:
    answer = live.ask("GET", path)
    assert (answer.status, answer.code) == (404, "not_found")


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.sampled_from("./\\%2eEfF5cC0~:abc"), max_size=40))
def test_no_generated_path_reaches_the_program_s_own_sources(live: Live, tail: str) -> None:
    answer = live.ask("GET", "/static/css/" + tail + "/webui.py")
    assert answer.status in (400, 404)


# ---------------------------------------------------------------------------------------------- token
def cookie_of(answer: Answer) -> str:
    return answer.headers["Set-Cookie"].split(";")[0]


def form(token: str) -> dict[str, object]:
    return {"body": f"token={token}", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}


def test_without_the_token_nothing_is_answered_and_without_the_defence_it_is(
    listening: Live, settings: Settings
) -> None:
    for path in ("/api/health", "/api/tracks", "/static/css/docs.css", HANDSHAKE, "/api/openapi.json"):
        answer = listening.ask("GET", path)
        assert (answer.status, answer.code) == (401, "unauthorized")
    with running(settings, policy=Policy(hosts=None, token=TOKEN), without={"token"}) as bare:
        assert bare.ask("GET", "/api/health").status == 200


def test_the_page_asks_for_the_token_in_a_form_without_script(listening: Live) -> None:
    answer = listening.ask("GET", "/")
    assert answer.status == 401
    assert b"<form" in answer.body
    assert b"<script" not in answer.body
    # Under no-referrer a browser would send the form's Origin as null.
    assert answer.headers["Referrer-Policy"] == "same-origin"


def test_the_form_gives_a_cookie_that_scripts_cannot_read_and_other_sites_cannot_send(listening: Live) -> None:
    answer = listening.ask("POST", "/login", **form(TOKEN))  # type: ignore[arg-type]
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=Strict" in answer.headers["Set-Cookie"]
    assert TOKEN not in answer.headers["Set-Cookie"]
    assert listening.ask("GET", "/api/health", headers={"Cookie": cookie_of(answer)}).status == 200


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(listening: Live) -> None:
    answer = listening.ask("GET", f"/?token={TOKEN}")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert listening.ask("GET", "/api/health", headers={"Cookie": cookie_of(answer)}).status == 200
    # Only the start page takes it: elsewhere it would be kept in logs and links.
    assert listening.ask("GET", f"/api/health?token={TOKEN}").status == 401


def test_a_script_sends_the_token_as_bearer(listening: Live) -> None:
    assert listening.ask("GET", "/api/health", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
    assert listening.ask("GET", "/api/health", headers={"Authorization": "Basic eDp5"}).status == 401


@pytest.mark.parametrize("cookie", ["studio_{port}=wrong", "studio_{port}=" + TOKEN, "studio_1=x", "=;;=", "\x80\xff"])
def test_a_wrong_cookie_is_no_cookie(listening: Live, cookie: str) -> None:
    headers = {"Cookie": cookie.format(port=listening.port)}
    assert listening.ask("GET", "/api/health", headers=headers).status == 401


def test_a_cookie_of_one_run_is_worth_nothing_in_another(listening: Live, settings: Settings) -> None:
    cookie = cookie_of(listening.ask("GET", f"/?token={TOKEN}"))
    with running(settings, policy=Policy(hosts=None, token=TOKEN)) as other:
        value = cookie.split("=", 1)[1]
        assert other.ask("GET", "/api/health", headers={"Cookie": f"studio_{other.port}={value}"}).status == 401


def test_guessing_the_token_ends_after_ten_wrong_ones_even_with_the_right_one(settings: Settings) -> None:
    with running(settings, policy=Policy(hosts=None, token=TOKEN)) as live:
        signed_in = cookie_of(live.ask("GET", f"/?token={TOKEN}"))
        for way in range(10):
            if way % 2:
                assert live.ask("POST", "/login", **form("guess")).status == 401  # type: ignore[arg-type]
            else:
                assert live.ask("GET", "/api/health", headers={"Authorization": "Bearer guess"}).status == 401
        answer = live.ask("POST", "/login", **form(TOKEN))  # type: ignore[arg-type]
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) > 0
        assert live.ask("GET", f"/?token={TOKEN}").status == 429
        # Whoever is signed in already is not locked out by somebody else's guesses.
        assert live.ask("GET", "/api/health", headers={"Cookie": signed_in}).status == 200


def test_another_site_cannot_post_the_form(listening: Live) -> None:
    answer = listening.ask(
        "POST", "/login", body=f"token={TOKEN}",
        headers={"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://evil.example"},
    )  # fmt: skip
    assert answer.status == 403


def test_failures_are_counted_by_address_and_remembered_in_bounded_memory() -> None:
    attempts = Attempts(limit=2, window_s=100.0, addresses=3)
    attempts.failed("a")
    attempts.check("a")
    attempts.failed("a")
    with pytest.raises(TooManyRequests):
        attempts.check("a")
    attempts.check("b")
    for n in range(10):
        attempts.failed(f"other{n}")
    attempts.check("a")


def test_failures_are_forgotten_when_their_window_has_passed() -> None:
    attempts = Attempts(limit=1, window_s=0.0)
    attempts.failed("a")
    attempts.check("a")


def test_a_made_token_is_long_and_different_every_time() -> None:
    first, second = (Policy.of(Settings(listen=True)).token for _ in range(2))
    assert first != second
    assert len(first) >= 32


def test_the_policy_never_shows_its_secret() -> None:
    policy = Policy(hosts=None, token=TOKEN)
    assert "session_secret" not in repr(policy)


def test_a_studio_error_of_the_guard_is_the_same_envelope(live: Live) -> None:
    body = foreign_host(live).json
    assert set(body) == {"ok", "error"}
    assert set(body["error"]) == {"code", "field", "message", "details"}
    assert issubclass(TooManyRequests, StudioError)
    assert isinstance(live.studio, FakeStudio)
