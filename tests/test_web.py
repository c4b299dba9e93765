"""The HTTP contract over real sockets, the studio behind it a fake that implements the real interface."""

from __future__ import annotations

import io
import json
import os
import random
import re
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from werkzeug.datastructures import Headers

from modules import contract
from modules.contract import MAX_JSON_BYTES, DiskFull, OutOfMemory
from modules.settings import ROOT, VERSION, Settings
from modules.web import routes
from tests.fake_studio import FakeStudio
from tests.live_server import Answer, Live, running

JOB = {"kind": "generate", "client_id": "c1", "prompt": "piano"}
BOUNDARY = "----------------------------4242"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(port=0, data_dir=tmp_path / "data", state_dir=tmp_path / "state", max_upload_mb=1, no_browser=True)


@pytest.fixture
def live(settings: Settings) -> Iterator[Live]:
    with running(settings) as server:
        yield server


def form(parts: bytes, boundary: str = BOUNDARY) -> dict[str, object]:
    return {"body": parts, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def part(data: bytes, *, name: str = "file", filename: str = "clip.wav") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


# ------------------------------------------------------------------------------------------- envelopes
def failure_of(answer: Answer) -> tuple[int, str, str | None]:
    body = answer.json
    assert body["ok"] is False
    assert set(body) == {"ok", "error"}
    assert set(body["error"]) == {"code", "field", "message", "details"}
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status, body["error"]["code"], body["error"]["field"]


def test_every_kind_of_failure_comes_in_the_one_envelope(live: Live) -> None:
    assert failure_of(live.ask("GET", "/nothing"))[:2] == (404, "not_found")
    assert failure_of(live.ask("GET", "/api/tracks/unknown"))[:2] == (404, "not_found")
    assert failure_of(live.ask("PUT", "/api/health"))[:2] == (405, "method_not_allowed")
    assert failure_of(live.ask("POST", "/api/jobs", json_={"kind": "generate"})) == (
        400,
        "invalid_parameter",
        "client_id",
    )
    assert failure_of(live.ask("POST", "/api/jobs", json_="text"))[:2] == (400, "invalid_request")


def test_a_wrong_method_says_which_are_right(live: Live) -> None:
    answer = live.ask("PUT", "/api/tracks/song")
    assert {"GET", "PATCH", "DELETE"} <= set(re.findall(r"[A-Z]+", answer.headers["Allow"]))


def test_a_defect_is_a_500_that_tells_nothing_about_the_inside(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.studio.failing = RuntimeError("secret /home/me/file")
    answer = live.ask("GET", "/api/health")
    assert failure_of(answer)[:2] == (500, "internal")
    for word in (b"secret", b"home", b"Traceback", b".py"):
        assert word not in answer.body
    assert "secret" in caplog.text


def test_errors_a_person_can_act_on_keep_their_details(live: Live) -> None:
    live.studio.failing = OutOfMemory("does not fit", details={"fits": [{"model": "small", "precision": "int8"}]})
    answer = live.ask("GET", "/api/health")
    assert answer.status == 507
    assert answer.json["error"]["details"]["fits"][0]["model"] == "small"


def test_a_full_disk_is_named_wherever_it_strikes(live: Live) -> None:
    live.studio.failing = OSError(28, "No space left on device")
    assert failure_of(live.ask("GET", "/api/health"))[:2] == (507, DiskFull.code)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[1,", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b"nul", b'{"a": 1}garbage', b'"\\ud800"',
        b'{"kind": "generate", "client_id": "c", "prompt": "\\ud800"}', b"9" * 5000, b'{"kind": Infinity}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_a_body_that_is_not_json_is_a_400(live: Live, body: bytes) -> None:
    answer = live.ask("POST", "/api/jobs", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.json["ok"] is False


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
)
def test_a_body_is_only_taken_as_application_json(live: Live, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = live.ask("POST", "/api/jobs", body=json.dumps(JOB), headers=headers)
    assert failure_of(answer)[:2] == (415, "unsupported_media_type")
    assert not live.studio.queue


def test_a_ten_megabyte_prompt_is_refused_and_nothing_is_queued(live: Live) -> None:
    answer = live.ask("POST", "/api/jobs", json_={**JOB, "prompt": "x" * 10_000_000})
    assert failure_of(answer)[:2] == (413, "too_large")
    assert not live.studio.queue


def test_a_body_without_a_length_is_capped_as_well(live: Live) -> None:
    block = b"%x\r\n" % 60_000 + b" " * 60_000 + b"\r\n"
    request = (
        f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    assert MAX_JSON_BYTES < 60_000 * 6
    assert b" 413 " in live.raw(request + block * 6 + b"0\r\n\r\n").split(b"\r\n", 1)[0]


# ------------------------------------------------------------------------------------------------ jobs
def test_a_submitted_job_is_accepted_with_202_and_its_snapshot(live: Live) -> None:
    answer = live.ask("POST", "/api/jobs", json_=JOB)
    assert answer.status == 202
    job = answer.json["job"]
    assert (job["client_id"], job["status"], job["request"]["prompt"]) == ("c1", "queued", "piano")
    assert live.ask("GET", f"/api/jobs/{job['id']}").json["job"] == job
    assert live.ask("GET", "/api/jobs").json["jobs"] == [job]


def test_the_same_client_id_twice_is_the_same_job(live: Live) -> None:
    ids = {live.ask("POST", "/api/jobs", json_=JOB).json["job"]["id"] for _ in range(3)}
    assert len(ids) == 1


def test_a_full_queue_answers_429_and_says_when_to_come_back(settings: Settings) -> None:
    with running(settings, studio=FakeStudio(settings, capacity=1)) as live:
        live.ask("POST", "/api/jobs", json_=JOB)
        answer = live.ask("POST", "/api/jobs", json_={**JOB, "client_id": "c2"})
        assert failure_of(answer)[:2] == (429, "queue_full")
        assert answer.headers["Retry-After"] == "7"


def test_a_job_is_cancelled_with_and_without_keeping_what_was_heard(live: Live) -> None:
    for client_id, ask, kept in (("a", {"json_": {"keep": True}}, ["kept"]), ("b", {}, []), ("c", {"json_": {}}, [])):
        job = live.ask("POST", "/api/jobs", json_={**JOB, "client_id": client_id}).json["job"]
        cancelled = live.ask("DELETE", f"/api/jobs/{job['id']}", **ask).json["job"]
        assert (cancelled["status"], cancelled["unknown_words"]) == ("cancelled", kept)
        assert cancelled["rev"] > job["rev"]
    assert failure_of(live.ask("DELETE", "/api/jobs/none"))[:2] == (404, "not_found")
    assert failure_of(live.ask("DELETE", "/api/jobs/none", json_={"keep": "yes"})) == (400, "invalid_parameter", "keep")


def test_models_are_listed_loaded_as_a_job_and_unloaded(live: Live) -> None:
    assert live.ask("GET", "/api/models").json["models"][0]["id"] == "small"
    answer = live.ask("POST", "/api/models/small/load")
    assert (answer.status, answer.json["job"]["kind"]) == (202, "load")
    named = live.ask("POST", "/api/models/small/load", json_={"client_id": "mine"})
    assert named.json["job"]["client_id"] == "mine"
    assert live.ask("DELETE", "/api/models/small/load").json == {"ok": True}
    assert failure_of(live.ask("POST", "/api/models/nosuch/load"))[:2] == (400, "unknown_model")
    assert failure_of(live.ask("POST", "/api/models/small/load", body="client_id=x"))[:2] == (
        415,
        "unsupported_media_type",
    )


def test_an_estimate_is_given(live: Live) -> None:
    assert live.ask("POST", "/api/estimate", json_=JOB).json["estimate"] == {"seconds": 3.0, "fits": True}


def test_health_names_version_protocol_and_queue(live: Live) -> None:
    health = live.ask("GET", "/api/health").json["health"]
    assert (health["version"], health["protocol"]) == (VERSION, contract.PROTOCOL)
    assert "queue" in health


def test_get_changes_nothing(live: Live) -> None:
    live.studio.add_track("song")
    before = (dict(live.studio.library), dict(live.studio.queue))
    for path in ("/api/jobs", "/api/tracks", "/api/tracks/song", "/api/models/small/load", "/api/tracks?confirm=true"):
        live.ask("GET", path)
        live.ask("HEAD", path)
    assert (live.studio.library, live.studio.queue) == before


# ---------------------------------------------------------------------------------------------- tracks
def test_tracks_are_paged_searched_and_counted(live: Live) -> None:
    for name in ("one", "two", "three"):
        live.studio.add_track(name)
    page = live.ask("GET", "/api/tracks?limit=2").json
    assert ([track["name"] for track in page["tracks"]], page["total"], page["next_cursor"]) == (
        ["one", "two"],
        3,
        "two",
    )
    found = live.ask("GET", "/api/tracks?q=three&favourite=false").json
    assert ([track["name"] for track in found["tracks"]], found["next_cursor"]) == (["three"], "")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("sort=up", "sort"),
        ("format=ogg", "format"),
        ("locked=maybe", "locked"),
        ("nosuch=1", "nosuch"),
    ],
)
def test_a_query_that_does_not_fit_names_its_field(live: Live, query: str, field: str) -> None:
    assert failure_of(live.ask("GET", f"/api/tracks?{query}")) == (400, "invalid_parameter", field)


def test_a_track_is_marked_and_deleted_but_not_while_locked(live: Live) -> None:
    live.studio.add_track("song")
    assert live.ask("PATCH", "/api/tracks/song", json_={"locked": True}).json["track"]["locked"] is True
    assert failure_of(live.ask("DELETE", "/api/tracks/song"))[:2] == (409, "conflict")
    assert failure_of(live.ask("PATCH", "/api/tracks/song", json_={"name": "x"})) == (400, "invalid_parameter", "name")
    live.ask("PATCH", "/api/tracks/song", json_={"locked": False})
    assert live.ask("DELETE", "/api/tracks/song").json == {"ok": True, "removed": ["song"]}
    assert failure_of(live.ask("GET", "/api/tracks/song"))[:2] == (404, "not_found")


def test_clearing_needs_the_word_and_spares_what_is_locked(live: Live) -> None:
    live.studio.add_track("one")
    live.studio.add_track("two", locked=True)
    for body in ({}, {"confirm": False}, {"confirm": "true"}, {"confirm": 1}):
        assert live.ask("DELETE", "/api/tracks", json_=body).status == 400
    assert live.ask("DELETE", "/api/tracks").status == 415
    assert len(live.studio.library) == 2
    assert live.ask("DELETE", "/api/tracks", json_={"confirm": True}).json == {"ok": True, "removed": 1, "spared": 1}


def test_peaks_come_in_the_number_asked_for(live: Live) -> None:
    live.studio.add_track("song", stems=("drums",))
    assert len(live.ask("GET", "/api/tracks/song/peaks?bins=50").json["peaks"]) == 50
    assert len(live.ask("GET", "/api/tracks/song/peaks?bins=5&stem=drums").json["peaks"]) == 5
    assert failure_of(live.ask("GET", "/api/tracks/song/peaks?stem=flute")) == (404, "not_found", "stem")
    assert failure_of(live.ask("GET", "/api/tracks/song/peaks?bins=9999999")) == (400, "invalid_parameter", "bins")


# ----------------------------------------------------------------------------------------------- audio
def test_audio_is_sent_whole_with_its_type_and_an_etag(live: Live) -> None:
    live.studio.add_track("song")
    content = live.studio.audio_file("song").read_bytes()
    answer = live.ask("GET", "/api/tracks/song/audio")
    assert answer.status == 200
    assert answer.body == content
    assert answer.headers["Content-Type"] == "audio/wav"
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Disposition"] == "inline; filename=song.wav"
    again = live.ask("GET", "/api/tracks/song/audio", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    head = live.ask("HEAD", "/api/tracks/song/audio")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(content)))


@pytest.mark.parametrize("asked", ["0-0", "10-99", "100-", "-50", "0-", "5-99999999"])
def test_a_range_of_audio_is_exactly_those_bytes(live: Live, asked: str) -> None:
    live.studio.add_track("song")
    content = live.studio.audio_file("song").read_bytes()
    first, last = asked.split("-")
    start = int(first) if first else len(content) - int(last)
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    answer = live.ask("GET", "/api/tracks/song/audio", headers={"Range": f"bytes={asked}"})
    assert answer.status == 206
    assert answer.body == content[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(content)}"


def test_a_range_outside_the_file_is_a_416_that_says_how_long_it_is(live: Live) -> None:
    live.studio.add_track("song")
    size = live.studio.audio_file("song").stat().st_size
    answer = live.ask("GET", "/api/tracks/song/audio", headers={"Range": f"bytes={size}-"})
    assert failure_of(answer)[:2] == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_a_range_of_an_older_file_is_answered_with_the_whole_new_one(live: Live) -> None:
    live.studio.add_track("song")
    answer = live.ask("GET", "/api/tracks/song/audio", headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.wav", "attachment; filename=a.wav"),
        ('q"uo\\te.wav', "attachment; filename=quote.wav"),
        ("line\r\nSet-Cookie: x=1.wav", 'attachment; filename="lineSet-Cookie: x=1.wav"'),
        ("\u202eevil\u0000.wav", "attachment; filename=evil.wav"),
        ("ночь.wav", "attachment; filename=____.wav; filename*=UTF-8''%D0%BD%D0%BE%D1%87%D1%8C.wav"),
        ("a'b%c;d.wav", 'attachment; filename="a\'b%c;d.wav"'),
        ("../../up.wav", "attachment; filename=....up.wav"),
    ],
)
def test_a_download_s_name_is_safe_in_its_header(name: str, header: str) -> None:
    headers = Headers()
    routes.set_disposition(headers, name, download=True)
    assert headers["Content-Disposition"] == header


def test_another_format_is_converted_sent_and_its_file_removed(live: Live) -> None:
    live.studio.add_track("song")
    for query, kind in (("format=flac", "audio/flac"), ("format=mp3", "audio/mpeg"), ("sample_rate=16k", "audio/wav")):
        answer = live.ask("GET", f"/api/tracks/song/audio?{query}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert len(answer.body) > 200_000
        assert answer.headers["Content-Disposition"].startswith("attachment; filename=song.")
    assert len(live.studio.temporary) == 3
    assert gone(live.studio.temporary)
    # Its own format and rate are the file itself.
    live.ask("GET", "/api/tracks/song/audio?format=wav&sample_rate=32k")
    assert len(live.studio.temporary) == 3
    assert failure_of(live.ask("GET", "/api/tracks/song/audio?format=ogg")) == (400, "invalid_parameter", "format")


def gone(paths: list[Path], within_s: float = 5.0) -> bool:
    """True once none of the files is there any more: a file is removed just after its last byte was sent."""
    end = time.monotonic() + within_s
    while any(path.exists() for path in paths):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_conversion_is_removed_when_nobody_takes_it_to_the_end(live: Live) -> None:
    live.studio.add_track("song")
    request = f"GET /api/tracks/song/audio?format=flac HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(request)
        connection.recv(100)
    assert live.ask("GET", "/api/tracks/song/audio?format=flac", headers={"Range": "bytes=999999999-"}).status == 416
    assert live.ask("HEAD", "/api/tracks/song/audio?format=flac").status == 200
    assert live.studio.temporary
    assert gone(live.studio.temporary)


def test_live_audio_is_chunked_and_a_job_without_sound_is_a_conflict(live: Live) -> None:
    job = live.ask("POST", "/api/jobs", json_=JOB).json["job"]
    assert failure_of(live.ask("GET", f"/api/jobs/{job['id']}/audio"))[:2] == (409, "conflict")
    live.studio.blocks[job["id"]] = [b"RIFF", b"data", b"more"]
    answer = live.ask("GET", f"/api/jobs/{job['id']}/audio")
    assert (answer.status, answer.body) == (200, b"RIFFdatamore")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Content-Type"] == "audio/wav"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_job_that_is_over_has_no_live_audio_and_that_is_no_failure(live: Live) -> None:
    job = live.ask("POST", "/api/jobs", json_=JOB).json["job"]
    live.studio.change_job(job["id"], status="done")
    answer = live.ask("GET", f"/api/jobs/{job['id']}/audio")
    assert (answer.status, answer.body) == (204, b"")
    assert live.ask("HEAD", f"/api/jobs/{job['id']}/audio").status == 204


# ----------------------------------------------------------------------------------------------- stems
def test_stems_are_listed_sent_and_named_after_their_track(live: Live) -> None:
    live.studio.add_track("song", stems=("drums", "bass"))
    assert live.ask("GET", "/api/tracks/song/stems").json["stems"] == ["drums", "bass"]
    answer = live.ask("GET", "/api/tracks/song/stems/bass")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert answer.headers["Content-Disposition"] == "inline; filename=song_bass.wav"
    assert live.ask("GET", "/api/tracks/song/stems/bass", headers={"Range": "bytes=0-3"}).body == b"RIFF"
    assert failure_of(live.ask("GET", "/api/tracks/song/stems/flute")) == (404, "not_found", "stem")


def test_stems_come_as_a_stored_archive_with_names_of_ours(live: Live, settings: Settings) -> None:
    live.studio.add_track("song", stems=("drums", "bass", "vocals"))
    answer = live.ask("GET", "/api/tracks/song/stems.zip?only=drums,bass,drums")
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == "attachment; filename=song_stems.zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.body))
    assert archive.testzip() is None
    assert archive.namelist() == ["song_drums.wav", "song_bass.wav"]
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert archive.read("song_bass.wav") == (settings.stems_dir / "song" / "bass.wav").read_bytes()
    whole = zipfile.ZipFile(io.BytesIO(live.ask("GET", "/api/tracks/song/stems.zip").body))
    assert len(whole.namelist()) == 3


def test_an_archive_of_no_stems_or_of_a_stem_that_is_gone_is_a_404(live: Live, settings: Settings) -> None:
    live.studio.add_track("plain")
    live.studio.add_track("song", stems=("drums",))
    assert failure_of(live.ask("GET", "/api/tracks/plain/stems.zip"))[:2] == (404, "not_found")
    for only in ("flute", "drums,", "../drums", "drums,flute"):
        assert failure_of(live.ask("GET", f"/api/tracks/song/stems.zip?only={only}"))[:2] == (404, "not_found")
    (settings.stems_dir / "song" / "drums.wav").unlink()
    assert failure_of(live.ask("GET", "/api/tracks/song/stems.zip"))[:2] == (404, "not_found")


def test_an_archive_is_made_in_bounded_memory(tmp_path: Path) -> None:
    files: list[tuple[str, BinaryIO]] = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(os.urandom(3_000_000))
        files.append((f"{number}.wav", path.open("rb")))
    largest = max(len(block) for block in routes.zip_stream(files))
    assert largest < 1_000_000
    for _, file in files:
        file.close()


# --------------------------------------------------------------------------------------------- uploads
def test_an_upload_reaches_the_studio_with_its_name_and_every_byte(live: Live) -> None:
    data = os.urandom(700_000)
    answer = live.ask("POST", "/api/uploads", **form(part(data, filename="моя песня.wav") + END))  # type: ignore[arg-type]
    assert answer.status == 201
    assert answer.json["upload"]["name"] == "моя песня.wav"
    assert live.studio.uploaded == [("моя песня.wav", len(data))]


def test_fields_before_the_file_are_passed_over(live: Live) -> None:
    note = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'.encode()
    other = part(b"other", name="cover", filename="c.png")
    answer = live.ask("POST", "/api/uploads", **form(note + other + part(b"sound") + END))  # type: ignore[arg-type]
    assert answer.status == 201
    assert live.studio.uploaded == [("clip.wav", 5)]


HOSTILE_FORMS: dict[str, bytes] = {
    "empty": b"",
    "no file": END,
    "cut in the head": f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"'.encode(),
    "cut in the data": part(b"x" * 1000)[:-2],
    "no end": part(b"x"),
    "no disposition": f"--{BOUNDARY}\r\nX: y\r\n\r\ndata\r\n".encode() + END,
    "only line breaks": b"\r\n" * 50_000,
    "endless head": f"--{BOUNDARY}\r\nX: ".encode() + b"y" * 400_000,
    "forty parts": part(b"", name="x") * 40 + part(b"x") + END,
    "a field as file": f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n'.encode() + END,
    "other boundary": b"--zzz\r\n\r\n--zzz--",
    "binary": os.urandom(10_000),
}


@pytest.mark.parametrize("body", HOSTILE_FORMS.values(), ids=HOSTILE_FORMS.keys())
def test_a_hostile_form_is_a_4xx(live: Live, body: bytes) -> None:
    answer = live.ask("POST", "/api/uploads", **form(body))  # type: ignore[arg-type]
    assert 400 <= answer.status < 500
    assert answer.json["ok"] is False


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=a",
        "",
        "multipart/form-data; boundary=" + "x" * 500,
    ],
)
def test_an_upload_must_be_a_form(live: Live, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = live.ask("POST", "/api/uploads", body=part(b"x") + END, headers=headers)
    assert answer.status in (400, 415)


def test_mutated_forms_never_make_a_5xx(live: Live) -> None:
    rng = random.Random(7)
    whole = part(b"sound" * 50) + END
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            where = rng.randrange(len(body))
            if rng.random() < 0.5:
                body[where] = rng.randrange(256)
            else:
                del body[where : where + rng.randint(1, 40)]
                body = body or bytearray(b"-")
        answer = live.ask("POST", "/api/uploads", **form(bytes(body)))  # type: ignore[arg-type]
        assert answer.status < 500, bytes(body)


def test_an_upload_over_the_cap_is_refused_with_and_without_a_length(live: Live) -> None:
    big = part(b"x" * 2_000_000) + END
    assert failure_of(live.ask("POST", "/api/uploads", **form(big)))[:2] == (413, "too_large")  # type: ignore[arg-type]
    chunks = b"".join(
        b"%x\r\n" % 100_000 + big[n : n + 100_000].ljust(100_000) + b"\r\n" for n in range(0, 2_000_000, 100_000)
    )
    request = (
        f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    assert b" 413 " in live.raw(request + chunks + b"0\r\n\r\n").split(b"\r\n", 1)[0]
    assert not live.studio.uploaded


def test_an_upload_is_handed_on_while_it_arrives_and_nothing_is_spooled(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", None)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    first_block = threading.Event()
    upload = live.studio.upload

    def watched(stream: object, filename: str) -> contract.Upload:
        assert stream.read(10) == b"0123456789"  # type: ignore[attr-defined]
        first_block.set()
        return upload(stream, filename)  # type: ignore[arg-type]

    monkeypatch.setattr(live.studio, "upload", watched)
    body = part(b"0123456789" + b"x" * 500_000) + END
    head = (
        f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(head + body[:100_000])
        assert first_block.wait(5), "the studio saw nothing before the upload was complete"
        connection.sendall(body[100_000:])
        assert connection.recv(100).startswith(b"HTTP/1.1 201")


# ------------------------------------------------------------------------------------ static and pages
def test_static_files_have_our_types_and_are_revalidated(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = live.ask("GET", "/static/css/docs.css")
    assert answer.headers["Content-Type"] == "text/css; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert live.ask("GET", "/static/css/docs.css", headers={"If-None-Match": answer.headers["ETag"]}).status == 304
    script = next(path for path in sorted((ROOT / "static" / "js").rglob("*.js")))
    name = script.relative_to(ROOT).as_posix()
    monkeypatch.setattr("mimetypes.guess_type", lambda *_args, **_options: ("text/plain", None))
    assert live.ask("GET", f"/{name}").headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_an_updated_static_file_is_seen_at_once(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "ROOT", tmp_path)
    sheet = tmp_path / "static" / "css" / "a.css"
    sheet.parent.mkdir(parents=True)
    sheet.write_text("a{}")
    old = live.ask("GET", "/static/css/a.css").headers["ETag"]
    sheet.write_text("a{color:red}")
    new = live.ask("GET", "/static/css/a.css", headers={"If-None-Match": old})
    assert (new.status, new.body) == (200, b"a{color:red}")


@pytest.mark.parametrize(
    "path", ["/static/audio/song.wav", "/static/stems/song/drums.wav", "/static/", "/static/css/", "/static/css/no.css"]
)
def test_nothing_else_is_served_from_static(live: Live, path: str) -> None:
    live.studio.add_track("song", stems=("drums",))
    assert live.ask("GET", path).status == 404


def test_the_page_carries_the_contract_a_fresh_nonce_and_no_inline_script(live: Live) -> None:
    answers = [live.ask("GET", "/") for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    nonces = [re.search(r"'nonce-([\w-]+)'", answer.headers["Content-Security-Policy"]) for answer in answers]
    first, second = (found.group(1) for found in nonces if found)
    assert first != second
    page = answers[0].body.decode()
    assert first in page
    block = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert json.loads(block.group(1))["parameters"] == [p.model_dump(mode="json") for p in contract.parameters()]
    for tag in re.findall(r"<script[^>]*>", page):
        assert "src=" in tag or "application/json" in tag
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)


@pytest.mark.parametrize(
    ("accepted", "locale"),
    [
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("en-GB", "en"),
        ("de,fr", "en"),
        ("", "en"),
        ("de;q=0.9,ru;q=0.2", "ru"),
        (";;q=x,\x7f", "en"),
    ],
)
def test_the_page_speaks_the_browser_s_language(live: Live, accepted: str, locale: str) -> None:
    headers = {"Accept-Language": accepted} if accepted else {}
    answer = live.ask("GET", "/", headers=headers)
    assert f'<html lang="{locale}"' in answer.body.decode()
    assert answer.headers["Vary"] == "Accept-Language"


def test_the_docs_are_a_page_of_our_own_without_script(live: Live) -> None:
    answer = live.ask("GET", "/api/docs")
    page = answer.body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<script" not in page
    assert "http" not in re.sub(r"application/[\w.-]+", "", page).split("<main>")[0]
    for path in ("/api/jobs", "/api/tracks/{name}/stems.zip", "/api/uploads"):
        assert path in page
