"""The tracks on disk: names, atomic pairs, stems, search, deletion. The disk is the truth, an index in memory the map.

    <audio_dir>/<name>.<ext>          the audio
    <audio_dir>/<name>.json           the contract's Track; the track exists once this file does
    <audio_dir>/<name>.tokens.npz     the model's tokens, where it left some
    <stems_dir>/<name>/<stem>.wav     the stems, where it was split
    <audio_dir>/.studio/              ours alone: the lock, and tmp/ with what is being written or deleted

What several files make up is changed under an intent, a file in tmp/ that names the track: `.save` is the JSON to be,
`.stems` the JSON to be with stems, `.delete` the JSON that was. Each becomes or was the JSON by one rename, so a crash
leaves either the whole change or an intent from which the next start cleans up. Nothing else is ever removed: a file
that a person puts into these folders stays.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import os
import secrets
import shutil
import stat
import struct
import threading
import unicodedata
import zipfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from typing_extensions import Self

from modules import audio, contract
from modules.contract import (
    Conflict,
    DiskFull,
    InvalidParameter,
    LibraryChange,
    NotFound,
    Track,
    TrackPatch,
    TrackQuery,
)
from modules.disk import sync_file, sync_folder, take_folder

log = logging.getLogger(__name__)

MAX_NAME_BYTES: Final = 120
_OWN_DIR: Final = ".studio"
_TOKENS_SUFFIX: Final = ".tokens.npz"
NOTES_SUFFIX: Final = ".notes.json"
"""Ends the file beside a stem that keeps its notes."""
_AUDIO_SUFFIXES: Final = (".wav", ".flac", ".mp3")
_PEAKS_KEPT: Final = 512
_WINDOWS_DEVICES: Final = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
_WINDOWS_FORBIDDEN: Final = frozenset('<>:"/\\|?*')
_JOINERS: Final = frozenset("\u200c\u200d")
"""Invisible, yet part of the spelling in Persian, in Indian scripts and in emoji."""


# -------------------------------------------------------------------------------------------------- names
def track_name(artist: str, model: str, seed: int | None, when: datetime) -> str:
    """`Artist_Model_Seed_DDMMYYYY_HH_MM`, safe as a file name on Linux, macOS and Windows, at most 120 bytes.

    Args:
        artist: left out when nothing of it can stay.
        seed: the seed that the person chose, None in auto mode.
    """
    seed_part = [] if seed is None else [str(seed)]
    tail = "_".join([*seed_part, when.strftime("%d%m%Y_%H_%M")])
    # Ten bytes stay free for a collision's number.
    room = MAX_NAME_BYTES - 10 - len(tail)
    model_part = _cut(_safe_part(model) or "model", 48)
    artist_part = _cut(_safe_part(artist), room - len(model_part.encode()) - 2)
    name = "_".join(part for part in (artist_part, model_part, tail) if part)
    return _no_device(name)


def _safe_part(text: str) -> str:
    """NFC, without controls and bidi marks, with '-' for what Windows forbids, no dot, dash or space at the ends."""
    kept = []
    for char in unicodedata.normalize("NFC", contract.clean_text(text)):
        if char.isspace():
            kept.append(" ")
        elif char in _WINDOWS_FORBIDDEN:
            kept.append("-")
        elif char in _JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn"):
            kept.append(char)
    return " ".join("".join(kept).split()).strip(" .-_~")


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[: max(most_bytes, 0)].decode(errors="ignore").strip(" .-_")


def _no_device(name: str) -> str:
    """Windows reads `CON.anything` as the device: the part before the first dot must be none."""
    first, dot, rest = name.partition(".")
    return f"{first}_{dot}{rest}" if first.strip().upper() in _WINDOWS_DEVICES else name


def _is_usable(name: str) -> bool:
    """A name from the disk that can travel in JSON, headers and cursors: UTF-8, short, without controls."""
    try:
        return len(name.encode()) <= MAX_NAME_BYTES and contract.clean_text(name) == name and "\n" not in name
    except UnicodeEncodeError:
        return False


# -------------------------------------------------------------------------------------------------- index
@dataclass(frozen=True)
class _Entry:
    """What search and order need of one track, beside the track itself."""

    track: Track
    created_s: float
    text: str
    """Casefolded: what a search looks through."""

    @classmethod
    def of(cls, track: Track) -> _Entry:
        artist = str(track.asked.get("artist", ""))
        text = unicodedata.normalize("NFC", f"{track.name}\n{track.prompt}\n{track.model}\n{artist}").casefold()
        return cls(track, _timestamp(track.created_at), text)


def _fitting(pairs: list[tuple[_SortKey, _Entry]], query: TrackQuery) -> list[tuple[_SortKey, _Entry]]:
    """The pairs that a query asks for, in their order. The words come first: they leave least for what follows."""
    for word in unicodedata.normalize("NFC", query.q).casefold().split():
        pairs = [pair for pair in pairs if word in pair[1].text]
    if query.model:
        pairs = [pair for pair in pairs if pair[1].track.model == query.model]
    if query.format is not None:
        pairs = [pair for pair in pairs if pair[1].track.format == query.format]
    if query.favourite is not None:
        pairs = [pair for pair in pairs if pair[1].track.favourite == query.favourite]
    if query.locked is not None:
        pairs = [pair for pair in pairs if pair[1].track.locked == query.locked]
    if query.stems is not None:
        pairs = [pair for pair in pairs if bool(pair[1].track.stems) == query.stems]
    return pairs


def _timestamp(created_at: str) -> float:
    try:
        return datetime.fromisoformat(created_at.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0  # edited by hand: it sorts as the oldest


_SortKey = tuple[float, str]
_SORT_LETTERS: Final = {"newest": b"n", "oldest": b"o", "name": b"a", "duration": b"d"}
_FALLING: Final = frozenset({"newest", "duration"})


def _sort_key(entry: _Entry, sort: str) -> _SortKey:
    """(number, name): unique, so that a cursor is a place in the order even when its track is gone."""
    if sort == "name":
        return (0.0, entry.track.name)
    return (entry.track.duration_s if sort == "duration" else entry.created_s, entry.track.name)


def _write_cursor(sort: str, key: _SortKey) -> str:
    return base64.urlsafe_b64encode(_SORT_LETTERS[sort] + struct.pack("<d", key[0]) + key[1].encode()).decode()


def _read_cursor(sort: str, cursor: str) -> _SortKey:
    try:
        raw = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        letter, key = raw[:1], (struct.unpack("<d", raw[1:9])[0], raw[9:].decode())
    except (ValueError, struct.error):
        letter, key = b"", (0.0, "")
    if letter != _SORT_LETTERS[sort]:
        raise InvalidParameter(
            f"cursor: {cursor[:40]!r} is not one that this list gave for the order {sort!r}", field="cursor"
        )
    return key


# ------------------------------------------------------------------------------------------- small file steps
def _read_at_most(path: Path, count: int) -> bytes:
    """The file's first `count` bytes; a link is an error. Python's file object would cost half as much again."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Thousands of new objects in a row, none of them garbage.

    With 10,000 tracks, collecting meanwhile costs a seventh of a scan, and a full collection later stops someone's
    page for 80 ms: the objects are frozen, which keeps the collector from visiting them. They still go when nothing
    refers to them.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if paused:
            gc.enable()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_tokens(path: Path, tokens: npt.NDArray[Any]) -> None:
    """Integers [K, T] below 32768, packed; synced."""
    with path.open("wb") as file:
        np.savez_compressed(file, codes=tokens.astype(np.int16))
        file.flush()
        os.fsync(file.fileno())


def _is_own_file(path: Path) -> bool:
    """A regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_own_dir(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a file, or a link itself, or a folder with what is in it; nothing when it is not there."""
    if _is_own_dir(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if contract.is_disk_full(error):
            raise DiskFull("the disk is full: nothing was kept; free some space and try again") from error
        raise


# ------------------------------------------------------------------------------------------------ library
class Library:
    """The tracks of one folder, for one program at a time. Safe for threads.

    Raises:
        Conflict: another program has the folder.
    """

    def __init__(
        self, audio_dir: Path, stems_dir: Path, on_change: Callable[[LibraryChange], None] | None = None
    ) -> None:
        audio_dir.mkdir(parents=True, exist_ok=True)
        stems_dir.mkdir(parents=True, exist_ok=True)
        # The folders themselves may be links of the person's own; nothing inside them may.
        self._audio_dir, self._stems_dir = audio_dir.resolve(), stems_dir.resolve()
        self._own_dir = self._audio_dir / _OWN_DIR
        self._tmp_dir = self._own_dir / "tmp"
        self.on_change = on_change
        """Called after each change, in order, outside the lock."""
        self._lock = threading.RLock()
        self._notify_lock = threading.RLock()
        self._changes: deque[LibraryChange] = deque()
        self._entries: dict[str, _Entry] = {}
        self._orders: dict[str, list[tuple[_SortKey, _Entry]]] = {}
        self._taken: set[str] = set()
        self._reserved: set[str] = set()
        self._held: Counter[str] = Counter()
        self._peaks: OrderedDict[tuple[str, int, int], audio.Samples] = OrderedDict()
        self._folder_lock = self._take_folder()
        self._sweep()
        self._scan()

    def close(self) -> None:
        """Let go of the folder."""
        self._folder_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- opening
    def _take_folder(self) -> Any:
        lock_path = self._own_dir / "lock"
        for path in (self._own_dir, self._tmp_dir, lock_path):
            if path.is_symlink():
                raise Conflict(f"{path} is a link; remove it, the program keeps its own files there")
        self._tmp_dir.mkdir(parents=True, exist_ok=True)
        return take_folder(self._own_dir, "--data-dir", shown=self._audio_dir)

    def _sweep(self) -> None:
        """Undo what a crash cut short: the intents first, then every other temporary file of ours."""
        left = sorted(self._tmp_dir.iterdir())
        for path in left:
            name, kind = path.stem, path.suffix
            if not _is_own_file(path):
                continue
            if kind == ".stems":
                self._remove_unlisted_stems(name)
            elif kind == ".delete" or (kind == ".save" and not _is_own_file(self._json_path(name))):
                # An intent is synced before any file moves on its word: an unreadable one has moved none.
                track = self._read_track(path)
                if track is not None:
                    self._remove_files(name, track.format)
        if left:
            sync_folder(self._audio_dir)
            log.info("removed %d leftovers of an interrupted run", len(left))
        for path in left:
            _remove(path)

    def _remove_unlisted_stems(self, name: str) -> None:
        track = self._read_track(self._json_path(name))
        if track is None and _is_own_file(self._json_path(name)):
            return  # unreadable: which stems it lists is not known
        listed = set(track.stems.values()) if track else set()
        folder = self._stems_dir / name
        for stem in contract.STEM_NAMES:
            if f"{stem}.wav" not in listed and _is_own_dir(folder):
                (folder / f"{stem}.wav").unlink(missing_ok=True)
                (folder / f"{stem}{NOTES_SUFFIX}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only when nothing is left in it

    def _scan(self) -> None:
        with os.scandir(self._audio_dir) as found:
            files = {entry.name for entry in found if entry.is_file(follow_symlinks=False)}
        with os.scandir(self._stems_dir) as found:
            stem_dirs = {entry.name for entry in found if entry.is_dir(follow_symlinks=False)}
        self._taken = {_base(file).casefold() for file in files}
        with _collector_paused():
            for file in files:
                if file.endswith(".json"):
                    self._index_file(file, files, stem_dirs)

    def _index_file(self, file: str, files: set[str], stem_dirs: set[str]) -> None:
        name = file.removesuffix(".json")
        if not any(name + suffix in files for suffix in _AUDIO_SUFFIXES):
            log.warning("%s has no audio beside it and is left alone", file)
            return
        if not _is_usable(name):
            log.warning("%a is no name for a track and is left alone", file)
            return
        track = self._read_track(self._audio_dir / file)
        if track is None or f"{name}.{track.format}" not in files:
            self._set_aside(self._audio_dir / file)
            return
        # A pair that a person renamed, or took from elsewhere without all that belongs to it, stays usable.
        facts = {
            "name": name, "file": f"{name}.{track.format}", "has_tokens": name + _TOKENS_SUFFIX in files,
            "stems": track.stems if name in stem_dirs else {},
        }  # fmt: skip
        if any(getattr(track, key) != value for key, value in facts.items()):
            track = track.model_copy(update=facts)
        self._entries[name] = _Entry.of(track)

    @staticmethod
    def _read_track(path: Path) -> Track | None:
        try:
            text = _read_at_most(path, contract.MAX_JSON_BYTES + 1)
            return Track.model_validate_json(text) if len(text) <= contract.MAX_JSON_BYTES else None
        except (OSError, ValidationError):
            return None

    @staticmethod
    def _set_aside(path: Path) -> None:
        aside = path.with_name(path.name + ".broken")
        number = 2
        while os.path.lexists(aside):
            aside = path.with_name(f"{path.name}.broken{number}")
            number += 1
        log.warning("%s cannot be read as a track; it is kept as %s", path.name, aside.name)
        with contextlib.suppress(OSError):
            path.rename(aside)

    # ------------------------------------------------------------------------------------------------ asking
    def count(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> Track:
        """Raises NotFound."""
        with self._lock:
            return self._entry(name).track

    def audio_path(self, name: str) -> Path:
        """The track's audio file; a regular file inside the folder. Raises NotFound."""
        path = self._audio_dir / self.get(name).file
        if not _is_own_file(path):
            raise NotFound(f"the audio of track {name!r} is no longer on the disk", field="name")
        return path

    def stem_path(self, name: str, stem: str) -> Path:
        """One stem's WAV. Raises NotFound."""
        path = self._stems_dir / name / f"{stem}.wav"
        if stem not in contract.STEM_NAMES or stem not in self.get(name).stems:
            raise NotFound(f"track {name!r} has no stem {stem!r}", field="stem")
        if not _is_own_dir(path.parent) or not _is_own_file(path):
            raise NotFound(f"the stem {stem!r} of track {name!r} is no longer on the disk", field="stem")
        return path

    def tokens(self, name: str) -> npt.NDArray[np.int64] | None:
        """The model's tokens, int64 [K, T], or None when the track has none that can be read. Raises NotFound."""
        path = self._audio_dir / (self.get(name).name + _TOKENS_SUFFIX)
        if not _is_own_file(path):
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                codes: npt.NDArray[np.int64] = file["codes"].astype(np.int64)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("the tokens of %s cannot be read: %s", name, error)
            return None
        return codes if codes.ndim == 2 else None

    def peaks(self, name: str, bins: int, stem: str = "") -> audio.Samples:
        """The outline of a track's (or its stem's) waveform, float32 [bins, 2]; kept in memory.

        Raises:
            NotFound, UnreadableAudio.
        """
        path = self.stem_path(name, stem) if stem else self.audio_path(name)
        key = (str(path), path.stat().st_mtime_ns, bins)
        with self._lock:
            if key in self._peaks:
                self._peaks.move_to_end(key)
                return self._peaks[key]
        outline = audio.peaks(path, bins)
        with self._lock:
            self._peaks[key] = outline
            while len(self._peaks) > _PEAKS_KEPT:
                self._peaks.popitem(last=False)
        return outline

    def page(self, query: TrackQuery) -> tuple[list[Track], str | None, int]:
        """The tracks that fit a query, a page at a time.

        Returns:
            at most `query.limit` tracks; the cursor of the next page, None on the last; how many fit in all.
            A cursor is a place in the order: tracks that come or go never shift the rest.
        Raises:
            InvalidParameter: the cursor is not from this order.
        """
        after = _read_cursor(query.sort, query.cursor) if query.cursor else None
        fitting = rest = _fitting(self._ordered(query.sort), query)
        if after is not None:
            falling = query.sort in _FALLING
            rest = [(key, entry) for key, entry in fitting if (key < after if falling else key > after)]
        shown = rest[: query.limit]
        cursor = _write_cursor(query.sort, shown[-1][0]) if len(rest) > len(shown) else None
        return [entry.track for _, entry in shown], cursor, len(fitting)

    def _ordered(self, sort: str) -> list[tuple[_SortKey, _Entry]]:
        """Every entry in an order, kept until the next change; never changed once it is handed out."""
        with self._lock:
            order = self._orders.get(sort)
            if order is None:
                order = [(_sort_key(entry, sort), entry) for entry in self._entries.values()]
                order.sort(key=lambda pair: pair[0], reverse=sort in _FALLING)
                self._orders[sort] = order
            return order

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"there is no track {name[:MAX_NAME_BYTES]!r}", field="name")
        return entry

    def _json_path(self, name: str) -> Path:
        return self._audio_dir / f"{name}.json"

    # ------------------------------------------------------------------------------------------------ saving
    def reserve_name(self, artist: str, model: str, seed: int | None, when: datetime) -> str:
        """A name that is free and stays so for the caller, until `save` or `release_name`."""
        with self._lock:
            name = self._free_name(track_name(artist, model, seed, when))
            self._reserved.add(name.casefold())
        return name

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while not self._is_free(name):
            name = f"{wanted}_{number}"
            number += 1
        return name

    def release_name(self, name: str) -> None:
        """Give back a reserved name that was not used."""
        with self._lock:
            self._reserved.discard(name.casefold())

    def _is_free(self, name: str) -> bool:
        # Casefolded: macOS and Windows take "A" and "a" for one file.
        if name.casefold() in self._taken or name.casefold() in self._reserved:
            return False
        paths = [self._audio_dir / (name + suffix) for suffix in (*_AUDIO_SUFFIXES, ".json", _TOKENS_SUFFIX)]
        return not any(os.path.lexists(path) for path in (*paths, self._stems_dir / name))

    def save(self, draft: Track, write_audio: Callable[[Path], None], tokens: npt.NDArray[Any] | None = None) -> Track:
        """Put a track on disk: audio, tokens and JSON together or not at all.

        Args:
            draft: the track under a name from `reserve_name`; file, bytes and has_tokens are filled in here.
            write_audio: writes the audio to the temporary path that it is given.
            tokens: integers [K, T] below 32768, or None.
        Raises:
            DiskFull: nothing of the track is left.
            Whatever write_audio raises; nothing is left then either.
        """
        staged = self._tmp_dir / f"{secrets.token_hex(8)}.audio"
        staged_tokens = staged.with_suffix(".tokens")
        try:
            with _disk_errors():
                write_audio(staged)
                sync_file(staged)
                if tokens is not None:
                    _write_tokens(staged_tokens, tokens)
                with self._lock:
                    track = self._named(draft, staged.stat().st_size, has_tokens=tokens is not None)
                    self._commit_save(track, staged, staged_tokens)
                    self._put(track, added=True)
        finally:
            staged.unlink(missing_ok=True)
            staged_tokens.unlink(missing_ok=True)
            self.release_name(draft.name)
        self._notify()
        return track

    def _named(self, draft: Track, size: int, *, has_tokens: bool) -> Track:
        """The draft with its file's facts, under its reserved name unless a file of that name has come since."""
        self._reserved.discard(draft.name.casefold())
        name = self._free_name(draft.name)
        facts = {"name": name, "file": f"{name}.{draft.format}", "bytes": size, "has_tokens": has_tokens}
        return draft.model_copy(update=facts)

    def _commit_save(self, track: Track, staged: Path, staged_tokens: Path) -> None:
        name = track.name
        intent = self._tmp_dir / f"{name}.save"
        try:
            _write_synced(intent, _to_json(track))
            sync_folder(self._tmp_dir)
            staged.rename(self._audio_dir / track.file)
            if track.has_tokens:
                staged_tokens.rename(self._audio_dir / (name + _TOKENS_SUFFIX))
            sync_folder(self._audio_dir)
            # JSON last: a track exists once its JSON does.
            intent.rename(self._json_path(name))
            sync_folder(self._audio_dir)
        except BaseException:
            self._json_path(name).unlink(missing_ok=True)
            self._remove_files(name, track.format)
            intent.unlink(missing_ok=True)
            raise

    def patch(self, name: str, change: TrackPatch) -> Track:
        """Set favourite or locked. Raises NotFound, DiskFull."""
        update = change.model_dump(exclude_none=True)
        with self._lock, _disk_errors():
            before = self._entry(name).track
            track = before.model_copy(update=update)
            if track == before:
                return before
            intent = self._tmp_dir / f"{name}.patch"
            self._replace_json(track, intent)
        self._notify()
        return track

    def _replace_json(self, track: Track, intent: Path) -> None:
        try:
            _write_synced(intent, _to_json(track))
            intent.replace(self._json_path(track.name))
        except BaseException:
            intent.unlink(missing_ok=True)
            raise
        sync_folder(self._audio_dir)
        self._put(track, added=False)

    def add_stems(self, name: str, files: Mapping[str, Path], info: Mapping[str, Any]) -> Track:
        """Move finished stem files (stem name -> WAV) to a track; stems it had stay, or are replaced by new ones.

        Raises:
            NotFound: no such track.
            InvalidParameter: no such stem name.
            DiskFull: the track is as it was.
        """
        unknown = [stem for stem in files if stem not in contract.STEM_NAMES]
        if unknown:
            raise InvalidParameter(f"stems: {unknown[0]!r} is none of {', '.join(contract.STEM_NAMES)}", field="stems")
        with self._lock, _disk_errors():
            before = self._entry(name).track
            stems = {**before.stems, **{stem: f"{stem}.wav" for stem in files}}
            track = before.model_copy(update={"stems": stems, "stems_info": {**before.stems_info, **info}})
            intent = self._tmp_dir / f"{name}.stems"
            try:
                _write_synced(intent, _to_json(track))
                sync_folder(self._tmp_dir)
                self._move_stems(name, files)
                self._replace_json(track, intent)
            except BaseException:
                self._remove_unlisted_stems(name)
                intent.unlink(missing_ok=True)
                raise
        self._notify()
        return track

    def _move_stems(self, name: str, files: Mapping[str, Path]) -> None:
        folder = self._stems_dir / name
        if folder.is_symlink():
            raise Conflict(f"the stems folder of track {name!r} is a link; remove it", field="name")
        folder.mkdir(exist_ok=True)
        for stem, path in files.items():
            sync_file(path)
            shutil.move(path, folder / f"{stem}.wav")
        sync_folder(folder)
        sync_folder(self._stems_dir)

    # ---------------------------------------------------------------------------------------------- deleting
    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Track]:
        """Keep a track from being deleted while it is read (split, continued ...). Raises NotFound."""
        with self._lock:
            track = self._entry(name).track
            self._held[name] += 1
        try:
            yield track
        finally:
            with self._lock:
                self._held[name] -= 1

    def delete(self, name: str) -> None:
        """Remove a track with everything that belongs to it.

        Raises:
            NotFound: no such track.
            Conflict: it is locked, or in use.
        """
        with self._lock:
            track = self._entry(name).track
            if track.locked:
                raise Conflict(f"track {name!r} is locked; unlock it to delete it", field="name")
            if self._held[name]:
                raise Conflict(f"track {name!r} is being used by a job; try again when that is done", field="name")
            self._delete([name])
        self._notify()

    def delete_unlocked(self) -> tuple[int, int]:
        """Remove every track that is neither locked nor in use. Returns how many went and how many were spared."""
        with self._lock:
            names = [n for n, entry in self._entries.items() if not entry.track.locked and not self._held[n]]
            if names:
                self._delete(names)
            spared = len(self._entries)
        self._notify()
        return len(names), spared

    def _delete(self, names: list[str]) -> None:
        gone: list[Track] = []
        try:
            for name in names:
                # JSON first, and by the rename that makes it the intent: now the track is gone, whatever happens.
                with contextlib.suppress(FileNotFoundError):
                    self._json_path(name).replace(self._tmp_dir / f"{name}.delete")
                gone.append(self._entries.pop(name).track)
        finally:
            self._orders.clear()
            sync_folder(self._tmp_dir)
            sync_folder(self._audio_dir)
            if gone:
                self._changes.append(LibraryChange(removed=[track.name for track in gone]))
            for track in gone:
                self._finish_delete(track)

    def _finish_delete(self, track: Track) -> None:
        try:
            self._remove_files(track.name, track.format)
            (self._tmp_dir / f"{track.name}.delete").unlink(missing_ok=True)
        except OSError as error:
            # Windows refuses while the file is being played. The intent stays: the next start tries again.
            log.warning("a file of the deleted track %s could not be removed yet: %s", track.name, error)
        else:
            self._taken.discard(track.name.casefold())

    def _remove_files(self, name: str, audio_format: str) -> None:
        """Everything of a track but its JSON; a file of another format beside it is not the track's."""
        for suffix in ("." + audio_format, _TOKENS_SUFFIX):
            (self._audio_dir / (name + suffix)).unlink(missing_ok=True)
        _remove(self._stems_dir / name)

    # ---------------------------------------------------------------------------------------------- changing
    def _put(self, track: Track, *, added: bool) -> None:
        self._entries[track.name] = _Entry.of(track)
        self._orders.clear()
        self._taken.add(track.name.casefold())
        self._changes.append(LibraryChange(added=[track]) if added else LibraryChange(changed=[track]))

    def _notify(self) -> None:
        """Hand out the changes in the order they happened; the lock is free, so the listener may ask the library."""
        with self._notify_lock:
            while self._changes:
                change = self._changes.popleft()
                if self.on_change is not None:
                    self.on_change(change)


def _base(file: str) -> str:
    """The track name that a file would belong to."""
    for suffix in (_TOKENS_SUFFIX, ".json", *_AUDIO_SUFFIXES):
        if file.endswith(suffix):
            return file.removesuffix(suffix)
    return file


def _to_json(track: Track) -> bytes:
    return track.model_dump_json(indent=2).encode() + b"\n"
