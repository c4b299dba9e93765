"""The models we know: the published ones and the folders under --models-dir. Where each is, and what it lacks.

Nothing here imports torch or touches the network. A checkpoint's own description is read out of its pickle as text,
by walking the opcodes: no object of it is ever made.
"""

from __future__ import annotations

import io
import logging
import lzma
import pickletools
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from modules import hub
from modules.contract import Decoder, DiffusionInfo, InvalidParameter, ModelBroken, ModelInfo, ModelState, UnknownModel
from modules.hub import HubFile
from modules.musicgen.compat import DIFFUSION_FILE, config_name
from modules.settings import Settings

log = logging.getLogger(__name__)

WEIGHTS_LICENCE: Final = "CC-BY-NC 4.0"
T5_REPO, ENCODEC_REPO, DEMUCS_REPO = "t5-base", "facebook/encodec_32khz", "adefossez/HTDemucs"
DIFFUSION_REPO: Final = "facebook/multiband-diffusion"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"
TINY_ID: Final = "tiny"
WINDOW_S: Final = 30.0
_MB: Final = 1_000_000
# What the parts weigh on the hub; shown before a download, which then asks the hub itself.
_T5_BYTES, _ENCODEC_BYTES, _DEMUCS_BYTES, _POINTER_BYTES = 895 * _MB, 236 * _MB, 84 * _MB, 589
_MAX_PICKLE_BYTES: Final = 64 * _MB
_DAMAGED_ARCHIVE: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_LEGACY_PICKLES: Final = 4
"""Files from before torch's zip form begin with pickles of a magic number, a version, the system and the object."""


Marks: TypeAlias = tuple[tuple[str, int, int], ...]
"""(path, time of the last change in ns, bytes) of files."""


@dataclass(frozen=True)
class Shape:
    """The size of a decoder."""

    dim: int
    layers: int
    codebooks: int = 4
    card: int = 2048
    cross_attention: bool = True
    hidden_scale: int = 4

    @property
    def parameters(self) -> int:
        attention = 4 * self.dim**2 * (2 if self.cross_attention else 1)
        layer = attention + 2 * self.hidden_scale * self.dim**2
        return self.layers * layer + self.codebooks * (2 * self.card + 1) * self.dim


SMALL, MEDIUM, LARGE = Shape(1024, 24), Shape(1536, 48), Shape(2048, 48)


@dataclass(frozen=True)
class Part:
    """One thing a model needs, as a person would name it."""

    name: str
    repo: str
    files: tuple[tuple[str, ...], ...]
    """Each needed file, under any one of these names."""
    optional: tuple[str, ...] = ()
    bytes: int = 0
    """About what it weighs on the hub."""

    def local(self) -> list[Path]:
        """The needed files that are in the hub's cache."""
        found = (
            next(filter(None, (hub.local(HubFile(self.repo, name)) for name in names)), None) for names in self.files
        )
        return [path for path in found if path is not None]

    @property
    def here(self) -> bool:
        return len(self.local()) == len(self.files)

    @property
    def label(self) -> str:
        lacking = [names[0] for names in self.files if not any(hub.local(HubFile(self.repo, name)) for name in names)]
        return f"{self.name}: {self.repo} ({', '.join(lacking)})"


@dataclass(frozen=True)
class Entry:
    """A model, wherever it comes from."""

    id: str
    title: str
    repo: str | None
    params_m: float | None
    shape: Shape | None
    channels: int = 1
    melody: bool = False
    parts: tuple[Part, ...] = ()
    folder: Path | None = None
    licence: str = WEIGHTS_LICENCE
    sketch: bool = False
    loader: str = "audiocraft"
    window_s: float = WINDOW_S
    sample_rate_hz: int = 32_000
    frame_rate_hz: float = 50.0
    lacking: tuple[str, ...] = ()
    """Files a folder should hold and does not: no download brings them."""
    problem: str = ""
    diffusion: bool = False
    """Whether its tokens are those that Multi-Band Diffusion was trained for."""


_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
T5 = Part(
    name="T5",
    repo=T5_REPO,
    files=(("config.json",), _TRANSFORMERS_WEIGHTS, ("tokenizer.json", "spiece.model")),
    optional=("tokenizer_config.json", "special_tokens_map.json"),
    bytes=_T5_BYTES,
)
ENCODEC = Part("EnCodec", ENCODEC_REPO, (("config.json",), _TRANSFORMERS_WEIGHTS), (), _ENCODEC_BYTES)
DIFFUSION = Part("Multi-Band Diffusion", DIFFUSION_REPO, ((DIFFUSION_FILE,),))
"""Nobody told us what it weighs: that is known once the hub is asked for it."""
DEMUCS = Part("htdemucs", DEMUCS_REPO, (("htdemucs.yaml",), ("955717e8.safetensors",)), (), _DEMUCS_BYTES)


def _published(size: str, shape: Shape, params_m: float, lm_bytes: int, *, stereo: bool = False) -> Entry:
    """One of audiocraft's own. `size` is its name after "musicgen-"."""
    melody = "melody" in size
    name = f"stereo-{size}" if stereo else size
    repo = f"facebook/musicgen-{name}"
    # The later checkpoints carry a pointer to EnCodec instead of EnCodec.
    points = stereo or name == "melody-large"
    parts = [
        Part("LM", repo, ((LM_FILE,),), (), lm_bytes),
        Part("EnCodec", repo, ((CODEC_FILE,),), (), _POINTER_BYTES if points else _ENCODEC_BYTES),
        *([ENCODEC] if points else []),
        T5,
        *([DEMUCS] if melody else []),
    ]
    sized = Shape(shape.dim, shape.layers, 8 if stereo else 4, cross_attention=not melody)
    title = f"MusicGen {name.replace('-', ' ')}"
    return Entry(name, title, repo, params_m, sized, 2 if stereo else 1, melody, tuple(parts), diffusion=not stereo)


_SIZES: Final[tuple[tuple[str, Shape, float, int], ...]] = (
    ("small", SMALL, 300, 841 * _MB),
    ("medium", MEDIUM, 1500, 3680 * _MB),
    ("large", LARGE, 3300, 6510 * _MB),
    ("melody", MEDIUM, 1500, 2770 * _MB),
    ("melody-large", LARGE, 3300, 4900 * _MB),
)
PUBLISHED: Final = tuple(_published(*size, stereo=stereo) for stereo in (False, True) for size in _SIZES)


@dataclass
class Catalog:
    """The models as they are on this machine now. Every answer looks at the disk anew."""

    settings: Settings
    _problems: dict[str, tuple[str, Marks]] = field(default_factory=dict)
    """Model id, or DIFFUSION_REPO -> why its last load failed, and of which files."""
    _read: dict[tuple[Path, int, int], dict[str, str]] = field(default_factory=dict)
    """What was read out of a checkpoint, by path, time and size."""

    def entries(self) -> list[Entry]:
        """Folders first while none of the published models is here, else last."""
        folders = list(self._folders())
        return [*folders, *PUBLISHED] if self._best() is None else [*PUBLISHED, *folders]

    def models(self, loaded: str | None = None) -> list[ModelInfo]:
        """Every model, the one in memory marked."""
        return [self._describe(entry, loaded) for entry in self.entries()]

    def entry(self, model_id: str) -> Entry:
        """Raises UnknownModel."""
        entries = {entry.id: entry for entry in self.entries()}
        if model_id not in entries:
            raise UnknownModel(f"model: {model_id!r} is not known, choose one of {', '.join(entries)}", field="model")
        return entries[model_id]

    def info(self, model_id: str, loaded: str | None = None) -> ModelInfo:
        """Raises UnknownModel."""
        return self._describe(self.entry(model_id), loaded)

    def parts(self, model_id: str, decoder: Decoder = "codec") -> list[Part]:
        """Everything from the hub that the model and the decoder need, here or not; what a pointer points at included.

        Raises:
            UnknownModel.
            InvalidParameter: the model has no such decoder.
        """
        parts = self._parts(self.entry(model_id))
        if decoder == "codec":
            return parts
        require_decoder(self.info(model_id), decoder)
        return [*parts, DIFFUSION]

    def note_problem(self, key: str, message: str) -> None:
        """Remember why a load of a model, or of DIFFUSION_REPO, failed: until one works or the files are others."""
        self._problems[key] = message, self._marks(key)

    def forget_problem(self, key: str) -> None:
        """A load worked."""
        self._problems.pop(key, None)

    def _problem(self, key: str) -> str:
        message, marks = self._problems.get(key, ("", ()))
        # What was mended, replaced or fetched anew deserves another try.
        return message if message and self._marks(key) == marks else ""

    def _marks(self, key: str) -> Marks:
        """What tells whether a model's files are still the same ones: name, time and size of each."""
        if key == DIFFUSION_REPO:
            return _marked(DIFFUSION.local())
        entry = next((entry for entry in self.entries() if entry.id == key), None)
        if entry is None:
            return ()
        own = sorted(entry.folder.iterdir()) if entry.folder else []
        return _marked([*own, *(path for part in self._parts(entry) for path in part.local())])

    def default_id(self) -> str:
        """What a person gets who chose nothing: --model, the best model here, the embedded one, or small."""
        known = {entry.id for entry in self.entries()}
        if self.settings.model in known:
            return self.settings.model
        best = self._best()
        return best.id if best is not None else TINY_ID if TINY_ID in known else "small"

    # ------------------------------------------------------------------------------------------ what is here
    def _best(self) -> Entry | None:
        """The largest published model on this machine that fits half of its memory, else the smallest there."""
        import psutil

        here = [entry for entry in PUBLISHED if all(part.here for part in self._parts(entry))]
        room = psutil.virtual_memory().total / 2
        fitting = [entry for entry in here if entry.shape and entry.shape.parameters * 4 <= room]
        if fitting:
            return max(fitting, key=lambda entry: entry.params_m or 0)
        return min(here, key=lambda entry: entry.params_m or 0, default=None)

    def _parts(self, entry: Entry) -> list[Part]:
        parts = list(entry.parts)
        pointer = self._pointer(entry)
        if pointer is None or any(part.repo == pointer for part in parts):
            return parts
        return [*parts, Part(ENCODEC.name, pointer, ENCODEC.files, (), _ENCODEC_BYTES)]

    def _pointer(self, entry: Entry) -> str | None:
        """The hub repository that the model's codec file points at."""
        path = entry.folder / CODEC_FILE if entry.folder else hub.local(HubFile(entry.repo or "", CODEC_FILE))
        if path is None or not path.is_file():
            return None
        try:
            return self._texts(path).get("pretrained")
        except ModelBroken:
            return None

    def _describe(self, entry: Entry, loaded: str | None) -> ModelInfo:
        absent = [part for part in self._parts(entry) if not part.here]
        problem = entry.problem or self._problem(entry.id)
        lacking = [*entry.lacking, *(part.label for part in absent)]
        return ModelInfo(
            id=entry.id, title=entry.title, repo=entry.repo, params_m=entry.params_m, channels=entry.channels,
            melody=entry.melody, max_window_s=entry.window_s, frame_rate_hz=entry.frame_rate_hz,
            sample_rate_hz=entry.sample_rate_hz, licence=entry.licence, sketch=entry.sketch,
            state=self._state(problem, entry.lacking, absent), download_bytes=sum(part.bytes for part in absent),
            missing=lacking, where=_where(entry), loaded=entry.id == loaded, problem=problem,
            diffusion=self._diffusion() if entry.diffusion else None,
        )  # fmt: skip

    def _diffusion(self) -> DiffusionInfo:
        problem = self._problem(DIFFUSION_REPO)
        missing = [] if DIFFUSION.here else [DIFFUSION.label]
        state = self._state(problem, (), [DIFFUSION] if missing else [])
        return DiffusionInfo(state=state, licence=WEIGHTS_LICENCE, missing=missing)

    def _state(self, problem: str, lacking: tuple[str, ...], absent: list[Part]) -> ModelState:
        if problem:
            return "broken"
        if lacking or (absent and self.settings.offline):
            return "missing"
        return "downloadable" if absent else "ready"

    # ---------------------------------------------------------------------------------------------- folders
    def _folders(self) -> Iterator[Entry]:
        root = self.settings.models_dir
        if not root.is_dir():
            return
        taken = {entry.id for entry in PUBLISHED}
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            if any((folder / name).is_file() for name in (LM_FILE, _safe(LM_FILE))):
                name = f"local-{folder.name}" if folder.name in taken else folder.name
                yield self._folder(folder, name)

    def _folder(self, folder: Path, model_id: str) -> Entry:
        plain = Entry(model_id, folder.name, None, None, None, folder=folder, licence="as its maker says")
        try:
            config = self._config(folder)
            entry = _from_config(plain, config, _lacking(folder))
            # Of a codec in the folder nobody knows whether it is the one; a pointer says so.
            theirs = entry.channels == 1 and self._pointer(entry) == ENCODEC_REPO
            return replace(entry, diffusion=theirs)
        except ModelBroken as error:
            return Entry(**{**vars(plain), "problem": error.message})

    def _config(self, folder: Path) -> dict[str, Any]:
        safe = folder / config_name(LM_FILE)
        if (folder / _safe(LM_FILE)).is_file():
            if not safe.is_file():
                raise ModelBroken(f"{folder.name}: {safe.name} is missing beside {_safe(LM_FILE)}")
            text = safe.read_text(encoding="utf-8", errors="replace")
        else:
            text = self._texts(folder / LM_FILE).get("xp.cfg", "")
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError:
            config = None
        if not isinstance(config, dict) or not isinstance(config.get("transformer_lm"), dict):
            raise ModelBroken(f"{folder.name}: its checkpoint has no xp.cfg of a MusicGen, so it cannot be loaded")
        return config

    def _texts(self, path: Path) -> dict[str, str]:
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._read:
            self._read[key] = read_texts(path)
        return self._read[key]


def _marked(paths: Iterable[Path]) -> Marks:
    marks = []
    for path in paths:
        with suppress(OSError):
            found = path.stat()
            marks.append((str(path), found.st_mtime_ns, found.st_size))
    return tuple(marks)


def require_decoder(info: ModelInfo, decoder: Decoder) -> None:
    """Raises InvalidParameter when the model's tokens cannot become sound that way."""
    if decoder == "diffusion" and info.diffusion is None:
        raise InvalidParameter(
            f"decoder: Multi-Band Diffusion knows the tokens of MusicGen's mono models only, not of {info.id!r};"
            " choose such a model, or the decoder 'codec'",
            field="decoder",
        )


def _where(entry: Entry) -> str:
    if entry.folder is not None:
        return str(entry.folder)
    from huggingface_hub import constants

    return str(Path(constants.HF_HUB_CACHE) / hub.folder_name(entry.repo or ""))


def _safe(name: str) -> str:
    return Path(name).stem + ".safetensors"


def _lacking(folder: Path) -> tuple[str, ...]:
    """The codec's files that a folder should hold and does not."""
    if (folder / CODEC_FILE).is_file():
        return ()
    needed = (_safe(CODEC_FILE), config_name(CODEC_FILE))
    if (folder / needed[0]).is_file():
        return () if (folder / needed[1]).is_file() else (f"EnCodec: {needed[1]}",)
    return (f"EnCodec: {CODEC_FILE}",)


def _from_config(plain: Entry, config: dict[str, Any], lacking: tuple[str, ...]) -> Entry:
    """A folder's entry from the `xp.cfg` of its language model.

    Raises:
        ModelBroken: a value that must be there is not, or is of another kind.
    """
    try:
        studio = dict(config.get("studio") or {})
        conditioners = {
            k: v for k, v in (config.get("conditioners") or {}).items() if isinstance(v, dict) and "model" in v
        }
        kinds = {str(spec["model"]) for spec in conditioners.values()}
        loader = str(studio.get("loader", "audiocraft"))
        stereo = bool((config.get("interleave_stereo_codebooks") or {}).get("use"))
        shape = _shape(config)
        parts = [] if loader == TINY_ID else [T5] * ("t5" in kinds) + [DEMUCS] * ("chroma_stem" in kinds)
        return Entry(
            id=plain.id, title=str(studio.get("title", plain.title)), repo=None, shape=shape,
            params_m=float(studio.get("params_m", round(shape.parameters / 1e6, 1))),
            channels=int(studio.get("channels", 2 if stereo else config.get("channels", 1))),
            melody=bool(studio.get("melody", "chroma_stem" in kinds)), parts=tuple(parts), folder=plain.folder,
            licence=str(studio.get("licence", plain.licence)), sketch=bool(studio.get("sketch", False)), loader=loader,
            window_s=float((config.get("dataset") or {}).get("segment_duration", WINDOW_S)),
            sample_rate_hz=int(studio.get("sample_rate_hz", config.get("sample_rate", 32_000))),
            frame_rate_hz=float(studio.get("frame_rate_hz", 50.0)), lacking=lacking,
        )  # fmt: skip
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelBroken(f"{plain.title}: its configuration does not make sense ({error})") from None


def _shape(config: dict[str, Any]) -> Shape:
    lm = config["transformer_lm"]
    return Shape(
        dim=int(lm["dim"]), layers=int(lm["num_layers"]), codebooks=int(lm["n_q"]), card=int(lm["card"]),
        cross_attention=bool((config.get("fuser") or {}).get("cross")), hidden_scale=int(lm.get("hidden_scale", 4)),
    )  # fmt: skip


# --------------------------------------------------------------------------------- a checkpoint as plain text
def read_texts(path: Path) -> dict[str, str]:
    """The texts a torch file holds under `xp.cfg` and `pretrained`, read without making any object of it.

    Raises:
        ModelBroken: it is no torch file, or a damaged one.
    """
    found: dict[str, str] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                if archive.getinfo(name).file_size > _MAX_PICKLE_BYTES:
                    raise ModelBroken(f"{path.name}: its index is too large for a checkpoint")
                found = _texts_in(io.BytesIO(archive.read(name)))
        else:
            with path.open("rb") as file:
                head = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
            for _ in range(_LEGACY_PICKLES):
                found |= _texts_in(head)
    except (ValueError, StopIteration, OSError, EOFError, RuntimeError, *_DAMAGED_ARCHIVE) as error:
        raise ModelBroken(
            f"{path.name}: not a checkpoint, or a damaged one ({error or type(error).__name__})"
        ) from None
    return found


def _texts_in(file: io.BytesIO) -> dict[str, str]:
    """String values that follow the strings `xp.cfg` and `pretrained` in one pickle.

    Out of memory, not out of the file: a file's own read() first reserves whatever length the bytes claim.
    """
    found: dict[str, str] = {}
    key: str | None = None
    for _, argument, _ in pickletools.genops(file):
        if not isinstance(argument, str):
            continue
        if key is not None:
            found.setdefault(key, argument)
        key = argument if argument in ("xp.cfg", "pretrained") else None
    return found
