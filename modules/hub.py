"""Checkpoint files from the Hugging Face hub: what is here, what is missing, and a download that can go on.

The client's own `hf_hub_download` starts again from nothing after a break, so the bytes are fetched here into a part
file beside the cache's blobs, checked, and then handed to the client, which files them in its cache. Neutral ground:
musicgen and stems both use it, and it imports neither torch nor (at module level) the client.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from modules.contract import DiskFull, DownloadFailed, ModelMissing, is_disk_full

log = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[float, float, float | None], None]
"""(bytes done, bytes in all, bytes a second or None). Whatever it raises ends the download; the part file stays."""

CHUNK_BYTES = 1 << 20
RETRIES = 5
READ_TIMEOUT_S = 10.0
"""Also how long a cancel can take when the network has gone silent."""
RATE_WINDOW_S = 3.0
SPARE_BYTES = 64 << 20
"""What a download leaves free on the disk."""
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    repo: str
    name: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo}/{self.name}"


@dataclass(frozen=True)
class _Remote:
    """What the hub says about a file: where, how large, and the etag that names its blob (sha256 for large files)."""

    file: HubFile
    url: str
    size_bytes: int
    etag: str


def local(file: HubFile) -> Path | None:
    """The file in the cache, or None. Never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.name, revision=file.revision)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def folder_name(repo: str) -> str:
    """What the cache calls the folder of a model's repository."""
    return "models--" + repo.replace("/", "--")


def missing(files: Sequence[HubFile]) -> list[HubFile]:
    """Those of `files` that are not in the cache."""
    return [file for file in files if local(file) is None]


def fetch(files: Sequence[HubFile], progress: Progress, *, offline: bool = False, what: str = "model") -> list[Path]:
    """Bring every file into the cache and say where each one is.

    Args:
        files: what is needed; those already here cost nothing.
        progress: told the bytes over all files; what it raises ends the download, which goes on from there next time.
        offline: never touch the network.
        what: the name to use in messages.
    Raises:
        ModelMissing: offline, and something is not here; details list every part.
        DownloadFailed: no connection, no such file, or bytes that do not match their checksum.
        DiskFull: it does not fit.
    """
    lacking = missing(files)
    if lacking and offline:
        names = [str(file) for file in lacking]
        raise ModelMissing(
            f"{what} is not on this machine and --offline forbids the network; missing: {', '.join(names)}",
            details={"missing": names, "download_bytes": 0},
        )
    if lacking:
        _download(lacking, progress, what)
    paths = [local(file) for file in files]
    if None in paths:
        raise DownloadFailed(f"{what}: the hub's cache did not keep what was downloaded; see its folder's permissions")
    return [path for path in paths if path is not None]


def _download(files: Sequence[HubFile], progress: Progress, what: str) -> None:
    remotes = [_look_up(file, what) for file in files]
    total = sum(remote.size_bytes for remote in remotes)
    done = sum(_part_bytes(remote) for remote in remotes)
    _check_space(total - done, what)
    meter = _Meter(done, total, progress)
    try:
        for remote in remotes:
            _fetch_one(remote, meter, what)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(what, meter.total - meter.done) from None
        raise DownloadFailed(f"{what}: {_reason(error)}") from error


def _look_up(file: HubFile, what: str) -> _Remote:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        meta = get_hf_file_metadata(hf_hub_url(file.repo, file.name, revision=file.revision), timeout=READ_TIMEOUT_S)
    except Exception as error:  # the client's own errors and its transport's, which changes between versions
        raise DownloadFailed(f"{what}: the hub did not answer for {file}: {_reason(error)}") from error
    if meta.etag is None or meta.size is None:
        raise DownloadFailed(f"{what}: the hub names no size or checksum for {file}")
    return _Remote(file, meta.location, meta.size, meta.etag)


def _reason(error: Exception) -> str:
    """One line without URLs, which may carry signatures."""
    words = str(error).strip().splitlines()
    return re.sub(r"\S+://\S+", "", words[0])[:160].strip() if words else type(error).__name__


def _blobs(file: HubFile) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + file.repo.replace("/", "--")) / "blobs"


def _part(remote: _Remote) -> Path:
    return _blobs(remote.file) / f"{remote.etag}.part"


def _part_bytes(remote: _Remote) -> int:
    """Bytes of an earlier attempt; a part longer than the file is of no use."""
    try:
        size = _part(remote).stat().st_size
    except OSError:
        return 0
    return size if size <= remote.size_bytes else 0


def _check_space(needed_bytes: int, what: str) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < needed_bytes + SPARE_BYTES:
        raise _disk_full(what, needed_bytes)


def _disk_full(what: str, needed_bytes: float) -> DiskFull:
    return DiskFull(f"{what}: no room on the disk for the remaining {needed_bytes / 1e6:.0f} MB; free some and retry")


class _Meter:
    """Bytes over all files, and their rate over the last seconds."""

    def __init__(self, done: int, total: int, progress: Progress) -> None:
        self.done, self.total = done, total
        self._progress = progress
        self._marks: list[tuple[float, int]] = [(time.monotonic(), done)]
        self.show()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.pop(0)
        self.show()

    def show(self) -> None:
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        rate = (last - first) / (end - start) if end - start > 0.2 and last > first else None
        self._progress(self.done, self.total, rate)


def _fetch_one(remote: _Remote, meter: _Meter, what: str) -> None:
    part = _part(remote)
    part.parent.mkdir(parents=True, exist_ok=True)
    blob = part.with_suffix("")
    if not blob.exists():
        with part.open("ab") as out:
            if out.tell() > remote.size_bytes:
                out.truncate(0)
            _complete(remote, out, meter, what)
            out.flush()
            os.fsync(out.fileno())
        # A small file's etag is git's hash of it, which says nothing our sha256 could be compared with.
        if _SHA256.match(remote.etag) and sha256_of(part) != remote.etag:
            part.unlink()
            raise DownloadFailed(f"{what}: {remote.file} arrived damaged (checksum); it will be fetched again on retry")
        part.replace(blob)
    _file_in_cache(remote, what)


def sha256_of(path: Path) -> str:
    """The file's checksum, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _complete(remote: _Remote, out: IO[bytes], meter: _Meter, what: str) -> None:
    """Fetch what is missing of one file, trying again where the connection breaks as long as bytes keep coming."""
    failures = 0
    while (have := out.seek(0, os.SEEK_END)) < remote.size_bytes:
        error = _attempt(remote, have, out, meter)
        if error is None:
            continue
        failures = 1 if out.tell() > have else failures + 1
        log.warning("download of %s broke off (%s), attempt %d", remote.file, type(error).__name__, failures)
        if failures >= RETRIES or _is_final(error):
            raise DownloadFailed(f"{what}: the connection broke at {remote.file}: {_reason(error)}") from error
        meter.show()  # a cancel is honoured here when no bytes come
        time.sleep(min(0.2 * 2**failures, 3.0))
    if out.tell() > remote.size_bytes:
        out.truncate(0)
        raise DownloadFailed(f"{what}: {remote.file} is longer than the hub said")


def _attempt(remote: _Remote, have: int, out: IO[bytes], meter: _Meter) -> Exception | None:
    """Append from byte `have` on until the end or a break, which is returned."""
    try:
        for chunk in _stream(remote, have):
            out.write(chunk)
            meter.add(len(chunk))
    except _RangeIgnored:
        out.truncate(0)
        meter.add(-have)
    except _broken() as error:
        return error
    return None


def _is_final(error: Exception) -> bool:
    """True for an answer that asking again will not change: not found, not allowed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


class _RangeIgnored(Exception):
    """The server answered a range with the whole file."""


def _broken() -> tuple[type[Exception], ...]:
    """What the client's transport raises for a connection that breaks. The transport differs between versions."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError, *_transport(get_session()))


def _transport(session: Any) -> tuple[type[Exception], ...]:
    import sys

    module = sys.modules[type(session).__module__.partition(".")[0]]
    return (module.TransportError,)


def _stream(remote: _Remote, have: int) -> Iterator[bytes]:
    from huggingface_hub import get_session, utils

    client: Any = utils  # its names are public, but not marked as exported

    headers = dict(client.build_hf_headers())
    if not remote.url.startswith(_endpoint()):
        headers.pop("authorization", None)  # a content server gets no token of the hub's
    headers["Accept-Encoding"] = "identity"
    if have:
        headers["Range"] = f"bytes={have}-"
    request: dict[str, Any] = {"headers": headers, "follow_redirects": True, "timeout": READ_TIMEOUT_S}
    with get_session().stream("GET", remote.url, **request) as response:
        client.hf_raise_for_status(response)
        if have and response.status_code != 206:
            raise _RangeIgnored
        yield from response.iter_bytes(CHUNK_BYTES)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _file_in_cache(remote: _Remote, what: str) -> None:
    """Let the client name the blob: it finds it by its etag and only links it."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(remote.file.repo, remote.file.name, revision=remote.file.revision)
    except OSError:
        raise
    except Exception as error:  # as above
        raise DownloadFailed(f"{what}: {remote.file} could not be filed in the cache: {_reason(error)}") from error
