"""The OpenAPI 3.1 document of the HTTP contract. Every schema in it comes from the contract's own models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from modules import contract
from modules.contract import (
    AudioQuery,
    CancelRequest,
    ConfirmRequest,
    Error,
    GenerateRequest,
    Health,
    Hello,
    Job,
    LibraryChange,
    LoadBody,
    Mix,
    ModelInfo,
    PeaksQuery,
    SeparatorInfo,
    SplitRequest,
    StemNotes,
    StudioError,
    Track,
    TrackPatch,
    TrackQuery,
    Upload,
    ZipQuery,
)
from modules.settings import VERSION

_REF = "#/components/schemas/{model}"
_REQUESTS: tuple[type[contract.Model], ...] = (
    GenerateRequest, SplitRequest, LoadBody, CancelRequest, ConfirmRequest, TrackPatch, TrackQuery, AudioQuery,
    PeaksQuery, ZipQuery, Mix,
)  # fmt: skip
_ANSWERS: tuple[type[contract.Model], ...] = (
    Error,
    Health,
    Hello,
    Job,
    LibraryChange,
    ModelInfo,
    SeparatorInfo,
    StemNotes,
    Track,
    Upload,
)

TAGS = {
    "server": "What is running, and what it can do.",
    "models": "The catalogue, and the one model that is loaded.",
    "jobs": "Generating and splitting: everything that takes time.",
    "tracks": "The library.",
    "pages": "What a browser opens.",
}
PATH_PARAMETERS = {
    "model_id": ("A model's id in the catalogue.", "small"),
    "job_id": ("A job's id.", "3f2a9c"),
    "name": ("A track's name.", "small_24112026_06_15"),
    "stem": ("A stem of the track.", "drums"),
    "kind": ("A folder of the page's files.", "js"),
    "path": ("A file in it.", "main.js"),
}


@dataclass(frozen=True)
class Operation:
    """One method of one path, in the words and schemas that a reader needs."""

    method: str
    path: str
    tag: str
    summary: str
    answer: Mapping[str, Any] | None = None
    """What stands beside "ok": true; None when the answer is not JSON (see media)."""
    status: int = 200
    media: tuple[str, ...] = ()
    query: type[contract.Model] | None = None
    body: Any = None
    body_required: bool = True
    body_media: str = "application/json"
    example: Any = None
    errors: tuple[str, ...] = ()
    more_statuses: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        words = [part.strip("{}").replace(".", "_") for part in self.path.split("/") if part]
        return "_".join([self.method, *words]) if words else f"{self.method}_page"


def _ref(model: type[contract.Model]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _list(model: type[contract.Model]) -> dict[str, Any]:
    return {"type": "array", "items": _ref(model)}


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_AUDIO = ("audio/wav", "audio/flac", "audio/mpeg")
_ESTIMATE = {
    "type": "object",
    "description": "What a generation would take, before it is asked for.",
    "required": ["seconds", "fits"],
    "properties": {"seconds": {"type": ["number", "null"]}, "fits": {"type": "boolean"}},
}
_MIXDOWN = {
    "type": "object",
    "required": ["mix", "file"],
    "properties": {"mix": {"$ref": _REF.format(model="Mix")}, "file": {"type": "string", "format": "binary"}},
}
_GENERATE_EXAMPLE = {
    "kind": "generate", "client_id": "c-1", "prompt": "warm lo-fi piano, slow", "model": "small", "duration": 10.0,
    "seed": -1, "takes": 1, "format": "wav",
}  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation("get", "/", "pages", "The page", media=("text/html",)),
    Operation("get", "/static/{kind}/{path}", "pages", "The page's own files", media=("*/*",), errors=("not_found",)),
    Operation("get", "/api/docs", "pages", "This document as a page", media=("text/html",)),
    Operation("get", "/api/openapi.json", "server", "This document", media=("application/json",)),
    Operation("get", "/api/health", "server", "Version, device, model, queue", {"health": _ref(Health)}),
    Operation("get", "/api/models", "models", "The catalogue: state, size, licence", {"models": _list(ModelInfo)}),
    Operation(
        "post", "/api/models/{model_id}/load", "models", "Fetch what is missing and load the model: a job",
        {"job": _ref(Job)}, status=202, body=LoadBody, body_required=False, example={"client_id": "c-2"},
        errors=("unknown_model", "model_missing", "queue_full"),
    ),
    Operation(
        "delete", "/api/models/{model_id}/load", "models", "Unload the model, its memory given back", {},
        errors=("unknown_model", "conflict"),
    ),
    Operation(
        "post", "/api/jobs", "jobs", "Generate music or split a track: the same client_id is the same job",
        {"job": _ref(Job)}, status=202, body=(GenerateRequest, SplitRequest), example=_GENERATE_EXAMPLE,
        errors=(
            "invalid_parameter", "unknown_model", "not_found", "model_missing", "model_broken", "clip_too_short",
            "clip_too_long", "conflict", "queue_full", "disk_full",
        ),
    ),
    Operation(
        "post", "/api/estimate", "jobs", "What a generation would take: time and memory; the prompt may be empty",
        {"estimate": _ESTIMATE}, body=GenerateRequest, example=_GENERATE_EXAMPLE,
        errors=("invalid_parameter", "unknown_model"),
    ),
    Operation("get", "/api/jobs", "jobs", "Snapshots of every job", {"jobs": _list(Job)}),
    Operation("get", "/api/jobs/{job_id}", "jobs", "A job's snapshot", {"job": _ref(Job)}, errors=("not_found",)),
    Operation(
        "delete", "/api/jobs/{job_id}", "jobs", "Cancel a job, keeping what was made so far if wished",
        {"job": _ref(Job)}, body=CancelRequest, body_required=False, example={"keep": True},
        errors=("not_found", "conflict"),
    ),
    Operation(
        "get", "/api/jobs/{job_id}/audio", "jobs", "The audio as it is being made, from its start (chunked)",
        media=("audio/wav",), errors=("not_found", "conflict"), more_statuses=(204,),
    ),
    Operation(
        "get", "/api/tracks", "tracks", "A page of the library",
        {"tracks": _list(Track), "next_cursor": _TEXT, "total": _COUNT}, query=TrackQuery,
        errors=("invalid_parameter",),
    ),
    Operation(
        "delete", "/api/tracks", "tracks", "Delete every track that is not locked",
        {"removed": _COUNT, "spared": _COUNT}, body=ConfirmRequest, example={"confirm": True},
        errors=("invalid_parameter",),
    ),
    Operation("get", "/api/tracks/{name}", "tracks", "A track", {"track": _ref(Track)}, errors=("not_found",)),
    Operation(
        "patch", "/api/tracks/{name}", "tracks", "Mark a track as favourite or locked", {"track": _ref(Track)},
        body=TrackPatch, example={"favourite": True}, errors=("invalid_parameter", "not_found"),
    ),
    Operation(
        "delete", "/api/tracks/{name}", "tracks", "Delete a track with its JSON, tokens and stems",
        {"removed": {"type": "array", "items": _TEXT}}, errors=("not_found", "conflict"),
    ),
    Operation(
        "get", "/api/tracks/{name}/audio", "tracks", "The track's audio; ranges work, other formats are converted",
        media=_AUDIO, query=AudioQuery, errors=("invalid_parameter", "not_found", "range_not_satisfiable"),
        more_statuses=(206, 304),
    ),
    Operation(
        "get", "/api/tracks/{name}/peaks", "tracks", "The waveform: the lowest and highest sample of each bin",
        {"peaks": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}}, query=PeaksQuery,
        errors=("invalid_parameter", "not_found"),
    ),
    Operation(
        "get", "/api/tracks/{name}/stems", "tracks", "The stems that the track has",
        {"stems": {"type": "array", "items": _TEXT}, "info": {"type": "object"}}, errors=("not_found",),
    ),
    Operation(
        "get", "/api/tracks/{name}/stems/{stem}", "tracks", "A stem's audio; ranges work", media=("audio/wav",),
        errors=("not_found", "range_not_satisfiable"), more_statuses=(206, 304),
    ),
    Operation(
        "get", "/api/tracks/{name}/stems.zip", "tracks", "The chosen stems, or all, in one archive",
        media=("application/zip",), query=ZipQuery, errors=("not_found",),
    ),
    Operation(
        "post", "/api/tracks/{name}/stems/{stem}/midi", "tracks",
        "The notes of a stem: found on the first call, which takes seconds", {"notes": _ref(StemNotes)},
        errors=("not_found", "model_missing", "clip_too_long", "disk_full"),
    ),
    Operation(
        "get", "/api/tracks/{name}/stems/{stem}/midi", "tracks", "The notes of a stem as a MIDI file, once found",
        media=("audio/midi",), errors=("not_found",),
    ),
    Operation(
        "post", "/api/tracks/{name}/mixdown", "tracks",
        "A mix of the track's stems as a new track: the fields \"mix\" (JSON, first) and \"file\" of a form",
        {"track": _ref(Track)}, status=201, body_media="multipart/form-data", body=_MIXDOWN,
        errors=("invalid_parameter", "invalid_request", "not_found", "unreadable_audio", "too_large", "disk_full"),
    ),
    Operation("get", "/api/separators", "models", "The ways of splitting", {"separators": _list(SeparatorInfo)}),
    Operation(
        "post", "/api/uploads", "tracks", 'A clip as the field "file" of a form: to continue, to follow or to split',
        {"upload": _ref(Upload)}, status=201, body_media="multipart/form-data",
        body={"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}},
        errors=("invalid_parameter", "unreadable_audio", "clip_too_short", "clip_too_long", "too_large", "disk_full"),
    ),
)  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """The whole document, ready for JSON. Made when it is first asked for, not before the first page."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "audiocraft-webui",
            "version": VERSION,
            "summary": "A local web studio for MusicGen",
            "description": (
                'Success is {"ok": true, ...}; failure is {"ok": false, "error": {"code", "field", "message", '
                '"details"}}. Scripts on the same machine need no token; with --listen they send it as '
                "Authorization: Bearer. "
                "Socket.IO at /socket.io sends hello, job and library, and takes submit and cancel."
            ),
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**_schemas(), "Failure": _failure_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def operations(document: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(METHOD, path, description) of every operation, in the document's order."""
    return [
        (method.upper(), path, found)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]  # fmt: skip


def _schemas() -> dict[str, Any]:
    requests: list[tuple[Any, Any]] = [(model, "validation") for model in _REQUESTS]
    answers: list[tuple[Any, Any]] = [(model, "serialization") for model in _ANSWERS]
    _, definitions = models_json_schema([*requests, *answers], ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _failure_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["ok", "error"],
        "properties": {"ok": {"const": False}, "error": _ref(Error)},
    }


def _describe(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation.query)],
        "responses": {**_success(operation), **_failures(operation.errors)},
    }
    if operation.body is not None:
        found["requestBody"] = _body(operation)
    return found


def _body(operation: Operation) -> dict[str, Any]:
    body = operation.body
    if isinstance(body, tuple):
        schema: Any = {"oneOf": [_ref(model) for model in body], "discriminator": {"propertyName": "kind"}}
    else:
        schema = body if isinstance(body, dict) else _ref(body)
    content: dict[str, Any] = {"schema": schema}
    if operation.example is not None:
        content["example"] = operation.example
    return {"required": operation.body_required, "content": {operation.body_media: content}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    return [
        {
            "name": name, "in": "path", "required": True, "description": PATH_PARAMETERS[name][0],
            "schema": {"type": "string"}, "example": PATH_PARAMETERS[name][1],
        }
        for name in names
    ]  # fmt: skip


def _query_parameters(model: type[contract.Model] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    properties = model.model_json_schema(ref_template=_REF)["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


def _success(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        content: dict[str, Any] = {media: {"schema": {}} for media in operation.media}
    else:
        schema = {
            "type": "object",
            "required": ["ok", *operation.answer],
            "properties": {"ok": {"const": True}, **operation.answer},
        }
        content = {"application/json": {"schema": schema}}
    found: dict[str, Any] = {str(operation.status): {"description": operation.summary, "content": content}}
    if 204 in operation.more_statuses:
        found["204"] = {"description": "It has ended; there is nothing more to hear here"}
    if 206 in operation.more_statuses:
        found["206"] = {"description": "The range that was asked for", "content": content}
    if 304 in operation.more_statuses:
        found["304"] = {"description": "Not changed since the ETag that was sent"}
    return found


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    """By status, since two codes may share one; anything else is the default."""
    known: dict[str, type[StudioError]] = {error.code: error for error in contract.ERRORS}
    by_status: dict[str, list[str]] = {}
    for code in codes:
        by_status.setdefault(str(known[code].status), []).append(code)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    found: dict[str, Any] = {
        status: {"description": " or ".join(sorted(words)), "content": content} for status, words in by_status.items()
    }
    if "429" in found:
        found["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait"}}
    found["default"] = {"description": "Any other failure", "content": content}
    return found
