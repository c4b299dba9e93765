"""What a generation starts from: the melody it follows, the clip it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from modules import audio
from modules.audio import Clip, Samples
from modules.contract import (
    ClipTooLong,
    ClipTooShort,
    ContinuationMode,
    EngineInfo,
    InvalidParameter,
    ModelInfo,
    Source,
    Track,
)
from modules.musicgen.engine import Codes, Engine

MAX_ORIGINAL_S = 900.0
"""Longest clip that is appended to or continued: it is in memory while the track is put together."""
MIN_CONTEXT_S = 0.5
"""Less than this gives a model nothing to go on from."""
MELODY_S = 30.0
"""What is heard of an audio prompt: as much as audiocraft's melody models hear, whatever the model's own window."""
LEAD_S = 1.0
"""Known frames that the codec decodes before the new ones, so that those begin with the right state."""
FADE_S = 0.02
JOIN_FADE_S = 0.05


class CodecStream(Protocol):
    """Frames in, sound out, piece by piece; the pieces joined are the whole."""

    def push(self, codes: Codes) -> Samples:
        """int64 [K, n] in, the samples float32 [C, m] that are now certain out."""

    def finish(self) -> Samples:
        """The rest, float32 [C, m]."""


class Codec(Protocol):
    """Tokens to sound and back."""

    def encode(self, clip: Clip) -> Codes:
        """float32 [C, T] at the model's rate and channels to int64 [K, frames]."""

    def decode(self, codes: Codes) -> Clip:
        """int64 [K, T] to sound."""

    def stream(self) -> CodecStream:
        """A fresh stream."""


class Diffusion(Protocol):
    """Multi-Band Diffusion."""

    @property
    def file_hash(self) -> str: ...

    def render(self, codes: Codes, seed: int, progress: Callable[[int, int], None]) -> Clip:
        """int64 [K, T] to sound; `progress` is told (steps done, steps in all) and may raise to end it."""


class LoadedModel(Protocol):
    """A model in memory, as a generation needs it."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def checkpoint_hash(self) -> str | None: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def engine_info(self) -> EngineInfo: ...
    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def frame_rate_hz(self) -> float: ...
    @property
    def channels(self) -> int: ...
    @property
    def codebooks(self) -> int: ...
    @property
    def max_window_s(self) -> float: ...
    @property
    def diffusion(self) -> Diffusion | None: ...


@dataclass(frozen=True)
class Sound:
    """A file that a request names: an upload or a track, with what is known about it."""

    path: Path
    source: Source
    sample_rate_hz: int
    track: Track | None = None
    codes: Codes | None = None
    """int64 [K, T] as the track's tokens file has them."""


@dataclass(frozen=True)
class Origin:
    """The clip that new music is put after.

    clip: up to the cut and a moment beyond it, for the fade. at_s: where the cut is.
    codes: the stored tokens up to the cut, when the loaded model can go on from them; they begin at codes_from_s.
    """

    mode: ContinuationMode
    clip: Clip
    at_s: float
    source: Source
    parent: str | None
    codes: Codes | None = None
    codes_from_s: float = 0.0

    @property
    def kept(self) -> Clip:
        """The clip up to the cut."""
        return Clip(self.clip.samples[:, : round(self.at_s * self.clip.sample_rate_hz)], self.clip.sample_rate_hz)


def read_start(path: Path, sample_rate_hz: int, until_s: float) -> Clip:
    """The first `until_s` seconds of a file, or all of a shorter one, decoding no more than that."""
    wanted, parts, have = round(until_s * sample_rate_hz), [], 0
    for block in audio.blocks(path):
        parts.append(block[:, : wanted - have])
        have += parts[-1].shape[1]
        if have >= wanted:
            break
    return audio.limit_peak(Clip(np.concatenate(parts, axis=1), sample_rate_hz), 0.0)


def melody(sound: Sound) -> Clip:
    """The part of an audio prompt that is heard."""
    return read_start(sound.path, sound.sample_rate_hz, MELODY_S)


def check_cut(at_s: float, mode: ContinuationMode) -> None:
    """Refuse a clip that is too long, up to the cut, to be kept, or too short for a model to go on from.

    Raises:
        ClipTooLong, ClipTooShort.
    """
    if at_s > MAX_ORIGINAL_S:
        raise ClipTooLong(
            f"the clip up to the cut is {at_s / 60:.1f} minutes long, at most {MAX_ORIGINAL_S / 60:.0f} can be kept:"
            " choose an earlier point with continuation.from",
            field="continuation.from",
        )
    if mode == "continue" and at_s < MIN_CONTEXT_S:
        raise ClipTooShort(
            f"the clip is {at_s:.2f} s long up to the cut; a model needs {MIN_CONTEXT_S} s to go on from",
            field="continuation",
        )


def origin(sound: Sound, mode: ContinuationMode, from_s: float | None, loaded: LoadedModel) -> Origin:
    """Read what a generation goes on from.

    Raises:
        InvalidParameter: `from` lies past the clip's end.
        ClipTooLong: more than MAX_ORIGINAL_S would have to be kept.
        ClipTooShort: there is too little for a model to go on from.
    """
    length_s = sound.source.seconds
    # The page shows hundredths; a cut named a little past the end means the end.
    if from_s is not None and from_s > length_s + 0.05:
        raise InvalidParameter(
            f"continuation.from: {from_s:g} s lies past the end of the clip, which is {length_s:.2f} s long",
            field="continuation.from",
        )
    at_s = length_s if from_s is None else min(from_s, length_s)
    check_cut(at_s, mode)
    codes, codes_from_s = (None, 0.0) if mode == "append" else _stored(sound, loaded)
    if codes is not None:
        frame = min(round((at_s - codes_from_s) * loaded.frame_rate_hz), codes.shape[1])
        if frame >= 1:
            # On the frame grid the tokens and the samples end together.
            at_s = min(codes_from_s + frame / loaded.frame_rate_hz, length_s)
        codes = codes[:, :frame] if frame >= 1 else None
    clip = read_start(sound.path, sound.sample_rate_hz, at_s + 2 * FADE_S)
    at_s = min(at_s, clip.seconds)
    return Origin(
        mode=mode,
        clip=clip,
        at_s=at_s,
        source=sound.source.model_copy(update={"seconds": round(at_s, 6), "mode": mode, "from_s": from_s}),
        parent=sound.track.name if sound.track else None,
        codes=codes,
        codes_from_s=codes_from_s,
    )


def _stored(sound: Sound, loaded: LoadedModel) -> tuple[Codes | None, float]:
    """The track's tokens, if they are the loaded model's own."""
    track, codes = sound.track, sound.codes
    if track is None or codes is None or codes.shape[0] != loaded.codebooks:
        return None, 0.0
    if (track.model, track.checkpoint_hash) != (loaded.info.id, loaded.checkpoint_hash):
        return None, 0.0
    return codes, float(track.used.get("tokens_from_s", 0.0))


def context(start: Origin, loaded: LoadedModel, duration_s: float, stride_s: float) -> Codes:
    """The end of the clip as tokens, int64 [K, T]: as much as the model's window holds beside what is new."""
    room_s = max(loaded.max_window_s - duration_s, loaded.max_window_s - stride_s)
    frames = max(1, int(min(room_s, start.at_s) * loaded.frame_rate_hz))
    if start.codes is not None and start.codes.shape[1] >= min(frames, round(MIN_CONTEXT_S * loaded.frame_rate_hz)):
        return start.codes[:, -frames:]
    return loaded.codec.encode(_tail(start, loaded, frames))


def _tail(start: Origin, loaded: LoadedModel, frames: int) -> Clip:
    """The clip's last whole frames before the cut, in the model's rate and channels."""
    samples = round(frames * loaded.sample_rate_hz / loaded.frame_rate_hz)
    kept = start.kept
    # A little more than is needed, so that the resampler's own beginning is cut off again.
    wanted = round((samples / loaded.sample_rate_hz + 0.1) * kept.sample_rate_hz)
    part = audio.to_channels(Clip(kept.samples[:, -wanted:], kept.sample_rate_hz), loaded.channels)
    part = audio.resample(part, loaded.sample_rate_hz)
    return Clip(np.ascontiguousarray(part.samples[:, -samples:]), loaded.sample_rate_hz)
