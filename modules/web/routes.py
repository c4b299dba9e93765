"""The HTTP contract: translates requests into calls of the studio, and what comes back into JSON or bytes."""

from __future__ import annotations

import json
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast
from urllib.parse import quote

from flask import Flask, jsonify, request
from werkzeug import exceptions
from werkzeug.datastructures import Headers
from werkzeug.http import parse_options_header, quote_etag
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData
from werkzeug.security import safe_join
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from modules import contract
from modules.contract import (
    MAX_JSON_BYTES,
    AudioFormat,
    AudioQuery,
    CancelRequest,
    ConfirmRequest,
    DiskFull,
    Health,
    Hello,
    Internal,
    InvalidParameter,
    InvalidRequest,
    Job,
    LibraryChange,
    LoadBody,
    MethodNotAllowed,
    Mix,
    ModelInfo,
    NotFound,
    PeaksQuery,
    RangeNotSatisfiable,
    SampleRate,
    SeparatorInfo,
    StemNotes,
    StudioError,
    TooLarge,
    Track,
    TrackPatch,
    TrackQuery,
    UnsupportedMediaType,
    Upload,
    ZipQuery,
    is_disk_full,
)
from modules.settings import ROOT, Settings
from modules.web.guard import MULTIPART_OVERHEAD_BYTES, error_response

logger = logging.getLogger(__name__)

STATIC_KINDS = ("css", "js", "i18n", "vendor", "img")
"""The only folders of static/ that are served as files; audio and stems are reached by name through the library."""
MIME_TYPES = {
    ".css": "text/css",
    ".flac": "audio/flac",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".mid": "audio/midi",
    ".mp3": "audio/mpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wav": "audio/wav",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""Ours, not the system's: Windows' registry may call .js text/plain, and nosniff would then refuse it."""

BLOCK_BYTES = 64 * 1024


class Studio(Protocol):
    """What the web layer asks of the studio."""

    def health(self) -> Health: ...
    def models(self) -> list[ModelInfo]: ...
    def load_model(self, model_id: str, client_id: str | None = None) -> Job: ...
    def unload_model(self, model_id: str) -> None: ...
    def submit(self, body: Any) -> Job: ...
    def estimate(self, body: Any) -> Mapping[str, Any]: ...
    def jobs(self) -> list[Job]: ...
    def job(self, job_id: str) -> Job: ...
    def cancel(self, job_id: str, *, keep: bool = False) -> Job: ...
    def live_audio(self, job_id: str) -> Iterator[bytes] | None: ...
    def tracks(self, query: TrackQuery) -> tuple[list[Track], str | None, int]: ...
    def track(self, name: str) -> Track: ...
    def patch(self, name: str, patch: TrackPatch) -> Track: ...
    def delete(self, name: str) -> None: ...
    def clear(self) -> tuple[int, int]: ...
    def audio_file(self, name: str) -> Path: ...
    def converted(self, name: str, audio_format: AudioFormat, sample_rate: SampleRate) -> Path: ...
    def stem_file(self, name: str, stem: str) -> Path: ...
    def peaks(self, name: str, bins: int, stem: str = "") -> list[list[float]]: ...
    def separators(self) -> list[SeparatorInfo]: ...
    def notes(self, name: str, stem: str) -> StemNotes: ...
    def midi(self, name: str, stem: str) -> bytes: ...
    def mixdown(self, name: str, stream: BinaryIO, mix: Mix) -> Track: ...
    def upload(self, stream: BinaryIO, filename: str) -> Upload: ...
    def subscribe(self, on_job: Callable[[Job], None], on_library: Callable[[LibraryChange], None]) -> None: ...
    def hello(self) -> Hello: ...


def register(app: Flask, studio: Studio, settings: Settings) -> None:
    """Add every /api route, the static files and the error handlers to `app`."""
    register_errors(app)
    register_static(app)
    register_models(app, studio)
    register_jobs(app, studio)
    register_tracks(app, studio)
    register_audio(app, studio, settings)
    register_mixing(app, studio, settings)
    register_uploads(app, studio, settings)


# ------------------------------------------------------------------------------------------- requests
def json_body(*, optional: bool = False) -> Any:
    """The request's JSON body.

    Raises:
        UnsupportedMediaType: it is not sent as application/json, so it could be a form of another site.
        InvalidRequest: it is not JSON.
    """
    chunked = "Transfer-Encoding" in request.headers
    if optional and not chunked and not request.content_length and not request.content_type:
        return {}
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: {request.mimetype[:60] or 'is missing'}, it must be application/json", field="Content-Type"
        )
    # One byte more than is allowed: a chunked body is otherwise cut at the cap without a word.
    request.max_content_length = MAX_JSON_BYTES + 1
    text = request.get_data(cache=False)
    if len(text) > MAX_JSON_BYTES:
        raise TooLarge(f"the body is over {MAX_JSON_BYTES} bytes", field="body")
    if optional and not text:
        return {}
    return parse_json(text)


def parse_json(text: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no depth that exhausts the stack."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8", field="body") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", field="body") from None
    except ValueError as error:
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequest(f"the body is not JSON{where}", field="body") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def query_of(model: type[Any]) -> Any:
    return contract.parse_query(model, request.args.to_dict())


def known_stem(track: Track, stem: str) -> str:
    if stem not in track.stems:
        have = ", ".join(track.stems) or "none"
        raise NotFound(f"{stem[:40]}: {track.name} has no such stem, it has {have}", field="stem")
    return stem


# -------------------------------------------------------------------------------------------- answers
def ok(status: int = 200, **payload: Any) -> Response:
    response: Response = jsonify(contract.ok(**payload))
    response.status_code = status
    return response


def register_errors(app: Flask) -> None:
    @app.errorhandler(StudioError)
    def studio_error(error: StudioError) -> Response:
        return error_response(error)

    @app.errorhandler(exceptions.HTTPException)
    def http_error(error: exceptions.HTTPException) -> Response:
        response = error_response(translate(error))
        for name in ("Allow", "Content-Range", "Retry-After"):
            value = error.get_response(request.environ).headers.get(name)
            if value is not None:
                response.headers[name] = value
        return response

    @app.errorhandler(OSError)
    def os_error(error: OSError) -> Response:
        if is_disk_full(error):
            return error_response(DiskFull("there is no space left on the disk: free some and try again"))
        return defect(error)

    @app.errorhandler(Exception)
    def defect(error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.path[:200], exc_info=error)
        return error_response(Internal("something went wrong inside the program: its log has the details"))


def translate(error: exceptions.HTTPException) -> StudioError:
    """Werkzeug's own refusals in the contract's words."""
    if isinstance(error, exceptions.NotFound):
        return NotFound("there is nothing at this address")
    if isinstance(error, exceptions.MethodNotAllowed):
        valid = ", ".join(sorted(error.valid_methods or ()))
        return MethodNotAllowed(f"{request.method}: this address takes {valid}")
    if isinstance(error, exceptions.RequestEntityTooLarge):
        return TooLarge("the body is larger than this address takes", field="body")
    if isinstance(error, exceptions.RequestedRangeNotSatisfiable):
        return RangeNotSatisfiable("Range: lies outside the file", field="Range")
    if error.code is not None and error.code < 500:
        return InvalidRequest((error.description or "the request cannot be read")[:200])
    logger.error("unexpected HTTP error", exc_info=error)
    return Internal("something went wrong inside the program: its log has the details")


def open_inside(path: Path, folder: Path) -> BinaryIO:
    """Open a regular file that really lies in `folder`: what a symlink points at is never served.

    Raises:
        NotFound: it is not there, is not a regular file, or lies elsewhere once links are followed.
    """
    missing = NotFound("the file is not there any more")
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()) or path.is_symlink():
            raise missing
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError):
        raise missing from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise missing
    return os.fdopen(descriptor, "rb")


def send(file: BinaryIO, filename: str, *, download: bool = False, cache: str = "private, no-cache") -> Response:
    """An open file with its type, an ETag, ranges and a name that is safe in a header.

    The response owns the file and closes it.
    """
    facts = os.fstat(file.fileno())
    body = cast("Any", wrap_file(request.environ, cast("IO[bytes]", file), BLOCK_BYTES))
    suffix = Path(filename).suffix.lower()
    response = Response(body, mimetype=MIME_TYPES.get(suffix, "application/octet-stream"))
    response.call_on_close(file.close)
    response.content_length = facts.st_size
    response.headers["Cache-Control"] = cache
    response.headers["ETag"] = quote_etag(f"{facts.st_mtime_ns:x}-{facts.st_size:x}")
    response.last_modified = datetime.fromtimestamp(int(facts.st_mtime)).astimezone()
    set_disposition(response.headers, filename, download=download)
    try:
        response.make_conditional(request.environ, accept_ranges=True, complete_length=facts.st_size)
    except exceptions.RequestedRangeNotSatisfiable:
        file.close()
        raise
    # Passed through directly, what was registered with call_on_close would never be called.
    response.direct_passthrough = False
    return response


def set_disposition(headers: Headers, filename: str, *, download: bool) -> None:
    """Content-Disposition by RFC 6266: an ASCII name for old programs, filename* where that loses something."""
    clean = "".join(char for char in contract.clean_text(filename) if char not in '\n\t"\\/')
    plain = clean.encode("ascii", "replace").decode().replace("?", "_")
    kind = "attachment" if download else "inline"
    if plain == clean:
        headers.set("Content-Disposition", kind, filename=plain)
    else:
        headers.set(
            "Content-Disposition", kind, filename=plain, **{"filename*": f"UTF-8''{quote(clean, safe='!#$&+-.^_`|~')}"}
        )


# --------------------------------------------------------------------------------------------- static
def register_static(app: Flask) -> None:
    @app.get("/static/<any(css, js, i18n, vendor, img):kind>/<path:name>")
    def static_file(kind: str, name: str) -> Response:
        folder = ROOT / "static" / kind
        path = safe_join(str(folder), name)
        if path is None:
            raise NotFound("there is nothing at this address")
        # no-cache, not no-store: the ETag makes a reload cheap, and an update is seen at once.
        return send(open_inside(Path(path), folder), Path(path).name, cache="no-cache")


# ---------------------------------------------------------------------------------- health and models
def register_models(app: Flask, studio: Studio) -> None:
    @app.get("/api/health")
    def health() -> Response:
        return ok(health=studio.health())

    @app.get("/api/models")
    def models() -> Response:
        return ok(models=studio.models())

    @app.post("/api/models/<model_id>/load")
    def load_model(model_id: str) -> Response:
        body: LoadBody = contract.parse(LoadBody, json_body(optional=True))
        return ok(202, job=studio.load_model(model_id, body.client_id))

    @app.delete("/api/models/<model_id>/load")
    def unload_model(model_id: str) -> Response:
        studio.unload_model(model_id)
        return ok()


# ----------------------------------------------------------------------------------------------- jobs
def register_jobs(app: Flask, studio: Studio) -> None:
    @app.post("/api/jobs")
    def submit() -> Response:
        return ok(202, job=studio.submit(json_body()))

    @app.post("/api/estimate")
    def estimate() -> Response:
        return ok(estimate=dict(studio.estimate(json_body())))

    @app.get("/api/jobs")
    def jobs() -> Response:
        return ok(jobs=studio.jobs())

    @app.get("/api/jobs/<job_id>")
    def job(job_id: str) -> Response:
        return ok(job=studio.job(job_id))

    @app.delete("/api/jobs/<job_id>")
    def cancel(job_id: str) -> Response:
        wish: CancelRequest = contract.parse(CancelRequest, json_body(optional=True))
        return ok(job=studio.cancel(job_id, keep=wish.keep))

    @app.get("/api/jobs/<job_id>/audio")
    def live_audio(job_id: str) -> Response:
        # Chunked: the length is not known while the music is being made.
        blocks = studio.live_audio(job_id)
        if blocks is None:
            return Response(status=204, headers={"Cache-Control": "no-store"})
        if request.method == "HEAD":
            blocks = iter(())
        return Response(blocks, mimetype="audio/wav", headers={"Cache-Control": "no-store"})


# --------------------------------------------------------------------------------------------- tracks
def register_tracks(app: Flask, studio: Studio) -> None:
    @app.get("/api/tracks")
    def tracks() -> Response:
        found, cursor, total = studio.tracks(query_of(TrackQuery))
        return ok(tracks=found, next_cursor=cursor or "", total=total)

    @app.delete("/api/tracks")
    def clear() -> Response:
        contract.parse(ConfirmRequest, json_body())
        removed, spared = studio.clear()
        return ok(removed=removed, spared=spared)

    @app.get("/api/tracks/<name>")
    def track(name: str) -> Response:
        return ok(track=studio.track(name))

    @app.patch("/api/tracks/<name>")
    def patch(name: str) -> Response:
        return ok(track=studio.patch(name, contract.parse(TrackPatch, json_body())))

    @app.delete("/api/tracks/<name>")
    def delete(name: str) -> Response:
        studio.delete(name)
        return ok(removed=[name])

    @app.get("/api/tracks/<name>/peaks")
    def peaks(name: str) -> Response:
        query: PeaksQuery = query_of(PeaksQuery)
        if query.stem:
            known_stem(studio.track(name), query.stem)
        return ok(peaks=studio.peaks(name, query.bins, query.stem))

    @app.get("/api/tracks/<name>/stems")
    def stems(name: str) -> Response:
        found = studio.track(name)
        return ok(stems=list(found.stems), info=found.stems_info)


def register_audio(app: Flask, studio: Studio, settings: Settings) -> None:
    @app.get("/api/tracks/<name>/audio")
    def audio(name: str) -> Response:
        query: AudioQuery = query_of(AudioQuery)
        found = studio.track(name)
        wanted = query.format or found.format
        rate_hz = contract.SAMPLE_RATES_HZ[query.sample_rate]
        if wanted == found.format and rate_hz in (None, found.sample_rate_hz):
            file = open_inside(studio.audio_file(name), settings.audio_dir)
            return send(file, found.file, download=query.download)
        if request.method == "HEAD":
            return Response(mimetype=MIME_TYPES[f".{wanted}"])
        return send_temporary(studio.converted(name, wanted, query.sample_rate), f"{name}.{wanted}")

    @app.get("/api/tracks/<name>/stems/<stem>")
    def stem_audio(name: str, stem: str) -> Response:
        download = "download" in request.args
        path = studio.stem_file(name, known_stem(studio.track(name), stem))
        file = open_inside(path, settings.stems_dir)
        return send(file, f"{name}_{stem}{path.suffix}", download=download)

    @app.get("/api/tracks/<name>/stems.zip")
    def stems_zip(name: str) -> Response:
        query: ZipQuery = query_of(ZipQuery)
        found = studio.track(name)
        wanted = [known_stem(found, stem) for stem in query.only.split(",")] if query.only else list(found.stems)
        if not wanted:
            raise NotFound(f"{name} has no stems", field="name")
        paths = [studio.stem_file(name, stem) for stem in dict.fromkeys(wanted)]
        # Opened before the first byte is sent: a missing stem is an error, not a broken archive.
        files = [(f"{name}_{path.stem}{path.suffix}", open_inside(path, settings.stems_dir)) for path in paths]
        response = Response(zip_stream(files), mimetype="application/zip")
        response.call_on_close(lambda: [file.close() for _, file in files])
        set_disposition(response.headers, f"{name}_stems.zip", download=True)
        return response


def register_mixing(app: Flask, studio: Studio, settings: Settings) -> None:
    most_bytes = settings.max_upload_mb * 1024 * 1024

    @app.get("/api/separators")
    def separators() -> Response:
        return ok(separators=studio.separators())

    @app.post("/api/tracks/<name>/stems/<stem>/midi")
    def notes(name: str, stem: str) -> Response:
        known_stem(studio.track(name), stem)
        return ok(notes=studio.notes(name, stem))

    @app.get("/api/tracks/<name>/stems/<stem>/midi")
    def midi(name: str, stem: str) -> Response:
        known_stem(studio.track(name), stem)
        response = Response(studio.midi(name, stem), mimetype=MIME_TYPES[".mid"])
        set_disposition(response.headers, f"{name}_{stem}.mid", download=True)
        return response

    @app.post("/api/tracks/<name>/mixdown")
    def mixdown(name: str) -> Response:
        request.max_content_length = most_bytes + MULTIPART_OVERHEAD_BYTES
        studio.track(name)
        with uploaded() as stream:
            mix: Mix = contract.parse(Mix, parse_json(stream.field("mix")))
            return ok(201, track=studio.mixdown(name, cast("BinaryIO", stream), mix))


def send_temporary(path: Path, filename: str) -> Response:
    """Send a temporary file and remove it, whether or not the other side took all of it."""
    try:
        file = open_inside(path, path.parent)
    except NotFound:
        path.unlink(missing_ok=True)
        raise
    try:
        response = send(file, filename, download=True)
    except exceptions.HTTPException:
        path.unlink(missing_ok=True)
        raise
    response.call_on_close(lambda: path.unlink(missing_ok=True))
    return response


class _Outbox:
    """What zipfile writes to: it can only be written to and emptied, so zipfile writes a stream."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._blocks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        data = b"".join(self._blocks)
        self._blocks.clear()
        return data


def zip_stream(files: list[tuple[str, BinaryIO]]) -> Iterator[bytes]:
    """A stored (audio does not deflate) zip of open files under the given names, in bounded memory."""
    outbox = _Outbox()
    with zipfile.ZipFile(cast("IO[bytes]", outbox), "w", zipfile.ZIP_STORED) as archive:
        for entry, file in files:
            facts = os.fstat(file.fileno())
            info = zipfile.ZipInfo(entry, datetime.fromtimestamp(facts.st_mtime).astimezone().timetuple()[:6])
            info.file_size = facts.st_size
            with archive.open(info, "w", force_zip64=facts.st_size >= zipfile.ZIP64_LIMIT) as out:
                while block := file.read(BLOCK_BYTES * 4):
                    out.write(block)
                    yield outbox.take()
    yield outbox.take()


# -------------------------------------------------------------------------------------------- uploads
class UploadStream(RawIOBase):
    """The first file of a multipart body as a stream, read from the socket only as fast as it is consumed.

    Werkzeug's own form parser writes the whole file to a temporary folder first; this never holds more than a block.

    Raises (from open and read):
        InvalidRequest: the body is not the multipart form that it says it is.
    """

    def __init__(self, source: IO[bytes], boundary: bytes) -> None:
        super().__init__()
        self._source = source
        self._decoder = MultipartDecoder(boundary, max_form_memory_size=MULTIPART_OVERHEAD_BYTES * 4, max_parts=32)
        self._ready = b""
        self._ended = False
        self._fields: dict[str, bytes] = {}
        self.filename = self._find_file()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready and not self._ended:
            event = self._next()
            if isinstance(event, Data):
                self._ready, self._ended = event.data, not event.more_data
            else:
                self._ended = True
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def field(self, name: str) -> bytes:
        """A field that came before the file. Raises InvalidParameter: it did not."""
        if name not in self._fields:
            raise InvalidParameter(f"{name}: is missing, send it as a field of the form before the file", field=name)
        return self._fields[name]

    def _find_file(self) -> str:
        name = ""
        while True:
            event = self._next()
            if isinstance(event, Field):
                name = event.name
            elif isinstance(event, Data) and name:
                self._fields[name] = self._fields.get(name, b"") + event.data
                if not event.more_data:
                    name = ""
            if isinstance(event, File) and event.name == "file":
                return event.filename or ""
            if isinstance(event, Epilogue):
                raise InvalidParameter('file: is missing, send a multipart form with the field "file"', field="file")

    def _next(self) -> Any:
        try:
            event = self._decoder.next_event()
            while isinstance(event, NeedData):
                # An end of the input that the form did not announce makes the decoder raise.
                self._decoder.receive_data(self._source.read(BLOCK_BYTES) or None)
                event = self._decoder.next_event()
        except ValueError:
            raise InvalidRequest("the body is not a complete multipart form", field="file") from None
        return event


def register_uploads(app: Flask, studio: Studio, settings: Settings) -> None:
    most_bytes = settings.max_upload_mb * 1024 * 1024

    @app.post("/api/uploads")
    def upload() -> Response:
        request.max_content_length = most_bytes + MULTIPART_OVERHEAD_BYTES
        with uploaded() as stream:
            return ok(201, upload=studio.upload(cast("BinaryIO", stream), stream.filename))


def uploaded() -> UploadStream:
    """The request's uploaded file.

    Raises:
        UnsupportedMediaType, InvalidRequest, InvalidParameter: there is none.
    """
    mimetype, options = parse_options_header(request.content_type)
    if mimetype != "multipart/form-data":
        raise UnsupportedMediaType("Content-Type: must be multipart/form-data", field="Content-Type")
    boundary = options.get("boundary", "")
    if not 1 <= len(boundary) <= 200 or not boundary.isascii():
        raise InvalidRequest("Content-Type: has no usable boundary", field="Content-Type")
    return UploadStream(request.stream, boundary.encode())
