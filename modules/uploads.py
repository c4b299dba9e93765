"""Clips that came from a person's machine: kept for a day under random ids, their names as data only.

What is kept is the clean FLAC that intake writes; the bytes that came are gone once it is there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modules import intake
from modules.contract import InvalidRequest, NotFound, TooLarge, Upload, clean_text
from modules.disk import PART_SUFFIX, naming_a_full_disk, sync_file, sync_folder, write_atomic

log = logging.getLogger(__name__)

KEEP_S = 24 * 3600.0
"""An upload that no job has used for this long goes."""
_BLOCK_BYTES = 256 * 1024
_MAX_NAME_CHARS = 120
_ID = re.compile(r"[0-9a-f]{32}")
_SOUND, _FACTS = ".flac", ".json"


class Readable(Protocol):
    """A stream of bytes; it need not seek."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class _Kept:
    """An upload on the disk."""

    upload: Upload
    bytes: int
    used_at: float


class Uploads:
    """The folder of uploads.

    Args:
        directory: its files are ours alone.
        max_bytes: largest single upload.
        total_bytes: most that all of them may hold; the longest unused go first.
        now: seconds since the epoch, for the age of files.
    """

    def __init__(
        self, directory: Path, *, max_bytes: int, total_bytes: int, keep_s: float = KEEP_S,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._now = now
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._kept: dict[str, _Kept] = {}
        self._recover()

    def add(self, stream: Readable, filename: str) -> Upload:
        """Take a clip in.

        Raises:
            InvalidRequest: it is empty.
            TooLarge: more bytes than are allowed.
            UnreadableAudio, ClipTooLong: it is no audio that can be used.
            DiskFull: there is no room.
        """
        upload_id = secrets.token_hex(16)
        part = self._directory / f".{upload_id}{PART_SUFFIX}"
        try:
            with naming_a_full_disk(part):
                self._receive(stream, part)
            clean = self._directory / f".{upload_id}{_SOUND}{PART_SUFFIX}"
            facts = intake.admit(part, clean)
            upload = Upload(
                id=upload_id, name=shown_name(filename), seconds=facts.seconds,
                sample_rate_hz=facts.sample_rate_hz, channels=facts.channels,
            )  # fmt: skip
            sync_file(clean)
            clean.replace(self._sound(upload_id))
            # Facts last: an upload exists once its facts do.
            write_atomic(self._directory / f"{upload_id}{_FACTS}", upload.model_dump_json().encode())
        except BaseException:
            with suppress(OSError):
                self._sound(upload_id).unlink(missing_ok=True)
            raise
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        with self._lock:
            self._kept[upload_id] = _Kept(upload, self._sound(upload_id).stat().st_size, self._now())
        return upload

    def get(self, upload_id: str) -> Upload:
        """Raises NotFound when it never was or has expired."""
        return self._entry(upload_id).upload

    def path(self, upload_id: str) -> Path:
        """Where its sound is. Raises NotFound."""
        self._entry(upload_id)
        return self._sound(upload_id)

    def touch(self, upload_id: str) -> None:
        """Start its day anew: a job was asked that uses it. Raises NotFound."""
        entry = self._entry(upload_id)
        with self._lock:
            self._kept[upload_id] = _Kept(entry.upload, entry.bytes, self._now())
        with suppress(OSError):
            os.utime(self._directory / f"{upload_id}{_FACTS}")

    @contextmanager
    def hold(self, upload_id: str) -> Iterator[Path]:
        """Keep it from being swept while it is read. Raises NotFound."""
        path = self.path(upload_id)
        with self._lock:
            self._held[upload_id] = self._held.get(upload_id, 0) + 1
        try:
            yield path
        finally:
            with self._lock:
                self._held[upload_id] -= 1

    def sweep(self, wanted: Collection[str] = ()) -> list[str]:
        """Remove what has expired or is too much in all; never what is held or `wanted` by a job.

        Returns:
            The ids that went.
        """
        gone = []
        for upload_id in self._too_many(wanted):
            with self._lock:
                self._kept.pop(upload_id, None)
            # Facts first: what has no facts is a leftover, not an upload.
            for suffix in (_FACTS, _SOUND):
                with suppress(OSError):
                    (self._directory / f"{upload_id}{suffix}").unlink(missing_ok=True)
            gone.append(upload_id)
        return gone

    def _too_many(self, wanted: Collection[str]) -> list[str]:
        with self._lock:
            free = [
                (entry.used_at, upload_id, entry.bytes)
                for upload_id, entry in self._kept.items()
                if upload_id not in wanted and not self._held.get(upload_id)
            ]
            total = sum(entry.bytes for entry in self._kept.values())
        leaving = []
        for used_at, upload_id, size in sorted(free):
            if self._now() - used_at > self._keep_s or total > self._total_bytes:
                leaving.append(upload_id)
                total -= size
        return leaving

    def _receive(self, stream: Readable, part: Path) -> None:
        received = 0
        with part.open("wb") as file:
            while block := stream.read(_BLOCK_BYTES):
                received += len(block)
                if received > self._max_bytes:
                    most = self._max_bytes // 1_000_000
                    raise TooLarge(f"the file is larger than {most} MB, the most that is accepted", field="file")
                file.write(block)
            if received == 0:
                raise InvalidRequest("the uploaded file is empty", field="file")

    def _entry(self, upload_id: str) -> _Kept:
        with self._lock:
            entry = self._kept.get(upload_id)
        if entry is None:
            raise NotFound(f"there is no upload {upload_id!r}; it may have expired: drop the file again")
        return entry

    def _sound(self, upload_id: str) -> Path:
        return self._directory / f"{upload_id}{_SOUND}"

    def _recover(self) -> None:
        """Find the uploads of earlier runs; remove what a crash left of others."""
        self._directory.mkdir(parents=True, exist_ok=True)
        known = set()
        for facts in self._directory.glob(f"*{_FACTS}"):
            entry = self._read(facts)
            if entry is not None:
                self._kept[entry.upload.id] = entry
                known |= {facts, self._sound(entry.upload.id)}
        for path in self._directory.iterdir():
            if path not in known and path.is_file() and _is_ours(path.name):
                path.unlink(missing_ok=True)
        sync_folder(self._directory)

    def _read(self, facts: Path) -> _Kept | None:
        try:
            upload = Upload.model_validate(json.loads(facts.read_bytes()))
            sound = self._sound(upload.id)
            if facts.stem != upload.id or sound.is_symlink():
                return None
            return _Kept(upload, sound.stat().st_size, facts.stat().st_mtime)
        except (OSError, ValueError):
            log.warning("the upload %s cannot be read and is removed", facts.name)
            return None


def _is_ours(name: str) -> bool:
    return name.endswith(PART_SUFFIX) or _ID.fullmatch(Path(name).stem) is not None


def shown_name(filename: str) -> str:
    """A client's file name as something to show: its last part, without controls, cut to a line."""
    last = re.split(r"[/\\]", clean_text(filename))[-1]
    words = " ".join(last.split())
    return words[:_MAX_NAME_CHARS] or "clip"
