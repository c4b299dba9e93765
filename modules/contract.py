"""The one description of what crosses a boundary: requests, jobs, tracks, events, errors and every range.

The page's settings, the REST and Socket.IO surfaces, the JSON beside a track, the OpenAPI document, the
command line and the README's tables are all derived from this module, so a range is written once.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

PROTOCOL = 1
"""Version of the HTTP and Socket.IO contract; the page reloads itself when it differs."""
SCHEMA_VERSION = 1
"""Version of the JSON beside a track."""

MAX_PROMPT_CHARS = 4000
MAX_ARTIST_CHARS = 60
MAX_JSON_BYTES = 256 * 1024
MAX_CLIP_S = 3 * 3600.0
"""Longest audio accepted anywhere, in seconds: more is refused before it is decoded."""
MAX_CHANNELS = 8
MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 8_000, 192_000
MAX_SEED = 2**31 - 1
AUTO_SEED = -1
MIN_LOOP_S = 2.0
"""Shortest loop that can be asked for: about a bar."""
LOOP_SPARE_S = 4.0
"""Music made beyond a loop's length: its end is looked for half a bar either way, and what follows it must be known."""


# --------------------------------------------------------------------------------------------- errors
class StudioError(Exception):
    """An error a person can act on: a stable code, the field it is about, and words that name the value.

    Args:
        message: what is wrong, with the value, and what would be right.
        field: the request's field in dotted form, or None when it is about no field.
        details: JSON-able facts for programs (missing parts, a smaller model that fits ...).
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.details = details or {}

    def to_error(self) -> Error:
        return Error(code=self.code, field=self.field, message=self.message, details=self.details)


class Internal(StudioError):
    """A defect of ours. The message never carries a stack or a path."""


class InvalidRequest(StudioError):
    code, status = "invalid_request", 400


class InvalidParameter(StudioError):
    code, status = "invalid_parameter", 400


class UnknownModel(StudioError):
    code, status = "unknown_model", 400


class UnreadableAudio(StudioError):
    code, status = "unreadable_audio", 400


class ClipTooShort(StudioError):
    code, status = "clip_too_short", 400


class ClipTooLong(StudioError):
    code, status = "clip_too_long", 400


class Forbidden(StudioError):
    code, status = "forbidden", 403


class Unauthorized(StudioError):
    """The token that --listen demands is missing or wrong."""

    code, status = "unauthorized", 401


class NotFound(StudioError):
    code, status = "not_found", 404


class MethodNotAllowed(StudioError):
    code, status = "method_not_allowed", 405


class Conflict(StudioError):
    """The thing is in a state that does not allow this: locked, in use, already final."""

    code, status = "conflict", 409


class TooLarge(StudioError):
    code, status = "too_large", 413


class UnsupportedMediaType(StudioError):
    code, status = "unsupported_media_type", 415


class RangeNotSatisfiable(StudioError):
    code, status = "range_not_satisfiable", 416


class TooManyRequests(StudioError):
    """details: {"retry_after_s": n}."""

    code, status = "too_many_requests", 429


class QueueFull(StudioError):
    code, status = "queue_full", 429


class ModelMissing(StudioError):
    """Parts of a checkpoint are not on this machine. details: {"missing": [...], "download_bytes": n}."""

    code, status = "model_missing", 409


class ModelBroken(StudioError):
    """A checkpoint is here but unusable: a layer missing, other shapes, not a checkpoint at all."""

    code, status = "model_broken", 422


class DownloadFailed(StudioError):
    code, status = "download_failed", 502


class OutOfMemory(StudioError):
    """details: {"fits": [{"model": ..., "precision": ...}]}, what would fit."""

    code, status = "out_of_memory", 507


class DiskFull(StudioError):
    code, status = "disk_full", 507


class DeviceLost(StudioError):
    """The graphics card stopped answering; what comes after runs on the CPU."""

    code, status = "device_lost", 503


def is_disk_full(error: OSError) -> bool:
    """True for no space, no quota and a file above the system's limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cancelled(StudioError):
    """Raised inside a job to unwind it; never an answer to a request."""

    code, status = "cancelled", 499


ERRORS: tuple[type[StudioError], ...] = (
    Internal, InvalidRequest, InvalidParameter, UnknownModel, UnreadableAudio, ClipTooShort, ClipTooLong, Unauthorized,
    Forbidden, NotFound, MethodNotAllowed, Conflict, TooLarge, UnsupportedMediaType, RangeNotSatisfiable,
    TooManyRequests, QueueFull, ModelMissing, ModelBroken, DownloadFailed, OutOfMemory, DiskFull, DeviceLost, Cancelled,
)  # fmt: skip


class Model(BaseModel):
    """Base of everything that crosses a boundary: strict types, no unknown fields, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Error(Model):
    code: str
    field: str | None = None
    message: str
    details: dict[str, Any] = {}


# ---------------------------------------------------------------------------------------- vocabularies
AudioFormat: TypeAlias = Literal["wav", "flac", "mp3"]
SampleRate: TypeAlias = Literal["original", "48k", "32k", "16k"]
Decoder: TypeAlias = Literal["codec", "diffusion"]
"""What turns tokens into the track's sound: the model's own codec, or Multi-Band Diffusion."""
StemChoice: TypeAlias = Literal["none", "all", "vocals", "drums", "bass", "other"]
ContinuationMode: TypeAlias = Literal["append", "continue"]
JobKind: TypeAlias = Literal["generate", "split", "load"]
JobStatus: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
JobPhase: TypeAlias = Literal[
    "queued",
    "downloading",
    "loading",
    "preparing",
    "generating",
    "decoding",
    "rendering",
    "splitting",
    "saving",
    "finished",
]
ModelState: TypeAlias = Literal["ready", "downloadable", "missing", "broken"]

FINAL_STATUSES: frozenset[str] = frozenset({"done", "failed", "cancelled", "interrupted"})
SAMPLE_RATES_HZ: dict[str, int | None] = {"original": None, "48k": 48_000, "32k": 32_000, "16k": 16_000}
STEM_NAMES: tuple[str, ...] = ("vocals", "drums", "bass", "other", "piano", "guitar")
"""Every stem a separator may give; the first four come from every model, the last two from the 6-stem one."""

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
Id: TypeAlias = Annotated[str, Field(pattern=ID_PATTERN)]
TrackName: TypeAlias = Annotated[str, Field(min_length=1, max_length=120)]


def _setting(group: str, *, step: float | None = None, widget: str = "slider", **bounds: Any) -> Any:
    """A request field that the page's settings show. `group` orders the panel; `step` is the slider's."""
    return Field(json_schema_extra={"setting": {"group": group, "step": step, "widget": widget}}, **bounds)


# -------------------------------------------------------------------------------------------- requests
class AudioRef(Model):
    """An uploaded clip or a track of the library: exactly one of the two."""

    upload: Id | None = None
    track: TrackName | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> AudioRef:
        if (self.upload is None) == (self.track is None):
            raise ValueError("name exactly one of upload and track")
        return self


class Continuation(AudioRef):
    """The clip a generation goes on from.

    append keeps the clip as it is and puts new, independent music after it; continue lets the model hear the
    clip's end and go on from it. `from` cuts the source at that many seconds (None: its end).
    """

    mode: ContinuationMode = "continue"
    from_s: float | None = Field(default=None, alias="from", ge=0.1, le=MAX_CLIP_S)

    model_config = ConfigDict(populate_by_name=True)


class GenerateRequest(Model):
    """POST /api/jobs with kind "generate". The parameters have audiocraft's meaning and limits."""

    kind: Literal["generate"] = "generate"
    client_id: Id
    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    model: str = _setting("model", widget="model", default="small", min_length=1, max_length=200)
    duration: float = _setting("length", step=1, default=10.0, ge=1.0, le=300.0)
    """Seconds of NEW music, a continued or appended clip not counted."""
    top_k: int = _setting("sampling", step=1, default=250, ge=0, le=2048)
    top_p: float = _setting("sampling", step=0.01, default=0.0, ge=0.0, le=1.0)
    temperature: float = _setting("sampling", step=0.05, default=1.0, ge=0.0, le=2.0)
    cfg_coef: float = _setting("sampling", step=0.1, default=3.0, ge=1.0, le=10.0)
    decoder: Decoder = _setting("sampling", widget="choice", default="codec")
    seed: int = _setting("seed", step=1, widget="seed", default=AUTO_SEED, ge=AUTO_SEED, le=MAX_SEED)
    takes: int = _setting("length", step=1, default=1, ge=1, le=8)
    loop: bool = _setting("length", widget="switch", default=False)
    """The end of the track leads into its beginning; the length is then that of the nearest whole number of bars."""
    artist: str = _setting("file", widget="text", default="", max_length=MAX_ARTIST_CHARS)
    format: AudioFormat = _setting("file", widget="choice", default="wav")
    sample_rate: SampleRate = _setting("file", widget="choice", default="original")
    audio_prompt: AudioRef | None = None
    continuation: Continuation | None = None
    stems: StemChoice = _setting("file", widget="choice", default="none")

    @field_validator("prompt")
    @classmethod
    def _clean_prompt(cls, text: str) -> str:
        cleaned = clean_text(text)
        if not cleaned:
            raise ValueError("write what the music should be")
        return cleaned

    @field_validator("artist")
    @classmethod
    def _clean_artist(cls, text: str) -> str:
        return " ".join(clean_text(text).split())

    @field_validator("continuation")
    @classmethod
    def _loops_stand_alone(cls, continuation: Continuation | None, info: ValidationInfo) -> Continuation | None:
        if continuation is not None and info.data.get("loop"):
            raise ValueError(
                "a loop leads into its own beginning, so it cannot go on from a clip; leave out loop or continuation"
            )
        return continuation

    @field_validator("loop")
    @classmethod
    def _loops_have_a_length(cls, loop: bool, info: ValidationInfo) -> bool:
        if loop and info.data.get("duration", MIN_LOOP_S) < MIN_LOOP_S:
            raise ValueError(
                f"a loop needs a duration of {MIN_LOOP_S:g} s or more, {info.data['duration']:g} s are too short"
            )
        return loop

    @property
    def made_s(self) -> float:
        """Seconds of music that the model makes."""
        return self.duration + (LOOP_SPARE_S if self.loop else 0.0)


class SplitRequest(Model):
    """POST /api/jobs with kind "split": a track or an upload into stems."""

    kind: Literal["split"] = "split"
    client_id: Id
    track: TrackName | None = None
    upload: Id | None = None
    stems: Literal["all", "vocals", "drums", "bass", "other"] = "all"
    separator: str = Field(default="auto", min_length=1, max_length=60)

    @model_validator(mode="after")
    def _exactly_one(self) -> SplitRequest:
        if (self.upload is None) == (self.track is None):
            raise ValueError("name exactly one of track and upload")
        return self


class LoadRequest(Model):
    """POST /api/models/<id>/load: fetch what is missing, then load. Never taken from POST /api/jobs."""

    kind: Literal["load"] = "load"
    client_id: Id
    model: str = Field(min_length=1, max_length=200)


JobRequest: TypeAlias = Union[GenerateRequest, SplitRequest, LoadRequest]
SubmittedRequest: TypeAlias = Annotated[Union[GenerateRequest, SplitRequest], Field(discriminator="kind")]
_SUBMITTED: TypeAdapter[GenerateRequest | SplitRequest] = TypeAdapter(SubmittedRequest)
_ANY: TypeAdapter[JobRequest] = TypeAdapter(Annotated[JobRequest, Field(discriminator="kind")])


class TrackPatch(Model):
    favourite: bool | None = None
    locked: bool | None = None


class ConfirmRequest(Model):
    confirm: Literal[True]

    @field_validator("confirm", mode="before")
    @classmethod
    def _only_true(cls, value: Any) -> Any:
        if value is not True:  # 1 equals True, but it is not the word that was asked for
            raise ValueError("must be true")
        return value


class CancelRequest(Model):
    """DELETE /api/jobs/<id>: keep saves what was made so far as a track."""

    keep: bool = False


class TrackQuery(Model):
    """The query string of GET /api/tracks."""

    q: str = Field(default="", max_length=200)
    model: str = Field(default="", max_length=200)
    format: AudioFormat | None = None
    favourite: bool | None = None
    locked: bool | None = None
    stems: bool | None = None
    sort: Literal["newest", "oldest", "name", "duration"] = "newest"
    cursor: str = Field(default="", max_length=200)
    limit: int = Field(default=100, ge=1, le=500)


class AudioQuery(Model):
    """The query string of GET /api/tracks/<name>/audio: another format or rate than the track's own."""

    format: AudioFormat | None = None
    sample_rate: SampleRate = "original"
    download: bool = False


class PeaksQuery(Model):
    """The query string of GET /api/tracks/<name>/peaks."""

    bins: int = Field(default=800, ge=1, le=8192)
    stem: str = Field(default="", max_length=40)


class ZipQuery(Model):
    """The query string of GET /api/tracks/<name>/stems.zip: stems by name with commas between, or all."""

    only: str = Field(default="", max_length=200)


class LoadBody(Model):
    """The optional body of POST /api/models/<id>/load."""

    client_id: Id | None = None


# ----------------------------------------------------------------------------------- tracks on the disk
class Loudness(Model):
    """Integrated loudness (ITU-R BS.1770) and sample peak; None where silence or shortness leaves it undefined."""

    integrated_lufs: float | None
    peak_dbfs: float | None


class Source(Model):
    """Where a continuation or an audio prompt came from."""

    kind: Literal["upload", "track"]
    name: str
    seconds: float
    mode: ContinuationMode | None = None
    from_s: float | None = None


class EngineInfo(Model):
    backend: str
    precision: str
    device: str
    why: str = ""


class Loop(Model):
    """How the end of a looped track leads into its beginning."""

    start_s: float
    """Where in the music that was made the loop begins."""
    fade_s: float
    """From the loop's beginning on: what followed its end fades into what follows its beginning."""
    beats: int | None = None
    """How many beats the loop has; None where none were found."""
    bpm: float | None = None
    level_jump_db: float
    """How much louder (below 0: quieter) the half second after the seam is than what followed there."""
    spectrum_jump_db: float
    """How far the two are apart band by band, on average."""


class Track(Model):
    """The JSON beside a track's audio. Rerun on the same machine with the same JSON gives the same audio."""

    schema_version: int = SCHEMA_VERSION
    name: TrackName
    file: str
    created_at: str
    """ISO 8601 with the offset."""
    prompt: str
    model: str
    checkpoint_hash: str | None
    asked: dict[str, Any]
    """The request as it came (client_id left out)."""
    used: dict[str, Any]
    """Every parameter as it was used, the model's own limits applied."""
    seed: int
    take: int = 1
    format: AudioFormat
    sample_rate_hz: int
    channels: int
    duration_s: float
    bytes: int
    continuation: Source | None = None
    audio_prompt: Source | None = None
    parent: str | None = None
    loop: Loop | None = None
    """Set when the file plays round and round."""
    post: list[str] = []
    loudness: Loudness
    engine: EngineInfo | None = None
    versions: dict[str, str] = {}
    timings_s: dict[str, float] = {}
    kept_early: bool = False
    """True when a cancelled job's audio was kept."""
    favourite: bool = False
    locked: bool = False
    has_tokens: bool = False
    stems: dict[str, str] = {}
    """Stem name -> file name inside static/stems/<name>/."""
    stems_info: dict[str, Any] = {}

    # A program of a later version may have added fields: they are dropped, never a reason to lose the track.
    model_config = ConfigDict(extra="ignore")


class Upload(Model):
    id: Id
    name: str
    seconds: float
    sample_rate_hz: int
    channels: int


# ------------------------------------------------------------------------------------ jobs and models
class Job(Model):
    """The full snapshot of a job. `rev` rises with every change; the highest one known is the truth."""

    id: Id
    client_id: Id
    rev: int
    kind: JobKind
    status: JobStatus
    phase: JobPhase
    done: float = 0
    total: float = 0
    """In the phase's own unit: steps, bytes, segments; 0 when not known."""
    rate: float | None = None
    """Units a second, for bytes and steps."""
    eta_s: float | None = None
    position: int = 0
    """Jobs before this one in the queue; 0 when it is next or running."""
    created_at: str
    request: dict[str, Any]
    track: str | None = None
    tracks: list[str] = []
    live: bool = False
    """True once GET /api/jobs/<id>/audio has sound."""
    live_s: float = 0.0
    unknown_words: list[str] = []
    """Words of the prompt that the model does not read; the music is made without them."""
    error: Error | None = None


class DiffusionInfo(Model):
    """The weights of Multi-Band Diffusion, as a model that can use them sees them."""

    state: ModelState
    licence: str
    missing: list[str] = []


class ModelInfo(Model):
    """One line of the catalogue."""

    id: str
    title: str
    repo: str | None
    """Hub repository, or None for a folder on this machine."""
    params_m: float | None
    channels: int
    melody: bool
    max_window_s: float
    frame_rate_hz: float = 50.0
    sample_rate_hz: int = 32_000
    licence: str
    sketch: bool = False
    """True for the embedded model: honest about what it is."""
    state: ModelState
    download_bytes: int
    """Still to be fetched; 0 when ready."""
    missing: list[str] = []
    where: str = ""
    """Where it is or will be kept, as shown to a person."""
    loaded: bool = False
    problem: str = ""
    diffusion: DiffusionInfo | None = None
    """None where the model's codec is its only decoder."""


class StemMix(Model):
    """One stem's place in a mix."""

    gain_db: float = Field(default=0.0, ge=-60.0, le=12.0)
    """At the lowest value it is silent."""
    pan: float = Field(default=0.0, ge=-1.0, le=1.0)
    mute: bool = False
    solo: bool = False


class Mix(Model):
    """How a mix was made: what stands in the JSON of the track that it became."""

    stems: dict[str, StemMix] = Field(min_length=1, max_length=len(STEM_NAMES))
    turned_down_db: float = Field(default=0.0, ge=-60.0, le=0.0)
    """By how much the whole was turned down so that nothing clips."""

    @field_validator("stems")
    @classmethod
    def _known_stems(cls, stems: dict[str, StemMix]) -> dict[str, StemMix]:
        unknown = [name for name in stems if name not in STEM_NAMES]
        if unknown:
            raise ValueError(f"{_shown(unknown[0])} is none of {', '.join(STEM_NAMES)}")
        return stems


class StemNotes(Model):
    """The notes of a stem: [start in s, end in s, MIDI pitch, velocity 1 to 127], in order of their beginning."""

    seconds: float
    notes: list[tuple[float, float, int, int]]


class SeparatorInfo(Model):
    """One way of splitting a track into stems."""

    id: str
    title: str
    stems: list[str]
    licence: str
    sketch: bool = False
    """True for the embedded separator: small, and honest about it."""
    state: ModelState
    download_bytes: int
    """About what is still to be fetched; 0 when ready."""
    missing: list[str] = []
    problem: str = ""


class Health(Model):
    version: str
    protocol: int = PROTOCOL
    device: str
    device_name: str
    stack: Literal["cold", "loading", "ready", "failed"]
    """The model stack (torch, audiocraft) loads behind the page."""
    stack_problem: str = ""
    model: str | None
    model_state: Literal["none", "loading", "loaded"]
    engine: EngineInfo | None = None
    offline: bool = False
    queue: dict[str, int]
    memory: dict[str, float] = {}


class LibraryChange(Model):
    added: list[Track] = []
    changed: list[Track] = []
    removed: list[str] = []


class Hello(Model):
    protocol: int = PROTOCOL
    version: str
    jobs: list[Job]
    tracks: int
    models: list[ModelInfo]


class EventName(str, Enum):
    """Socket.IO events. submit and cancel come from the client, the rest from the server."""

    SUBMIT = "submit"
    CANCEL = "cancel"
    HELLO = "hello"
    JOB = "job"
    LIBRARY = "library"


# --------------------------------------------------------------------------------------------- parsing
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF}


def clean_text(text: str) -> str:
    """Strip controls (line breaks and tabs stay), bidi marks and lone surrogates, and the ends' white space."""
    kept = (
        c for c in text
        if (c in "\n\t" or ord(c) >= 0x20) and not 0x7F <= ord(c) <= 0x9F
        and ord(c) not in _BIDI and not 0xD800 <= ord(c) <= 0xDFFF
    )  # fmt: skip
    return "".join(kept).strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parameter_error(error: ValidationError) -> InvalidParameter:
    """The first problem of a validation as one error that names the field, the value and what would be right."""
    first = error.errors(include_url=False, include_context=True)[0]
    path = [str(p) for p in first["loc"] if p not in ("generate", "split", "load")]
    field = ".".join(path) or "body"
    kind = first["type"]
    if kind == "extra_forbidden":
        return InvalidParameter(f"{field}: there is no such field", field=field)
    if kind == "missing":
        return InvalidParameter(f"{field}: is missing", field=field)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return InvalidParameter('kind: must be "generate" or "split"', field="kind")
    words = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return InvalidParameter(f"{field}: {words}", field=field)
    words = words.removeprefix("Input ").removeprefix("String ")
    return InvalidParameter(f"{field}: {_shown(first['input'])} does not fit, it {words}", field=field)


def parse_submitted(body: Any) -> GenerateRequest | SplitRequest:
    """Validate the body of POST /api/jobs or of a `submit` event, once.

    Raises:
        InvalidParameter: with the field's name and the value.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return _SUBMITTED.validate_python(body)
    except ValidationError as error:
        raise parameter_error(error) from None


def parse_any(body: Any) -> JobRequest:
    """Validate a request as the queue keeps it, the internal kinds included."""
    try:
        return _ANY.validate_python(body)
    except ValidationError as error:
        raise parameter_error(error) from None


def parse(model: type[Any], body: Any) -> Any:
    """Validate `body` as any one contract model.

    Raises:
        InvalidParameter: with the field's name and the value.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise parameter_error(error) from None


def parse_query(model: type[Any], pairs: Mapping[str, str]) -> Any:
    """Validate a query string as any one contract model: the values are text, so numbers and yes/no are read.

    Raises:
        InvalidParameter: with the field's name and the value.
    """
    try:
        return model.model_validate_strings(dict(pairs), strict=False)
    except ValidationError as error:
        raise parameter_error(error) from None


def ok(**payload: Any) -> dict[str, Any]:
    """The success envelope."""
    return {"ok": True, **{key: _plain(value) for key, value in payload.items()}}


def failure(error: StudioError) -> dict[str, Any]:
    """The failure envelope."""
    return {"ok": False, "error": error.to_error().model_dump(mode="json")}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# ------------------------------------------------------------------------------------------ parameters
class Parameter(Model):
    """One setting of a generation, as the page, the command line and the README show it."""

    name: str
    type: Literal["integer", "number", "string", "choice", "boolean"]
    default: bool | int | float | str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: list[str] = []
    group: str
    widget: str


def parameters() -> list[Parameter]:
    """Every setting of GenerateRequest in the panel's order."""
    schema = GenerateRequest.model_json_schema()
    found: list[Parameter] = []
    for name, spec in schema["properties"].items():
        setting = spec.get("setting")
        if setting is None:
            continue
        choices = spec.get("enum", [])
        found.append(
            Parameter(
                name=name,
                type="choice" if choices else spec["type"],
                default=spec["default"],
                minimum=_finite(spec.get("minimum")),
                maximum=_finite(spec.get("maximum")),
                step=_finite(setting["step"]),
                choices=choices,
                group=setting["group"],
                widget=setting["widget"],
            )
        )
    return found


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def page_facts(max_upload_mb: int) -> dict[str, Any]:
    """What the page must know of the contract, as JSON: it renders its settings and its limits from this."""
    return {
        "protocol": PROTOCOL,
        "parameters": [parameter.model_dump(mode="json") for parameter in parameters()],
        "limits": {
            "prompt_chars": MAX_PROMPT_CHARS,
            "artist_chars": MAX_ARTIST_CHARS,
            "clip_s": MAX_CLIP_S,
            "upload_mb": max_upload_mb,
            "seed": MAX_SEED,
        },
        "stems": list(STEM_NAMES),
        "final": sorted(FINAL_STATUSES),
        "error_codes": [error.code for error in ERRORS],
    }
