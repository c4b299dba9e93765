"""The notes of a stem, as a MIDI file: basic-pitch's network through ONNX Runtime, with reading and writing of our own.

The package itself is never imported (it looks for TensorFlow, and its note code needs half a dozen libraries); only
its weights, `nmp.onnx`, are used. The network is that of Bittner et al., "A Lightweight Instrument-Agnostic Model for
Polyphonic Note Transcription and Multipitch Estimation" (ICASSP 2022); notes are found as its section 2.2 says.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modules import audio
from modules.contract import ModelMissing

Samples: TypeAlias = npt.NDArray[np.float32]

RATE_HZ: Final = 22_050
HOP: Final = 256
"""Samples between two frames of the network."""
WINDOW: Final = 43_844
"""Samples the network hears at once: 172 frames."""
MARGIN: Final = 15
"""Frames at either end of a window that know too little of what is beyond."""
STEP: Final = WINDOW - 2 * MARGIN * HOP
BATCH: Final = 4
MAX_MIDI_S: Final = 20 * 60.0
"""Longer stems are refused: a minute takes some five seconds, and nobody waits longer for one answer."""
LOWEST_PITCH: Final = 21
"""The network's first bin is the piano's lowest key, A0."""

ONSET: Final = 0.5
FRAME: Final = 0.3
"""How sure the network must be that a note begins, and that it goes on."""
GAP_FRAMES: Final = 11
"""A note ends where it is unheard for so long (0.13 s)."""
SHORTEST_FRAMES: Final = 8
HARMONICS: Final = (12, 19, 24, 28, 31, 36)
"""Semitones from a tone to its overtones: a weaker note there, within the time of the stronger, is an overtone."""
GHOST: Final = 0.75
GHOST_SLACK_S: Final = 0.06
SILENCE: Final = 1e-4
"""A window with a lower peak (-80 dBFS) has no notes, and the network is not asked."""

TICKS: Final = 480
TEMPO_US: Final = 500_000
"""120 beats a minute: times are kept as they are, no tempo is guessed."""


@dataclass(frozen=True)
class Note:
    """pitch: MIDI number, 60 is middle C; velocity: 1 to 127."""

    start_s: float
    end_s: float
    pitch: int
    velocity: int


def transcribe(path: Path, check: Callable[[], None] = lambda: None) -> list[Note]:
    """The notes of an audio file, in order of their beginning.

    Args:
        check: called before each run of the network; what it raises ends the work.
    Raises:
        ModelMissing: basic-pitch's weights are not installed.
        UnreadableAudio, ClipTooLong: the file cannot be read, or is longer than MAX_MIDI_S.
    """
    session = _session()
    notes, onsets, times = [], [], []
    for batch, indices in _batches(_windows(path)):
        check()
        note, onset = _run(session, batch)
        notes.append(note.reshape(-1, note.shape[-1]))
        onsets.append(onset.reshape(-1, onset.shape[-1]))
        times.append((indices[:, None] * STEP + np.arange(note.shape[1]) * HOP).reshape(-1) / RATE_HZ)
    return find_notes(np.concatenate(notes), np.concatenate(onsets), np.concatenate(times))


def weights_path() -> Path:
    """Where basic-pitch keeps its ONNX weights; found without importing the package.

    Raises:
        ModelMissing: it is not installed.
    """
    spec = importlib.util.find_spec("basic_pitch")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    path = folder / "saved_models" / "icassp_2022" / "nmp.onnx" if folder else None
    if path is None or not path.is_file():
        raise ModelMissing(
            "basic-pitch is not installed: run the installer again to get notes from stems",
            details={"missing": ["basic-pitch"], "download_bytes": 0},
        )
    return path


def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(str(weights_path()), options, providers=["CPUExecutionProvider"])


# ------------------------------------------------------------------------------------------------ listening
def _windows(path: Path) -> Iterator[Samples]:
    """The file in mono at the network's rate, in windows float32 [WINDOW] that overlap by twice the margin."""
    mono = (block.mean(axis=0, keepdims=True, dtype=np.float32) for block in audio.blocks(path, max_s=MAX_MIDI_S))
    # The first kept frame of a window is its sample MARGIN * HOP: it is put where the window's step begins.
    held = np.zeros(MARGIN * HOP, dtype=np.float32)
    for block in audio.resample_blocks(mono, audio.probe(path, max_s=MAX_MIDI_S).sample_rate_hz, RATE_HZ):
        held = np.concatenate([held, block[0]])
        while len(held) >= WINDOW:
            yield held[:WINDOW]
            held = held[STEP:]
    if len(held) > MARGIN * HOP:
        yield np.pad(held, (0, WINDOW - len(held)))


def _batches(windows: Iterable[Samples]) -> Iterator[tuple[Samples, npt.NDArray[np.int64]]]:
    """Windows [n, WINDOW, 1] and their numbers, several at a time."""
    held: list[Samples] = []
    first = 0
    for window in windows:
        held.append(window)
        if len(held) == BATCH:
            yield np.stack(held)[..., None], np.arange(first, first + BATCH)
            first, held = first + BATCH, []
    if held:
        yield np.stack(held)[..., None], np.arange(first, first + len(held))


def _run(session: Any, windows: Samples) -> tuple[Samples, Samples]:
    """Probabilities that a note sounds and that one begins, each float32 [n, 142, 88], margins cut off."""
    frames = -(-WINDOW // HOP)
    note = np.zeros((len(windows), frames, 88), dtype=np.float32)
    onset = np.zeros_like(note)
    loud = [index for index, window in enumerate(windows) if np.abs(window).max() > SILENCE]
    if loud:
        names = ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"]
        note[loud], onset[loud] = session.run(names, {session.get_inputs()[0].name: windows[loud]})
    return note[:, MARGIN:-MARGIN], onset[:, MARGIN:-MARGIN]


# ------------------------------------------------------------------------------------------------ the notes
def find_notes(sounding: Samples, beginning: Samples, times_s: npt.NDArray[np.float64]) -> list[Note]:
    """Notes from the network's two pictures.

    A note begins where its onset peaks and goes on while it is heard; the latest onset takes its frames first, so a
    repeated note is two. What stays loud without an onset becomes a note too, grown from its loudest frame.

    Args:
        sounding, beginning: float32 [T, 88], probabilities.
        times_s: float64 [T], the time of each frame.
    """
    left = sounding.copy()
    spans = [
        span for start, key in _onset_peaks(sounding, beginning) if (span := _from_onset(left, start, key)) is not None
    ]
    spans += _without_onset(left)
    notes = sorted((_note(sounding, times_s, *span) for span in spans), key=lambda note: (note.start_s, note.pitch))
    return _without_ghosts(notes)


def _without_ghosts(notes: list[Note]) -> list[Note]:
    """Leave out overtones that were taken for notes. A true octave that is doubled softly goes too; that is rarer."""
    by_pitch: dict[int, list[Note]] = {}
    for note in notes:
        by_pitch.setdefault(note.pitch, []).append(note)
    return [
        note for note in notes
        if not any(_covers(root, note) for step in HARMONICS for root in by_pitch.get(note.pitch - step, ()))
    ]  # fmt: skip


def _covers(root: Note, note: Note) -> bool:
    return (
        note.velocity < GHOST * root.velocity
        and note.start_s > root.start_s - GHOST_SLACK_S
        and note.end_s < root.end_s + GHOST_SLACK_S
    )


def _onset_peaks(sounding: Samples, beginning: Samples) -> list[tuple[int, int]]:
    """(frame, key) where an onset peaks over the threshold, the latest first. Sudden rises count as onsets."""
    strength = np.maximum(beginning, _rises(sounding, float(beginning.max(initial=0.0))))
    peak = np.zeros(strength.shape, dtype=bool)
    peak[1:-1] = (strength[1:-1] > strength[:-2]) & (strength[1:-1] > strength[2:])
    frames, keys = np.nonzero(peak & (strength >= ONSET))
    return [(int(frame), int(key)) for frame, key in zip(frames[::-1], keys[::-1], strict=True)]


def _rises(sounding: Samples, ceiling: float) -> Samples:
    """How much each frame is louder than both frames before it, scaled to `ceiling`; 0 inside a note that sounds."""
    rise = np.zeros_like(sounding)
    if len(sounding) > 2:
        rise[2:] = np.minimum(sounding[2:] - sounding[1:-1], sounding[2:] - sounding[:-2])
        rise[2:][(sounding[1:-1] >= FRAME) | (sounding[:-2] >= FRAME)] = 0
    rise = np.maximum(rise, 0)
    most = float(rise.max(initial=0.0))
    return rise * np.float32(ceiling / most) if most > 0 else rise


def _heard_until(track: Samples) -> int:
    """Frames of a key from here on until it is unheard for GAP_FRAMES; float32 [T] -> count."""
    heard = np.flatnonzero(track >= FRAME)
    if len(heard) == 0:
        return 0
    # The first frame counts as heard: it is the onset.
    gaps = np.flatnonzero(np.diff(heard, prepend=0) > GAP_FRAMES)
    last = heard[gaps[0] - 1] if len(gaps) and gaps[0] > 0 else heard[-1] if not len(gaps) else -1
    return int(last) + 1


def _from_onset(left: Samples, start: int, key: int) -> tuple[int, int, int] | None:
    count = _heard_until(left[start:, key])
    if count < SHORTEST_FRAMES:
        return None
    _take(left, start, start + count, key)
    return start, start + count, key


def _without_onset(left: Samples) -> list[tuple[int, int, int]]:
    """Grow notes from the loudest frames that no onset has claimed."""
    spans = []
    frames, keys = np.nonzero(left > FRAME)
    for index in np.argsort(-left[frames, keys], kind="stable"):
        middle, key = int(frames[index]), int(keys[index])
        if left[middle, key] <= FRAME:
            continue  # another note has taken it meanwhile
        end = middle + max(_heard_until(left[middle:, key]), 1)
        start = middle + 1 - max(_heard_until(left[middle::-1, key]), 1)
        _take(left, start, end, key)
        if end - start >= SHORTEST_FRAMES:
            spans.append((start, end, key))
    return spans


def _take(left: Samples, start: int, end: int, key: int) -> None:
    """These frames are spoken for, and so are the neighbour keys, into which a note always leaks."""
    left[start:end, max(key - 1, 0) : key + 2] = 0


def _note(sounding: Samples, times_s: npt.NDArray[np.float64], start: int, end: int, key: int) -> Note:
    strength = float(sounding[start:end, key].mean())
    stop = times_s[end] if end < len(times_s) else times_s[-1] + HOP / RATE_HZ
    return Note(
        start_s=round(float(times_s[start]), 4), end_s=round(float(stop), 4), pitch=key + LOWEST_PITCH,
        velocity=int(np.clip(round(strength * 127), 1, 127)),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- the MIDI file
def to_midi(notes: Sequence[Note], title: str) -> bytes:
    """A standard MIDI file of format 0 with one track, at 120 beats a minute (MMA, Standard MIDI Files 1.0)."""
    body = _meta(0x03, title.encode("utf-8")[:120]) + _meta(0x51, TEMPO_US.to_bytes(3, "big"))
    now = 0
    for tick, message in _messages(notes):
        body += _variable(tick - now) + message
        now = tick
    body += _meta(0x2F, b"")
    return struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS) + struct.pack(">4sI", b"MTrk", len(body)) + body


def _messages(notes: Sequence[Note]) -> list[tuple[int, bytes]]:
    """(tick, message) in time order, an end before a beginning of the same moment."""
    found = []
    for note in notes:
        start = _tick(note.start_s)
        found.append((start, 1, bytes([0x90, note.pitch, note.velocity])))
        found.append((max(_tick(note.end_s), start + 1), 0, bytes([0x80, note.pitch, 0])))
    return [(tick, message) for tick, _, message in sorted(found)]


def _tick(seconds: float) -> int:
    return round(seconds * 1e6 / TEMPO_US * TICKS)


def _meta(kind: int, data: bytes) -> bytes:
    return b"\x00\xff" + bytes([kind]) + _variable(len(data)) + data


def _variable(value: int) -> bytes:
    """A variable-length quantity: seven bits a byte, the highest bit on all but the last."""
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(0x80 | (value & 0x7F))
    return bytes(reversed(found))
