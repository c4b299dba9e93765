"""Writing so that a crash leaves the old file or the new one, and saying a full disk in words."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from modules.contract import Conflict, DiskFull, is_disk_full

PART_SUFFIX = ".part"
"""Ends the name of every file that is still being written; a sweep at start removes what a crash left."""


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, synced: after a crash the file is the old one or the new one, never a piece.

    Raises:
        DiskFull: no room; nothing of the new file is left.
        OSError: the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    with naming_a_full_disk(path):
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync_folder(path.parent)


def take_folder(folder: Path, flag: str, *, shown: Path | None = None) -> Any:
    """Keep `folder` for this program until the lock that is returned is released.

    Args:
        flag: what chooses another folder, for the message.
        shown: the folder as the person knows it, where `folder` is one of ours inside it.
    Raises:
        Conflict: another running program has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(folder / "lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Conflict(
            f"another running program already uses the folder {shown or folder}; stop it or choose another {flag}"
        ) from None
    return lock


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" into DiskFull."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"the disk that holds {path.parent.name}/ is full: free some space and try again") from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse early what would fill the disk.

    Raises:
        DiskFull: fewer than `needed_bytes` are free where `folder` is.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise DiskFull(
            f"about {needed_bytes / 1e6:.0f} MB are needed for {folder.name}/ and {free / 1e6:.0f} MB are free:"
            " free some space and try again",
            details={"needed_bytes": needed_bytes, "free_bytes": free},
        )


def sweep_parts(folder: Path) -> int:
    """Remove what a crash left half written directly in `folder`; returns how many."""
    leftovers = list(folder.glob(f".*{PART_SUFFIX}"))
    for part in leftovers:
        part.unlink(missing_ok=True)
    return len(leftovers)
