"""A track into its stems with Demucs: which separators there are, and a split in bounded memory. Imports demucs alone.

Demucs' own `apply_model` holds the whole song and every stem of it; here the song runs through in segments that
overlap, read, separated, joined and written piece by piece, so an hour needs no more memory than a minute. The
segments and their weights are apply_model's, without its random shift: the same file gives the same stems.

A signal is float32 [C, T]; stems are [S, C, T], S in the order of the model's `sources`.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr
import yaml

from modules import audio, contract, hub
from modules.contract import (
    DeviceLost,
    DiskFull,
    InvalidParameter,
    ModelBroken,
    ModelMissing,
    OutOfMemory,
    SeparatorInfo,
    UnreadableAudio,
)  # fmt: skip
from modules.settings import Settings

log = logging.getLogger(__name__)

Samples: TypeAlias = npt.NDArray[np.float32]
Progress: TypeAlias = Callable[[contract.JobPhase, float, float, float | None], None]
"""(phase, done, total, units a second); may raise Cancelled."""
Check: TypeAlias = Callable[[], None]
"""Raises Cancelled when the job was cancelled; called many times within a segment."""

OVERLAP: Final = 0.25
"""Share of a segment that it has in common with the next."""
MAX_SPLIT_S: Final = 2 * 3600.0
"""Two hours: beyond, four float stems of a common track pass the 4 GB a WAV file can say, and tens of GB of disk."""
MAX_WAV_BYTES: Final = 2**32 - 4096
SILENCE: Final = 1e-6
"""Linear peak (-120 dBFS) under which there is nothing to split."""
SPARE_BYTES: Final = 64 << 20
HALF_PRECISION_DEVICES: Final = ("cuda",)
_MODEL_CLASSES: Final = frozenset({"demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs"})
# A file that names any other class is refused: demucs' loader would import and call whatever it says.


# --------------------------------------------------------------------------------------------- the catalogue
@dataclass(frozen=True)
class _Known:
    """A separator of the hub's: its bag file lists signatures, one safetensors file each."""

    title: str
    repo: str
    signatures: tuple[str, ...]
    stems: tuple[str, ...]
    download_bytes: int

    def files(self, name: str) -> list[hub.HubFile]:
        return [hub.HubFile(self.repo, f"{name}.yaml"), *(_weights(self.repo, sig) for sig in self.signatures)]


def _weights(repo: str, signature: str) -> hub.HubFile:
    return hub.HubFile(repo, f"{signature}.safetensors")


_FOUR: Final = ("drums", "bass", "other", "vocals")
_KNOWN: Final[dict[str, _Known]] = {
    "htdemucs": _Known("Hybrid Transformer Demucs", "adefossez/HTDemucs", ("955717e8",), _FOUR, 84_100_000),
    "htdemucs_ft": _Known(
        "Hybrid Transformer Demucs, fine-tuned (four times slower)", "adefossez/HTDemucs-ft",
        ("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"), _FOUR, 336_400_000,
    ),
    "htdemucs_6s": _Known(
        "Hybrid Transformer Demucs, six stems (with guitar and piano)", "adefossez/HTDemucs-6s", ("5c90dfd2",),
        (*_FOUR, "guitar", "piano"), 54_900_000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Bag:
    """What a bag file says: the parts, how much each counts for each stem, and which files they are."""

    paths: tuple[Path, ...]
    weights: tuple[tuple[float, ...], ...] | None
    segment_s: float | None


@dataclass(frozen=True)
class Split:
    """Finished stems in temporary files.

    paths: stem name -> WAV (32-bit float), of the source's length, rate and channels.
    info: stem name -> how it was made, for the track's JSON.
    """

    paths: dict[str, Path]
    info: dict[str, Any]
    seconds: float


class Separator:
    """The separators of this machine, and the one that is in memory.

    One job uses it at a time; `unload` may come from another thread.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loaded: _Loaded | None = None
        self._lost = False
        """The card stopped answering: the CPU computes until the program is started anew."""
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------- which
    def separators(self) -> list[SeparatorInfo]:
        """Every separator, the hub's first. Reads file names only; torch is not imported."""
        return [self._known_info(name) for name in _KNOWN] + [info for info, _ in self._folders()]

    def resolve(self, separator: str) -> SeparatorInfo:
        """The separator a request means: "auto" is the best that is here, else the one that can be fetched.

        Raises:
            InvalidParameter: there is no such separator.
        """
        found = self.separators()
        if separator == "auto":
            return min(found, key=_preference)
        for info in found:
            if info.id == separator:
                return info
        names = ", ".join(["auto", *(info.id for info in found)])
        raise InvalidParameter(f"separator: {separator!r} is none of {names}", field="separator")

    def wanted(self, stems: str, info: SeparatorInfo, have: Mapping[str, str]) -> tuple[str, ...]:
        """The stems still to be made for a request; empty when all are there.

        Args:
            stems: "all" or one stem's name.
            have: the stems the track has.
        Raises:
            InvalidParameter: this separator makes no such stem.
        """
        if stems != "all" and stems not in info.stems:
            raise InvalidParameter(
                f"stems: {info.id} makes no {stems!r}; it makes {', '.join(info.stems)}", field="stems"
            )
        asked = info.stems if stems == "all" else [stems]
        return tuple(stem for stem in asked if stem not in have)

    def _known_info(self, name: str) -> SeparatorInfo:
        known = _KNOWN[name]
        lacking = [str(file) for file in hub.missing(known.files(name))]
        state: contract.ModelState = "ready"
        if lacking:
            state = "missing" if self._settings.offline else "downloadable"
        return SeparatorInfo(
            id=name, title=known.title, stems=list(known.stems), licence="MIT", state=state,
            download_bytes=known.download_bytes if lacking else 0, missing=lacking,
        )  # fmt: skip

    def _folders(self) -> list[tuple[SeparatorInfo, _Bag | None]]:
        """Separators in folders of --models-dir, in the hub's format."""
        root = self._settings.models_dir
        folders = sorted(root.iterdir()) if root.is_dir() else []
        return [found for folder in folders if folder.is_dir() and (found := _read_folder(folder)) is not None]

    # -------------------------------------------------------------------------------------------- split
    def split(
        self, source: Path, out_dir: Path, stems: Sequence[str], *, separator: str = "auto",
        progress: Progress, check: Check,
    ) -> Split:  # fmt: skip
        """Split a file into stems, in temporary files inside `out_dir`.

        Args:
            source: any audio file in mono or stereo, up to two hours.
            out_dir: where the finished files go, on the library's disk so that they can be renamed into it.
            stems: which ones to keep.
            separator: an id, or "auto".
            progress, check: may raise Cancelled, which is honoured within a segment.
        Raises:
            ModelMissing, ModelBroken, DownloadFailed: the separator is not usable.
            UnreadableAudio, ClipTooLong, InvalidParameter: the file cannot be split.
            DiskFull, OutOfMemory: it does not fit.
            DeviceLost: the card stopped answering. After any error nothing is left in `out_dir`.
        """
        began = time.monotonic()
        info = self.resolve(separator)
        unknown = [stem for stem in stems if stem not in info.stems]
        if unknown or not stems:
            self.wanted(unknown[0] if unknown else "", info, {})
        check()
        with self._failing_in_words(info.id):
            song = _survey(source, progress, check)
            _require_space(song, out_dir, stems)
            loaded = self._load(info, progress, check)
            parts = {stem: out_dir / f"{stem}.part.wav" for stem in stems}
            with _cleaned(out_dir, list(parts.values())):
                how = _run(loaded, song, parts, progress, check)
        facts = {"separator": info.id, **how, "versions": _versions()}
        return Split(parts, dict.fromkeys(stems, facts), time.monotonic() - began)

    @contextmanager
    def _failing_in_words(self, name: str) -> Iterator[None]:
        """Memory that runs out and a card that is gone, said so that the person can act on it."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            words = str(error).lower()
            if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate" in words:
                raise OutOfMemory(
                    f"no memory left to split with {name}; unload the music model and try again"
                ) from error
            device = self._loaded.device if self._loaded is not None else self._device()
            if device_answers(device):
                raise
            self._lost = True
            self.unload()
            raise DeviceLost(
                "the card stopped answering while it split the track. Try again: the CPU takes over, more slowly."
                " To use the card again, start the program anew"
            ) from error

    def _device(self) -> str:
        import torch

        if self._lost:
            return "cpu"
        if self._settings.device != "auto":
            return self._settings.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def unload(self) -> None:
        """Give the separator's memory back."""
        with self._lock:
            self._loaded = None
        _empty_device_cache()

    @property
    def memory_bytes(self) -> int:
        """What the loaded weights take; 0 when none are loaded."""
        loaded = self._loaded
        return loaded.bytes if loaded is not None else 0

    def _load(self, info: SeparatorInfo, progress: Progress, check: Check) -> _Loaded:
        with self._lock:
            if self._loaded is not None and self._loaded.id == info.id:
                return self._loaded
            self._loaded = None
            bag = self._bag(info, progress)
            progress("loading", 0, 0, None)
            check()
            self._loaded = _load_bag(info.id, bag, self._device(), self._settings.threads)
            return self._loaded

    def _bag(self, info: SeparatorInfo, progress: Progress) -> _Bag:
        """The separator's files, fetched when they are not here."""
        if info.id not in _KNOWN:
            return self._folder_bag(info)
        # Offline, every missing part is said at once, not only the bag file that is looked for first.
        if self._settings.offline and info.missing:
            raise ModelMissing(
                f"the separator {info.id} is not on this machine and --offline forbids the network; "
                f"missing: {', '.join(info.missing)}",
                details={"missing": info.missing, "download_bytes": info.download_bytes},
            )
        known = _KNOWN[info.id]

        def fetch(files: Sequence[hub.HubFile]) -> list[Path]:
            return hub.fetch(
                files, lambda done, total, rate: progress("downloading", done, total, rate),
                offline=self._settings.offline, what=f"the separator {info.id}",
            )  # fmt: skip

        (path,) = fetch([hub.HubFile(known.repo, f"{info.id}.yaml")])
        said = _read_bag_file(path)
        return _to_bag(info.id, said, fetch([_weights(known.repo, signature) for signature in said["models"]]))

    def _folder_bag(self, info: SeparatorInfo) -> _Bag:
        for found, bag in self._folders():
            if found.id == info.id:
                if bag is None:
                    raise ModelBroken(f"the separator {info.id} is unusable: {found.problem}", field="separator")
                return bag
        raise ModelMissing(f"the separator {info.id} is not in {self._settings.models_dir} any more", field="separator")


def _preference(info: SeparatorInfo) -> tuple[int, int]:
    """Sorting key: a real one that is here, then the sketch that is here, then the one to fetch first."""
    order = list(_KNOWN).index(info.id) if info.id in _KNOWN else len(_KNOWN)
    rank = 2 if info.state != "ready" else 1 if info.sketch else 0
    return (3 if info.state == "broken" else rank), order


def _read_folder(folder: Path) -> tuple[SeparatorInfo, _Bag | None] | None:
    """A separator folder: one bag file `<name>.yaml` and its `<signature>.safetensors`; None when it is none."""
    for path in sorted(folder.glob("*.yaml")):
        with suppress(ModelBroken):
            said = _read_bag_file(path)
            about = said.get("studio") or {}
            stems = tuple(about.get("stems") or _FOUR)
            facts: dict[str, Any] = {
                "id": folder.name, "title": str(about.get("title") or folder.name), "stems": list(stems),
                "licence": str(about.get("licence") or "of its folder"), "sketch": bool(about.get("sketch")),
            }  # fmt: skip
            files = [folder / f"{signature}.safetensors" for signature in said["models"]]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                problem = f"{', '.join(absent)} missing in {folder.name}"
                return SeparatorInfo(**facts, state="broken", download_bytes=0, problem=problem), None
            return SeparatorInfo(**facts, state="ready", download_bytes=0), _to_bag(folder.name, said, files)
    return None


def _read_bag_file(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelBroken(f"{path.name} cannot be read: {type(error).__name__}") from None
    models = said.get("models") if isinstance(said, dict) else None
    if not isinstance(models, list) or not models or not all(_is_signature(name) for name in models):
        raise ModelBroken(f"{path.name} lists no models")
    return dict(said)


def _is_signature(name: Any) -> bool:
    """A bare file name: a bag file must not reach outside its folder."""
    return isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()


def _to_bag(name: str, said: Mapping[str, Any], paths: Sequence[Path]) -> _Bag:
    weights = said.get("weights")
    try:
        rows = None if weights is None else tuple(tuple(float(w) for w in row) for row in weights)
        segment = None if said.get("segment") is None else float(said["segment"])
    except (TypeError, ValueError):
        raise ModelBroken(f"the separator {name} has unreadable weights or segment in its bag file") from None
    if rows is not None and len(rows) != len(paths):
        raise ModelBroken(f"the separator {name} has {len(paths)} models, but weights for {len(rows)}")
    return _Bag(tuple(paths), rows, segment)


# ----------------------------------------------------------------------------------------------- the weights
@dataclass(frozen=True)
class _Loaded:
    """A separator in memory.

    models: demucs models in eval mode on `device`; weights[m][s]: how much model m counts for source s.
    """

    id: str
    models: tuple[Any, ...]
    weights: tuple[tuple[float, ...], ...]
    sources: tuple[str, ...]
    sample_rate_hz: int
    segment_frames: int
    device: str
    half: bool
    signatures: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(p.numel() * p.element_size() for model in self.models for p in model.parameters())


def _load_bag(name: str, bag: _Bag, device: str, threads: int) -> _Loaded:
    import torch
    from demucs.apply import BagOfModels

    models = [_load_model(name, path) for path in bag.paths]
    try:
        rows = None if bag.weights is None else [list(row) for row in bag.weights]
        whole = BagOfModels(models, rows, bag.segment_s)
    except AssertionError:
        raise ModelBroken(f"the separator {name} is made of models that do not fit together") from None
    if whole.audio_channels != 2:
        raise ModelBroken(f"the separator {name} takes {whole.audio_channels} channels; stereo ones can be used here")
    if threads:
        torch.set_num_threads(threads)
    for model in models:
        model.eval().requires_grad_(requires_grad=False)
        # oneDNN's convolutions are fastest on this layout; the results differ by rounding only.
        model.to(device=device, memory_format=torch.channels_last)
    segment_s = min(model.segment for model in models)
    return _Loaded(
        id=name, models=tuple(models), weights=tuple(tuple(row) for row in whole.weights),
        sources=tuple(whole.sources), sample_rate_hz=int(whole.samplerate),
        segment_frames=int(whole.samplerate * segment_s), device=device, half=device in HALF_PRECISION_DEVICES,
        signatures=tuple(path.stem for path in bag.paths),
    )  # fmt: skip


def _load_model(name: str, path: Path) -> Any:
    """One demucs model from safetensors; the file's own words are checked first, because demucs obeys them."""
    from demucs.hf import load_safetensors_model
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError):
        raise ModelBroken(f"the separator {name}: {path.name} is no safetensors file") from None
    if said.get("klass") not in _MODEL_CLASSES or "structure" in said:
        raise ModelBroken(f"the separator {name}: {path.name} holds no Demucs model (it says {said.get('klass')!r})")
    try:
        return load_safetensors_model(path)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, json.JSONDecodeError) as error:
        log.info("separator %s, %s: %s", name, path.name, error)
        raise ModelBroken(
            f"the separator {name}: {path.name} does not fit its own description ({type(error).__name__})"
        ) from None


def device_answers(device: str) -> bool:
    """Whether the device still computes: after a fault, a reset or an unplugging every call to a card fails."""
    if device == "cpu":
        return True
    import torch

    try:
        return float(torch.ones(1, device=device).sum().item()) == 1.0
    except RuntimeError:
        return False


def _empty_device_cache() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        # A card that is lost has nothing to give back, and says so with an error.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("demucs", "torch")}


# ------------------------------------------------------------------------------------------------ the source
@dataclass(frozen=True)
class _Song:
    """The source as it really is. mean and std are those of its mono mix, over its whole length."""

    path: Path
    frames: int
    sample_rate_hz: int
    channels: int
    mean: float
    std: float


def _survey(path: Path, progress: Progress, check: Check) -> _Song:
    """Read the file once to its end: what it holds, and the statistics Demucs normalises by."""
    progress("preparing", 0, 0, None)
    probe = audio.probe(path, max_s=MAX_SPLIT_S)
    audio.require_splittable(probe.channels)
    if probe.peak < SILENCE:
        raise UnreadableAudio("the file is silent: there is nothing to split")
    if probe.frames * probe.channels * 4 > MAX_WAV_BYTES:
        raise contract.ClipTooLong("a stem of this file would be larger than 4 GB, the most a WAV file can hold")
    total = squares = 0.0
    for block in audio.blocks(path, max_s=MAX_SPLIT_S):
        check()
        mono = block.mean(axis=0, dtype=np.float64)
        total += float(mono.sum())
        squares += float(np.square(mono).sum())
    mean = total / probe.frames
    variance = max(squares - probe.frames * mean**2, 0.0) / max(probe.frames - 1, 1)
    return _Song(path, probe.frames, probe.sample_rate_hz, probe.channels, mean, variance**0.5 + 1e-8)


def _require_space(song: _Song, out_dir: Path, stems: Sequence[str]) -> None:
    """Say at once what would otherwise be said after an hour."""
    folder = out_dir
    while not folder.exists():
        folder = folder.parent
    needed = song.frames * song.channels * 4 * len(stems)
    if shutil.disk_usage(folder).free < needed + SPARE_BYTES:
        raise DiskFull(f"{len(stems)} stems of this file need {needed / 1e6:.0f} MB, more than is free on the disk")


class _Stream:
    """The song at the model's rate, stereo and normalised, read once from front to end.

    `take(start, end)` gives frames that may reach before the beginning or past the end (zeros there); later calls
    never ask for frames before `start` of the latest one less `keep`.
    """

    def __init__(self, song: _Song, sample_rate_hz: int, keep: int) -> None:
        self.frames = -(-song.frames * sample_rate_hz // song.sample_rate_hz)
        self._song = song
        self._rate = sample_rate_hz
        self._keep = keep
        self._parts = self._read()
        self._held = np.zeros((2, 0), dtype=np.float32)
        self._first = 0

    def take(self, start: int, end: int) -> Samples:
        """float32 [2, end - start]."""
        low, high = max(start, 0), min(end, self.frames)
        pieces = [self._held]
        have = self._first + self._held.shape[1]
        while have < high:
            piece = next(self._parts, None)
            if piece is None:  # the resampler may end a frame short of the length that was computed
                piece = np.zeros((2, high - have), dtype=np.float32)
            pieces.append(piece)
            have += piece.shape[1]
        held = np.concatenate(pieces, axis=1)
        found = held[:, low - self._first : high - self._first]
        drop = max(low - self._keep - self._first, 0)
        self._held, self._first = held[:, drop:].copy(), self._first + drop
        return np.pad(found, ((0, 0), (low - start, end - high)))

    def _read(self) -> Iterator[Samples]:
        song = self._song
        parts = audio.blocks(song.path, max_s=MAX_SPLIT_S)
        for block in audio.resample_blocks(parts, song.sample_rate_hz, self._rate):
            stereo = np.repeat(block, 2, axis=0) if block.shape[0] == 1 else block
            yield ((stereo - song.mean) / song.std).astype(np.float32)


# ---------------------------------------------------------------------------------------------- the segments
@dataclass(frozen=True)
class Segment:
    """One run of the model: it sees frames [seen, seen + segment) and answers for [start, end)."""

    start: int
    end: int
    seen: int

    @property
    def skip(self) -> int:
        """Frames of the answer before `start`."""
        return self.start - self.seen


def plan(frames: int, segment_frames: int, overlap: float) -> list[Segment]:
    """Cut a song into segments as demucs' apply_model does, a short last one centred in what the model sees."""
    found = []
    for start in range(0, frames, int((1 - overlap) * segment_frames)):
        end = min(start + segment_frames, frames)
        found.append(Segment(start, end, start - (segment_frames - (end - start)) // 2))
    return found


def triangle(segment_frames: int) -> Samples:
    """Weight of each frame of a segment where segments overlap: most in the middle (demucs' transition_power 1)."""
    rising = np.arange(1, segment_frames // 2 + 1, dtype=np.float32)
    falling = np.arange(segment_frames - segment_frames // 2, 0, -1, dtype=np.float32)
    weight = np.concatenate([rising, falling])
    shaped: Samples = weight / weight.max()
    return shaped


class OverlapAdd:
    """Joins segments [S, C, n] by their weights and hands out what no later segment can change."""

    def __init__(self, segment_frames: int, shape: tuple[int, int]) -> None:
        self._weight = triangle(segment_frames)
        self._sum = np.zeros((*shape, 0), dtype=np.float32)
        self._weights = np.zeros(0, dtype=np.float32)
        self._first = 0

    def add(self, segment: Segment, stems: Samples) -> None:
        """Add the answer for [segment.start, segment.end)."""
        length = segment.end - segment.start
        grow = segment.end - self._first - self._weights.shape[0]
        if grow > 0:
            self._sum = np.pad(self._sum, ((0, 0), (0, 0), (0, grow)))
            self._weights = np.pad(self._weights, (0, grow))
        at = slice(segment.start - self._first, segment.end - self._first)
        self._sum[..., at] += stems * self._weight[:length]
        self._weights[at] += self._weight[:length]

    def pop(self, end: int) -> Samples:
        """float32 [S, C, n]: everything before frame `end` that was not handed out yet."""
        count = end - self._first
        done: Samples = self._sum[..., :count] / self._weights[:count]
        self._sum, self._weights = self._sum[..., count:].copy(), self._weights[count:].copy()
        self._first = end
        return done


# ------------------------------------------------------------------------------------------------- the stems
class _StemFile:
    """One stem on its way to the disk: back to the song's rate and channels, exactly as long as the song.

    32-bit float, because a stem may exceed full scale where the others cancel it: only then is their sum the song.
    """

    def __init__(self, path: Path, song: _Song, sample_rate_hz: int) -> None:
        self._song = song
        self._left = song.frames
        self._file = path.open("wb")
        self._file.write(float_wav_header(song.sample_rate_hz, song.channels, song.frames))
        self._resampler: Any = None
        if song.sample_rate_hz != sample_rate_hz:
            self._resampler = soxr.ResampleStream(
                sample_rate_hz, song.sample_rate_hz, song.channels, dtype="float32", quality="HQ"
            )

    def write(self, stem: Samples) -> None:
        """Append float32 [2, n] at the model's rate."""
        frames = (stem.mean(axis=0, keepdims=True) if self._song.channels == 1 else stem).T
        self._append(frames if self._resampler is None else self._resampler.resample_chunk(_packed(frames)))

    def _append(self, frames: Samples) -> None:
        kept = _packed(frames[: self._left])
        self._file.write(kept.astype("<f4", copy=False).tobytes())
        self._left -= len(kept)

    def finish(self) -> None:
        if self._resampler is not None:
            rest = np.zeros((0, self._song.channels), dtype=np.float32)
            self._append(self._resampler.resample_chunk(rest, last=True))
        self._append(np.zeros((self._left, self._song.channels), dtype=np.float32))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _packed(frames: Samples) -> Samples:
    return np.ascontiguousarray(frames, dtype=np.float32)


def float_wav_header(sample_rate_hz: int, channels: int, frames: int) -> bytes:
    """The 58 bytes before the samples of a 32-bit float WAV (IEEE float, with the fact chunk the format demands)."""
    frame_bytes = 4 * channels
    data_bytes = frames * frame_bytes
    form = struct.pack("<HHIIHHH", 3, channels, sample_rate_hz, sample_rate_hz * frame_bytes, frame_bytes, 32, 0)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, frames)
    return (
        b"RIFF"
        + struct.pack("<I", 4 + len(chunks) + 8 + data_bytes)
        + b"WAVE"
        + chunks
        + b"data"
        + struct.pack("<I", data_bytes)
    )


@contextmanager
def _cleaned(out_dir: Path, paths: Sequence[Path]) -> Iterator[None]:
    """Leave nothing behind when the split ends badly, and name a full disk."""
    made = not out_dir.exists()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in paths:
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                out_dir.rmdir()
        if isinstance(error, OSError) and contract.is_disk_full(error):
            raise DiskFull("the disk is full; the stems written so far were removed, the track is as it was") from None
        raise


# ---------------------------------------------------------------------------------------------------- running
def _run(loaded: _Loaded, song: _Song, parts: Mapping[str, Path], progress: Progress, check: Check) -> dict[str, Any]:
    """Separate the song segment by segment into `parts`; returns how it was done."""
    kept = [loaded.sources.index(stem) for stem in parts]
    stream = _Stream(song, loaded.sample_rate_hz, keep=loaded.segment_frames)
    segments = plan(stream.frames, loaded.segment_frames, OVERLAP)
    network = _Network(loaded, kept, check)
    joined = OverlapAdd(loaded.segment_frames, (len(kept), 2))
    counter = _Counter(progress, len(segments))
    network.on_step = counter.within
    with ExitStack() as files:
        outputs = [_StemFile(path, song, loaded.sample_rate_hz) for path in parts.values()]
        for output in outputs:
            files.callback(output.close)
        files.enter_context(network.ready())
        for index, segment in enumerate(segments):
            counter.segment(index)
            heard = stream.take(segment.seen, segment.seen + loaded.segment_frames)
            asked = slice(segment.skip, segment.skip + segment.end - segment.start)
            if np.ptp(heard[:, asked]) < SILENCE:
                # Digital silence, moved by the song's mean: every stem is silent too, and the network is not asked.
                joined.add(segment, np.repeat(heard[None, :, asked], len(kept), axis=0))
            else:
                joined.add(segment, network(heard)[..., asked])
            final = segments[index + 1].start if index + 1 < len(segments) else stream.frames
            for output, stem in zip(outputs, joined.pop(final) * song.std + song.mean, strict=True):
                output.write(stem)
        counter.segment(len(segments))
        progress("saving", 0, 0, None)
        for output in outputs:
            output.finish()
    return {
        "overlap": OVERLAP, "shifts": 0, "device": loaded.device, "precision": network.precision,
        "checkpoint": list(loaded.signatures),
    }  # fmt: skip


class _Counter:
    """Segments done, those under way in fractions, and how many go by in a second."""

    def __init__(self, progress: Progress, segments: int) -> None:
        self._progress = progress
        self._segments = segments
        self._began = time.monotonic()
        self._index = 0

    def segment(self, index: int) -> None:
        self._index = index
        self.within(0.0)

    def within(self, share: float) -> None:
        done = min(self._index + share, self._segments)
        spent = time.monotonic() - self._began
        self._progress("splitting", done, self._segments, done / spent if done >= 0.5 and spent > 0 else None)


class _Network:
    """The models of a separator as one function of a segment, leaving out those that no wanted stem needs.

    on_step: told the share of the segment that is done, many times within it; `check` is asked as often.
    """

    def __init__(self, loaded: _Loaded, kept: Sequence[int], check: Check) -> None:
        self._loaded = loaded
        self._kept = list(kept)
        self._check = check
        self._half = loaded.half
        self.on_step: Callable[[float], None] = lambda _share: None
        rows = np.array(loaded.weights, dtype=np.float32)[:, self._kept]
        # A fine-tuned bag has one model a stem: for the vocals alone one of four runs.
        self._used = [index for index in range(len(loaded.models)) if rows[index].any()]
        self._shares = rows / rows.sum(axis=0)
        self._steps_done = 0
        self._steps = 1

    @property
    def precision(self) -> str:
        return "float16" if self._half else "float32"

    def __call__(self, heard: Samples) -> Samples:
        """Separate one segment.

        Args:
            heard: float32 [2, segment], normalised.
        Returns:
            float32 [S, 2, segment], S the wanted stems in their order.
        """
        import torch

        self._check()
        self._steps_done = 0
        mix = torch.from_numpy(np.ascontiguousarray(heard))[None].to(self._loaded.device)
        stems = np.zeros((len(self._kept), *heard.shape), dtype=np.float32)
        for index in self._used:
            made = self._separate(self._loaded.models[index], mix)[0, self._kept].float().cpu().numpy()
            stems += made * self._shares[index][:, None, None]
        if not np.isfinite(stems).all():
            raise ModelBroken(f"the separator {self._loaded.id} answers with values that are not numbers")
        return stems

    def _separate(self, model: Any, mix: Any) -> Any:
        """[1, 2, T] -> [1, S, 2, T]; half precision where it may be, in full again where that overflows."""
        import torch

        if self._half:
            with torch.autocast(self._loaded.device, dtype=torch.float16):
                made = model(mix)
            if bool(torch.isfinite(made).all()):
                return made
            log.info("half precision overflowed in %s: going on in float32", self._loaded.id)
            self._half = False
        return model(mix)

    def _step(self, *_: Any) -> None:
        """Before each layer: the moment to hear of a cancel."""
        self._check()
        self._steps_done += 1
        self.on_step(min(self._steps_done / self._steps, 1.0))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Listen to the layers, and choose the fastest way to run them, for the time of one split."""
        import torch

        layers = [
            layer
            for index in self._used
            for module in self._loaded.models[index].modules()
            if isinstance(module, torch.nn.ModuleList)
            for layer in module
        ]
        self._steps = max(len(layers), 1)
        hooks = [layer.register_forward_pre_hook(self._step) for layer in layers]
        fast = torch.backends.mha.get_fastpath_enabled()
        # The encoder layers' "fast path" is the slow one here: a matrix of all attention weights, instead of flash.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()
