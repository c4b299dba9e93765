"""Sound as numbers and as files: decode, encode, resample, measure, join. No ffmpeg binary, no torch.

Everywhere a signal is float32 [C, T] (channels, frames) in [-1, 1]. A file is never believed: what it says about
its own length is a claim, so reading goes in bounded blocks, counts what really comes out and stops at a limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from modules import contract
from modules.contract import AudioFormat, ClipTooLong, ClipTooShort, Loudness, UnreadableAudio

Samples = npt.NDArray[np.float32]
"""float32 [C, T]; inside the readers and writers also [T, C], which the libraries use."""

BLOCK_FRAMES: Final = 65_536
"""Frames read or written at a time: libsndfile's Vorbis writer crashes on millions at once."""
MAX_DECODED_SAMPLES: Final = 4_000_000_000
"""Frames times channels of one clip: three hours of 48 kHz in seven channels, or of 176.4 kHz in stereo."""
MIN_LOUDNESS_S: Final = 0.4
"""One gating block of BS.1770: shorter clips have no integrated loudness."""
_MAX_WAV_BYTES: Final = 2**32 - 2**20
_MP3_RATES_HZ: Final = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_MP3_BEST_VBR: Final = 0.0
"""libsndfile's compression level 0 is LAME's -V 0."""
_DEFAULT_SUBTYPE: Final[dict[str, str]] = {"wav": "PCM_24", "flac": "PCM_24", "mp3": "MPEG_LAYER_III"}
# libsndfile also reads instruments, matrices and headerless data: unlikely uploads, little-used decoders.
_TRUSTED_CONTAINERS: Final = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"})
# Demuxers that hold their sound themselves. Play lists (hls, concat, dash) would open other files or addresses.
_AV_CONTAINERS: Final = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "ogg,oma,spdif,tak,tta,w64,wav,wv"
)


@dataclass(frozen=True)
class Clip:
    """A piece of sound.

    samples: float32 [C, T] in [-1, 1].
    """

    samples: Samples
    sample_rate_hz: int

    @property
    def channels(self) -> int:
        return int(self.samples.shape[0])

    @property
    def frames(self) -> int:
        return int(self.samples.shape[1])

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate_hz


@dataclass(frozen=True)
class Probe:
    """What a file really holds, found by decoding it to the end."""

    seconds: float
    sample_rate_hz: int
    channels: int
    frames: int
    peak: float
    """Largest magnitude, linear; above 1 in some float and lossy files."""
    bits: int = 24
    """16 when the file keeps no more than that, else 24: what a lossless copy of it needs."""


# ------------------------------------------------------------------------------------------------ reading
@dataclass(frozen=True)
class _Source:
    """An opened file: what it claims, and its blocks as float32 [T, C], T at most a few BLOCK_FRAMES."""

    sample_rate_hz: int
    channels: int
    promised_frames: int | None
    """Frames a complete file must have; None where the format does not promise."""
    bits: int
    blocks: Iterator[Samples]


def probe(path: Path, *, max_s: float = contract.MAX_CLIP_S) -> Probe:
    """Decode a file to its end in bounded memory and say what it holds.

    Raises:
        UnreadableAudio: it is no audio, is damaged or empty, holds NaN or infinity, or has too many channels.
        ClipTooLong: it holds more than `max_s` seconds.
    """
    frames, peak = 0, 0.0
    with _open(path) as source:
        for block in _checked(source, max_s):
            frames += len(block)
            peak = max(peak, float(np.abs(block).max()))
        return Probe(
            seconds=frames / source.sample_rate_hz, sample_rate_hz=source.sample_rate_hz, channels=source.channels,
            frames=frames, peak=peak, bits=source.bits,
        )  # fmt: skip


def blocks(path: Path, *, max_s: float = contract.MAX_CLIP_S) -> Iterator[Samples]:
    """The file's samples piece by piece, float32 [C, n], for clips that should not be in memory at once.

    Unlike `decode`, values above full scale come as they are.

    Raises:
        UnreadableAudio, ClipTooLong: as `probe`, when the bad place is reached.
    """
    with _open(path) as source:
        for block in _checked(source, max_s):
            yield np.ascontiguousarray(block.T)


def decode(
    path: Path, *, max_s: float = contract.MAX_CLIP_S, mono: bool = False, sample_rate_hz: int | None = None
) -> Clip:
    """Read a whole file; a signal above full scale is turned down to it.

    Args:
        max_s: refuse more than this many seconds.
        mono: mix to one channel, block by block.
        sample_rate_hz: resample to this rate.
    Raises:
        UnreadableAudio, ClipTooLong: as `probe`.
    """
    with _open(path) as source:
        checked = _checked(source, max_s)
        parts = [block.mean(axis=1, keepdims=True, dtype=np.float32) if mono else block for block in checked]
        rate = source.sample_rate_hz
    clip = Clip(np.ascontiguousarray(np.concatenate(parts).T), rate)
    if sample_rate_hz is not None:
        clip = resample(clip, sample_rate_hz)
    return limit_peak(clip, 0.0)


def _checked(source: _Source, max_s: float) -> Iterator[Samples]:
    """Pass blocks through, stopping at the limits and at numbers that are none."""
    frames = 0
    most = min(int(max_s * source.sample_rate_hz), MAX_DECODED_SAMPLES // source.channels)
    for block in source.blocks:
        frames += len(block)
        if frames > most:
            raise ClipTooLong(
                f"the clip is longer than {_minutes(most / source.sample_rate_hz)}, the most that is accepted here"
            )
        if not np.isfinite(block).all():
            at = (frames - len(block)) / source.sample_rate_hz
            raise UnreadableAudio(f"the file holds values that are not numbers (NaN or infinity) near {at:.1f} s")
        if len(block):
            yield block
    if frames == 0:
        raise UnreadableAudio("the file holds no sound: it has no samples")
    if source.promised_frames is not None and frames < source.promised_frames:
        raise UnreadableAudio(
            f"the file is cut off: it holds {frames / source.sample_rate_hz:.1f} s "
            f"of the {source.promised_frames / source.sample_rate_hz:.1f} s it says it has"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.4g} minutes" if seconds >= 60 else f"{seconds:.4g} s"


def require_splittable(channels: int, field: str | None = None) -> None:
    """Raises UnreadableAudio when sound of so many channels cannot be split into stems."""
    if channels > 2:
        raise UnreadableAudio(f"the file has {channels} channels; mono and stereo can be split", field=field)


def _check_shape(sample_rate_hz: int, channels: int) -> None:
    if not 1 <= channels <= contract.MAX_CHANNELS:
        raise UnreadableAudio(f"the file has {channels} channels; 1 to {contract.MAX_CHANNELS} can be read")
    low, high = contract.MIN_SAMPLE_RATE_HZ, contract.MAX_SAMPLE_RATE_HZ
    if not low <= sample_rate_hz <= high:
        raise UnreadableAudio(f"the file's sample rate is {sample_rate_hz} Hz; {low} to {high} Hz can be read")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Source]:
    """Open with libsndfile, or with FFmpeg's libraries where it does not know the format."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadableAudio(f"the file cannot be opened: {error.strerror}") from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise UnreadableAudio("the file is empty")
        sound = _try_soundfile(file)
        if sound is not None:
            with sound:
                yield _soundfile_source(sound)
        else:
            file.seek(0)
            with _open_av(file) as source:
                yield source


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """soundfile seeks after each block to where the reading already is, which a FLAC of unknown length refuses."""

    def seekable(self) -> bool:
        return False


def _try_soundfile(file: IO[bytes]) -> Any | None:
    try:
        # By descriptor: what the file is called must not matter.
        sound = _Forward(file.fileno(), closefd=False)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        return None
    if sound.format in _TRUSTED_CONTAINERS:
        return sound
    sound.close()
    return None


def _soundfile_source(sound: Any) -> _Source:
    _check_shape(sound.samplerate, sound.channels)
    # 2^63-1 is libsndfile's word for "the header does not say". Lossy formats only estimate.
    promises = sound.format == "FLAC" and 0 < sound.frames < 2**62
    return _Source(
        sample_rate_hz=sound.samplerate, channels=sound.channels,
        promised_frames=sound.frames if promises else None,
        bits=16 if sound.subtype in ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW") else 24,
        blocks=_soundfile_blocks(sound),
    )  # fmt: skip


def _soundfile_blocks(sound: Any) -> Iterator[Samples]:
    frames = 0
    while True:
        # A fresh buffer a block: the caller may keep it.
        buffer = np.empty((BLOCK_FRAMES, sound.channels), dtype=np.float32)
        try:
            read = sound.buffer_read_into(buffer, dtype="float32")
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise UnreadableAudio(
                f"the file is damaged: decoding fails at {frames / sound.samplerate:.1f} s"
            ) from error
        if read <= 0:
            return
        frames += read
        yield buffer[:read]


@contextlib.contextmanager
def _open_av(file: IO[bytes]) -> Iterator[_Source]:
    import av

    try:
        # The file object and the two lists keep FFmpeg from opening anything else on the file's word.
        container = av.open(
            file, mode="r", metadata_errors="ignore",
            options={"format_whitelist": _AV_CONTAINERS, "protocol_whitelist": "none"},
        )  # fmt: skip
    except (av.FFmpegError, ValueError, OSError):
        raise UnreadableAudio("the file is not audio in a format that can be read here") from None
    with container:
        if not container.streams.audio:
            raise UnreadableAudio("the file has no audio track")
        stream = container.streams.audio[0]
        context = stream.codec_context
        if context is None or not context.sample_rate:
            raise UnreadableAudio("the file's audio track is in a codec that cannot be read here")
        context.thread_count = 1
        _check_shape(context.sample_rate, context.channels)
        yield _Source(
            sample_rate_hz=context.sample_rate, channels=context.channels, promised_frames=None, bits=24,
            blocks=_av_blocks(container, stream),
        )  # fmt: skip


def _av_blocks(container: Any, stream: Any) -> Iterator[Samples]:
    import av

    context = stream.codec_context
    rate, channels, layout = context.sample_rate, context.channels, context.layout
    frames = 0
    try:
        # A damaged stream may change its shape midway: everything is brought to what it began with.
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        for frame in container.decode(stream):
            for same in resampler.resample(frame):
                block = same.to_ndarray()
                if block.shape[0] != channels:
                    raise UnreadableAudio("the file's audio changes its channels midway")
                frames += block.shape[1]
                yield np.ascontiguousarray(block.T, dtype=np.float32)
    except (av.FFmpegError, ValueError, OSError) as error:
        raise UnreadableAudio(f"the file is damaged: decoding fails at {frames / rate:.1f} s") from error


# ------------------------------------------------------------------------------------------------ writing
class _HonestFile:
    """A file for libsndfile that remembers why a write failed; libsndfile itself only says that one did."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        # A disk that is nearly full takes a part without an error; the error comes with the rest.
        written = 0
        try:
            while written < len(data):
                written += self._file.write(memoryview(data)[written:])
        except OSError as error:
            self.error = error
        return written

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            self.error = error
            return 0

    def tell(self) -> int:
        return self._file.tell()


def encode(
    clip: Clip, path: Path, audio_format: AudioFormat, *, sample_rate_hz: int | None = None,
    subtype: str | None = None, tags: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a clip. The caller gives a temporary path: what is there is overwritten, and may be half a file on error.

    WAV and FLAC hold 24-bit PCM unless `subtype` says otherwise ("PCM_16" is dithered, WAV also takes "FLOAT");
    MP3 is LAME's best variable bit rate, mixed to stereo and brought to a rate that MP3 has where needed.

    Args:
        sample_rate_hz: resample to this rate; None keeps the clip's.
        tags: title, artist, comment, software; empty ones are left out.
    Raises:
        OSError: the disk refused (ENOSPC when it is full).
        ClipTooLong: more than a WAV file can hold (4 GB).
    """
    rate = sample_rate_hz or clip.sample_rate_hz
    if audio_format == "mp3":
        clip = to_channels(clip, min(clip.channels, 2))
        rate = next((r for r in _MP3_RATES_HZ if r >= rate), _MP3_RATES_HZ[-1])
    elif audio_format == "flac":
        rate = _flac_rate(rate)
    clip = limit_peak(resample(clip, rate), 0.0)
    if audio_format == "wav" and clip.samples.size * 4 > _MAX_WAV_BYTES:
        raise ClipTooLong("the clip does not fit a WAV file (4 GB); choose FLAC or a lower sample rate")
    tags = {key: value for key, value in (tags or {}).items() if value}
    subtype = subtype or _DEFAULT_SUBTYPE[audio_format]
    with _writing(path, audio_format, subtype, clip.sample_rate_hz, clip.channels) as sound:
        for key, text in _native_tags(audio_format, tags).items():
            setattr(sound, key, text)
        for block in _quantised(_cut(clip), subtype):
            sound.write(block)
    if tags and audio_format != "flac":
        _write_id3(path, audio_format, tags)


def rewrite(source: Path, target: Path, held: Probe) -> Probe:
    """Copy any readable file to FLAC in bounded memory, turned down to full scale where it is above.

    Args:
        held: what `probe` found in the source.
    Returns:
        what the copy holds; its rate differs by less than 0.01 % where FLAC cannot have the source's.
    Raises:
        OSError, UnreadableAudio, ClipTooLong: as `encode` and `probe`.
    """
    gain = np.float32(1.0 / max(held.peak, 1.0))
    rate, frames = _flac_rate(held.sample_rate_hz), 0
    pieces = resample_blocks((block * gain for block in blocks(source)), held.sample_rate_hz, rate)
    with _writing(target, "flac", f"PCM_{held.bits}", rate, held.channels) as sound:
        for block in _quantised(pieces, f"PCM_{held.bits}"):
            sound.write(block)
            frames += len(block)
    return replace(
        held, seconds=frames / rate, sample_rate_hz=rate, frames=frames, peak=min(held.peak, 1.0)
    )  # fmt: skip


def _flac_rate(sample_rate_hz: int) -> int:
    """Above 65,535 Hz a FLAC header holds tens of hertz."""
    return sample_rate_hz if sample_rate_hz <= 65_535 else round(sample_rate_hz / 10) * 10


@contextlib.contextmanager
def _writing(
    path: Path, audio_format: AudioFormat, subtype: str, sample_rate_hz: int, channels: int
) -> Iterator[Any]:  # fmt: skip
    """A soundfile to write to, whose failures come out as the OSError that caused them."""
    quality: dict[str, Any] = {}
    if audio_format == "mp3":
        quality = {"compression_level": _MP3_BEST_VBR, "bitrate_mode": "VARIABLE"}
    with path.open("w+b", buffering=0) as file:
        honest = _HonestFile(file)
        try:
            with soundfile.SoundFile(
                honest, "w", sample_rate_hz, channels, format=audio_format.upper(), subtype=subtype, **quality
            ) as sound:
                yield sound
        except (soundfile.LibsndfileError, RuntimeError, AssertionError):
            if honest.error is None:
                raise
        if honest.error is not None:
            raise honest.error


def _cut(clip: Clip) -> Iterator[Samples]:
    for start in range(0, clip.frames, BLOCK_FRAMES):
        yield clip.samples[:, start : start + BLOCK_FRAMES]


def _quantised(pieces: Iterable[Samples], subtype: str) -> Iterator[npt.NDArray[Any]]:
    """Pieces [C, T] as blocks [T, C] of the file's own integers, so that samples on their grid come back exactly."""
    noise = np.random.default_rng(0)  # fixed: the same clip makes the same file
    for piece in pieces:
        block = piece.T
        if subtype == "PCM_24":
            # libsndfile keeps the upper 24 of 32 bits.
            whole = np.clip(np.rint(block.astype(np.float64) * 2**23), -(2**23), 2**23 - 1)
            yield whole.astype(np.int32) << 8
        elif subtype == "PCM_16":
            yield _to_int16(block + _dither(noise, block))
        else:
            yield np.ascontiguousarray(block)


def _dither(noise: np.random.Generator, block: Samples) -> Samples:
    """TPDF dither of one 16-bit step; none where the block already lies on the 16-bit grid, silence included."""
    steps = block * np.float32(2**15)
    if np.array_equal(steps, np.rint(steps)):
        return np.zeros_like(block)
    shape = block.shape
    spread: Samples = noise.random(shape, dtype=np.float32) - noise.random(shape, dtype=np.float32)
    spread /= np.float32(2**15)
    return spread


def _to_int16(block: Samples) -> npt.NDArray[np.int16]:
    whole: npt.NDArray[np.int16] = np.clip(np.rint(block * np.float32(2**15)), -(2**15), 2**15 - 1).astype("<i2")
    return whole


def wav_header(sample_rate_hz: int, channels: int, frames: int | None) -> bytes:
    """The 44 bytes before 16-bit PCM. frames None: the sizes are 0xFFFFFFFF, for a stream of unknown length."""
    data_bytes = 0xFFFFFFFF if frames is None else frames * channels * 2
    riff_bytes = 0xFFFFFFFF if frames is None else data_bytes + 36
    return struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", riff_bytes, b"WAVEfmt ", 16, 1, channels, sample_rate_hz,
        sample_rate_hz * channels * 2, channels * 2, 16, b"data", data_bytes,
    )  # fmt: skip


def to_pcm16(samples: Samples) -> bytes:
    """float32 [C, T] as interleaved little-endian 16-bit PCM, clipped; for the live stream, so without dither."""
    return _to_int16(samples.T).tobytes()


# --------------------------------------------------------------------------------------------------- tags
_ID3_FRAMES: Final = {"title": "TIT2", "artist": "TPE1", "comment": "COMM", "software": "TSSE"}
_INFO_BYTES: Final = 1000
"""A RIFF INFO list above 2 kB is lost on libsndfile's readers, so WAV has it cut, and the whole text as ID3."""


def _native_tags(audio_format: AudioFormat, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that libsndfile writes: all of FLAC's, a short form for WAV players that know no ID3."""
    if audio_format == "flac":
        return dict(tags)
    if audio_format == "mp3":
        return {}
    share = _INFO_BYTES // max(len(tags), 1)
    return {key: text.encode()[:share].decode(errors="ignore") for key, text in tags.items()}


def _write_id3(path: Path, audio_format: AudioFormat, tags: Mapping[str, str]) -> None:
    from mutagen import MutagenError, id3, wave

    frames = [
        getattr(id3, _ID3_FRAMES[key])(encoding=id3.Encoding.UTF8, text=text, lang="eng", desc="")
        for key, text in tags.items()
    ]
    try:
        if audio_format == "wav":
            sound: Any = wave.WAVE(path)
            sound.add_tags()
            for frame in frames:
                sound.tags.add(frame)
            sound.save()
        else:
            header = id3.ID3()
            for frame in frames:
                header.add(frame)
            header.save(path)
    except MutagenError as error:
        # mutagen wraps the OSError; callers tell a full disk by its number.
        if error.args and isinstance(error.args[0], OSError):
            raise error.args[0] from error
        raise


def read_tags(path: Path) -> dict[str, str]:
    """title, artist, comment and software of a file that `encode` wrote; only those it has."""
    from mutagen import id3, wave

    with path.open("rb") as file:
        magic = file.read(4)
    found: dict[str, str] = {}
    if magic == b"fLaC":
        with soundfile.SoundFile(str(path)) as sound:
            found = {key: str(getattr(sound, key)) for key in _ID3_FRAMES}
    elif magic == b"RIFF" or magic.startswith(b"ID3"):
        header = wave.WAVE(path).tags if magic == b"RIFF" else id3.ID3(path)
        found = {key: _id3_text(header, frame) for key, frame in _ID3_FRAMES.items()}
    return {key: text for key, text in found.items() if text}


def _id3_text(header: Any, frame: str) -> str:
    return "".join(str(one) for one in header.getall(frame)) if header is not None else ""


# ----------------------------------------------------------------------------------------------- changing
def resample(clip: Clip, sample_rate_hz: int) -> Clip:
    """The clip at another rate (soxr, very high quality); itself when the rate is already right."""
    if sample_rate_hz == clip.sample_rate_hz:
        return clip
    changed = soxr.resample(clip.samples.T, clip.sample_rate_hz, sample_rate_hz, quality="VHQ")
    return Clip(np.ascontiguousarray(changed.T, dtype=np.float32), sample_rate_hz)


def resample_blocks(parts: Iterator[Samples], from_hz: int, to_hz: int) -> Iterator[Samples]:
    """Resample a stream of blocks float32 [C, n] in bounded memory, the result aligned to its first sample."""
    if from_hz == to_hz:
        yield from parts
        return
    stream: Any = None
    channels = 0
    for part in parts:
        if stream is None:
            channels = part.shape[0]
            stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
        yield np.ascontiguousarray(stream.resample_chunk(np.ascontiguousarray(part.T)).T)
    if stream is not None:
        rest = stream.resample_chunk(np.zeros((0, channels), dtype=np.float32), last=True)
        yield np.ascontiguousarray(rest.T)


def to_channels(clip: Clip, channels: int) -> Clip:
    """The clip in `channels` channels: down by averaging, up by repeating the mix of what there is."""
    if channels == clip.channels:
        return clip
    if channels == 2 and clip.channels > 2:
        # Odd channels left, even ones right: for 4.0 and 5.1 this keeps each side on its side.
        samples = np.stack([clip.samples[0::2].mean(axis=0), clip.samples[1::2].mean(axis=0)])
    else:
        samples = np.repeat(clip.samples.mean(axis=0, keepdims=True), channels, axis=0)
    return Clip(np.ascontiguousarray(samples, dtype=np.float32), clip.sample_rate_hz)


def limit_peak(clip: Clip, dbfs: float = -1.0) -> Clip:
    """Turn the whole clip down so that its sample peak is at most `dbfs`; a quieter clip stays as it is."""
    ceiling = 10.0 ** (dbfs / 20.0)
    peak = _peak(clip)
    if peak <= ceiling:
        return clip
    samples = clip.samples * np.float32(ceiling / peak)
    return Clip(np.clip(samples, -np.float32(ceiling), np.float32(ceiling)), clip.sample_rate_hz)


def match_loudness(clip: Clip, lufs: float) -> Clip:
    """Turn the clip to an integrated loudness, never above a peak of -1 dBFS.

    A clip without a loudness (silent, or under 0.4 s) stays as it is.
    """
    measured = loudness(clip).integrated_lufs
    if measured is None:
        return clip
    gain = np.float32(10.0 ** ((lufs - measured) / 20.0))
    return limit_peak(Clip(clip.samples * gain, clip.sample_rate_hz))


def join(first: Clip, second: Clip, fade_s: float) -> Clip:
    """Join two clips with an equal-power crossfade.

    Args:
        first, second: the same rate and channels.
        fade_s: overlap in seconds; 0 butts them together.
    Returns:
        float32 [C, T1 + T2 - fade].
    Raises:
        ClipTooShort: a clip is shorter than the fade.
    """
    _check_alike(first, second)
    fade = _fade_frames(fade_s, first, second)
    if fade == 0:
        return Clip(np.concatenate([first.samples, second.samples], axis=1), first.sample_rate_hz)
    overlap = _crossfade(first.samples[:, -fade:], second.samples[:, :fade])
    samples = np.concatenate([first.samples[:, :-fade], overlap, second.samples[:, fade:]], axis=1)
    return Clip(samples, first.sample_rate_hz)


def splice(original: Clip, continued: Clip, at_s: float, fade_s: float = 0.02) -> Clip:
    """The original's own samples up to `at_s`, untouched, then the continuation.

    Args:
        continued: the new part alone; its first sample lies at `at_s`.
        fade_s: after the seam, what the original goes on with fades into the continuation; where the original
            ends at the seam, the step between the two is bent flat over this time instead.
    Returns:
        float32 [C, at + T2].
    Raises:
        ClipTooShort: the original ends before `at_s`.
    """
    _check_alike(original, continued)
    at = round(at_s * original.sample_rate_hz)
    if not 0 < at <= original.frames:
        raise ClipTooShort(f"the clip is {original.seconds:.2f} s long; it cannot be continued from {at_s:.2f} s")
    head, after = original.samples[:, :at], original.samples[:, at:]
    new = continued.samples.copy()
    fade = min(round(fade_s * original.sample_rate_hz), new.shape[1])
    if 0 < fade <= after.shape[1]:
        rise = np.linspace(0.0, 1.0, fade, dtype=np.float32)
        # Both go on from the same sound, so they add in phase: an equal-gain fade.
        new[:, :fade] = after[:, :fade] * (1 - rise) + new[:, :fade] * rise
    elif fade > 0:
        step = head[:, -1:] - new[:, :1]
        new[:, :fade] = np.clip(new[:, :fade] + step * np.linspace(1.0, 0.0, fade, dtype=np.float32), -1.0, 1.0)
    return Clip(np.concatenate([head, new], axis=1), original.sample_rate_hz)


def _check_alike(first: Clip, second: Clip) -> None:
    if (first.sample_rate_hz, first.channels) != (second.sample_rate_hz, second.channels):
        raise ValueError("clips to be joined must have one sample rate and one number of channels")


def _fade_frames(fade_s: float, first: Clip, second: Clip) -> int:
    fade = round(fade_s * first.sample_rate_hz)
    shorter = min(first, second, key=lambda clip: clip.frames)
    if shorter.frames < fade:
        raise ClipTooShort(f"a clip is {shorter.seconds:.2f} s long, shorter than the crossfade of {fade_s:g} s")
    return fade


def _crossfade(leaving: Samples, coming: Samples) -> Samples:
    """Equal power: the squares of the two gains add to one."""
    angle = (np.arange(leaving.shape[1], dtype=np.float32) + 0.5) * np.float32(math.pi / 2 / leaving.shape[1])
    mixed: Samples = np.clip(leaving * np.cos(angle) + coming * np.sin(angle), -1.0, 1.0).astype(np.float32)
    return mixed


# ---------------------------------------------------------------------------------------------- measuring
def loudness(clip: Clip) -> Loudness:
    """Integrated loudness (ITU-R BS.1770-4) and sample peak, in hundredths of a decibel.

    integrated_lufs is None for silence and under 0.4 s, peak_dbfs for digital silence.
    """
    peak = _peak(clip)
    peak_dbfs = round(20.0 * math.log10(peak), 2) if peak > 0 else None
    return Loudness(integrated_lufs=_integrated_lufs(clip) if peak > 0 else None, peak_dbfs=peak_dbfs)


def _integrated_lufs(clip: Clip) -> float | None:
    if clip.seconds < MIN_LOUDNESS_S:
        return None
    import pyloudnorm  # 0.8 s of scipy: not before it is needed

    if clip.channels > 2:
        clip = to_channels(clip, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = float(pyloudnorm.Meter(clip.sample_rate_hz).integrated_loudness(clip.samples.T))
    return round(measured, 2) if math.isfinite(measured) else None


def _peak(clip: Clip) -> float:
    if clip.samples.size == 0:
        return 0.0
    return max(float(clip.samples.max()), -float(clip.samples.min()))


def peaks(source: Path | Clip, bins: int) -> Samples:
    """The waveform's outline for drawing.

    Args:
        bins: columns wanted, at least 1.
    Returns:
        float32 [bins, 2]: least and greatest value of all channels in each of `bins` equal stretches.
    Raises:
        UnreadableAudio, ClipTooLong: as `probe`.
    """
    if bins < 1:
        raise ValueError("bins must be at least 1")
    if isinstance(source, Clip):
        frames, parts = source.frames, iter([source.samples])
    else:
        frames, parts = probe(source).frames, blocks(source)
    outline = np.zeros((bins, 2), dtype=np.float32)
    if frames == 0:
        return outline
    filled = np.zeros(bins, dtype=bool)
    start = 0
    for part in parts:
        _add_peaks(outline, filled, part, start, frames)
        start += part.shape[1]
    # More bins than frames: an empty bin shows what the one before it shows.
    last = np.maximum.accumulate(np.where(filled, np.arange(bins), 0))
    drawn: Samples = outline[last]
    return drawn


def _add_peaks(outline: Samples, filled: npt.NDArray[np.bool_], part: Samples, start: int, frames: int) -> None:
    """Fold one block [C, n] that begins at frame `start` of `frames` into the outline."""
    bins = len(outline)
    which = np.arange(start, start + part.shape[1], dtype=np.int64) * bins // frames
    edges = np.concatenate([[0], np.flatnonzero(np.diff(which)) + 1])
    touched = which[edges]
    least = np.minimum.reduceat(part.min(axis=0), edges)
    greatest = np.maximum.reduceat(part.max(axis=0), edges)
    known = filled[touched]
    outline[touched, 0] = np.where(known, np.minimum(outline[touched, 0], least), least)
    outline[touched, 1] = np.where(known, np.maximum(outline[touched, 1], greatest), greatest)
    filled[touched] = True
