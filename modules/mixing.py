"""What a person makes of a track's stems: the notes of one of them, and a mix of them that becomes a track."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from pathlib import Path

from modules import audio, midi
from modules.contract import Loudness, Mix, NotFound, StemNotes, Track, Upload
from modules.disk import write_atomic
from modules.library import NOTES_SUFFIX, Library
from modules.midi import Note

MAX_MEASURED_S = 20 * 60.0
"""Longer mixes are kept without their loudness: measuring holds the whole clip in memory."""


class Transcriber:
    """The notes of stems, each found once and kept beside its stem. One at a time: it takes every core there is."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._busy = threading.Lock()

    def notes(self, name: str, stem: str) -> StemNotes:
        """The notes of a stem, found now if they are not known.

        Raises:
            NotFound: there is no such track or stem.
            ModelMissing, ClipTooLong, DiskFull.
        """
        with self._library.hold(name):
            path = self._library.stem_path(name, stem)
            known = _read(path)
            if known is not None:
                return known
            with self._busy:
                known = _read(path)  # another request may have found them meanwhile
                return known if known is not None else _find(path)

    def midi(self, name: str, stem: str) -> bytes:
        """The notes as a MIDI file. Raises NotFound: no such stem, or its notes were not asked for yet."""
        known = _read(self._library.stem_path(name, stem))
        if known is None:
            raise NotFound(f"the notes of {stem!r} are not known yet: POST to this address finds them", field="stem")
        return midi.to_midi([Note(*note) for note in known.notes], f"{name} {stem}")


def _notes_path(stem: Path) -> Path:
    return stem.with_name(stem.stem + NOTES_SUFFIX)


def _find(stem: Path) -> StemNotes:
    seconds = audio.probe(stem).seconds
    found = midi.transcribe(stem)
    notes = [(note.start_s, note.end_s, note.pitch, note.velocity) for note in found]
    made = StemNotes(seconds=round(seconds, 4), notes=notes)
    write_atomic(_notes_path(stem), made.model_dump_json().encode())
    return made


def _read(stem: Path) -> StemNotes | None:
    """What was found earlier; None when it is not there, older than the stem, or not what we wrote."""
    path = _notes_path(stem)
    try:
        if path.is_symlink() or path.stat().st_mtime_ns < stem.stat().st_mtime_ns:
            return None
        return StemNotes.model_validate(json.loads(path.read_bytes()), strict=False)
    except (OSError, ValueError):
        return None


def mixed_track(
    library: Library, parent: Track, mix: Mix, upload: Upload, sound: Path, versions: dict[str, str]
) -> Track:
    """The draft of a mix of `parent`'s stems; `sound` is the clean file of what was rendered."""
    now = datetime.now(timezone.utc).astimezone()
    measured = upload.seconds <= MAX_MEASURED_S
    loudness = audio.loudness(audio.decode(sound)) if measured else Loudness(integrated_lufs=None, peak_dbfs=None)
    name = library.reserve_name(str(parent.asked.get("artist") or ""), f"{parent.model}-mix", None, now)
    return Track(
        name=name, file="", created_at=now.isoformat(timespec="seconds"), prompt=parent.prompt, model=parent.model,
        checkpoint_hash=parent.checkpoint_hash, asked={"kind": "mixdown", "track": parent.name},
        used={"mix": mix.model_dump(mode="json")}, seed=parent.seed, format="flac",
        sample_rate_hz=upload.sample_rate_hz, channels=upload.channels, duration_s=upload.seconds, bytes=0,
        parent=parent.name, post=["mixdown"], loudness=loudness, versions=versions,
    )  # fmt: skip
