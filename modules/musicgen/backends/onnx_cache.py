"""Converted decoders on disk: one folder each, made once, found again by what they were made from.

An entry's name holds the fingerprint of the checkpoint, of the form and of ONNX Runtime's version, so anything that
changed leads to another name. It is written beside its place and renamed when complete. A file that is shorter than
it was, or whose samples read otherwise, makes the entry worthless: it is removed and made again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modules.contract import DiskFull
from modules.musicgen.backends.onnx_graph import Recipe, write_decoder
from modules.musicgen.backends.weights import DecoderWeights, Shape

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the graph, the quantisation and the files. Raise it with every change of what they hold."""
KEPT_BYTES = 12 * 2**30
"""Converted models beyond this many bytes are removed, the longest unused first."""
META_FILE, EMBEDDING_FILE, CROSS_FILE, CROSS_BIAS_FILE = "entry.json", "embedding.npy", "cross.npy", "cross_bias.npy"
SAMPLES, SAMPLE_BYTES = 64, 64 * 1024


@dataclass(frozen=True)
class Key:
    """What an entry is made from and how."""

    model: str
    checkpoint: str
    bits: int
    block: int
    kv: str

    @property
    def name(self) -> str:
        import onnxruntime

        words = json.dumps([asdict(self), FORMAT, onnxruntime.__version__], sort_keys=True)
        label = "".join(c if c.isalnum() else "-" for c in self.model.rpartition("/")[2])[:40]
        return f"{label}-{self.bits}bit-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Entry:
    """A complete folder."""

    folder: Path
    shape: Shape
    kv_width: int


Progress: TypeAlias = Callable[[int, int], None]
Calibrate: TypeAlias = Callable[[Entry, Callable[[], None]], "npt.NDArray[np.float32]"]
"""(entry, breathe) -> the scales of Recipe."""


class OnnxCache:
    """The folder of entries."""

    def __init__(self, folder: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._kept_bytes = folder, kept_bytes

    def find(self, key: Key) -> Entry | None:
        """The entry if it is there and whole; what is there and is not whole is removed."""
        folder = self._folder / key.name
        if not folder.is_dir():
            return None
        try:
            entry = _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the converted model %s is damaged (%s) and is made again", folder.name, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)
        return entry

    def make(self, key: Key, weights: DecoderWeights, calibrate: Calibrate, progress: Progress) -> Entry:
        """Convert and keep.

        Args:
            calibrate: finds the scales of int8 keys and values in the same decoder with float32 ones, where the key
                asks for them.
            progress: (done, total); may raise, then nothing is left.

        Raises:
            DiskFull: there is no room, even after older entries went.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        int8 = key.kv == "int8"
        self._sweep(_needed_bytes(weights.shape, key) * (2 if int8 else 1), keep=key.name)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=self._folder))
        try:
            recipe = Recipe(key.bits, key.block)
            if int8:
                first, progress = _halves(progress)
                recipe = replace(recipe, kv_scales=_scales(temporary / "first", weights, recipe, calibrate, first))
            _write(temporary, weights, recipe, progress)
            final = self._folder / key.name
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except OSError as error:
            raise DiskFull(f"the converted model could not be written to {self._folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _read(final)

    def _sweep(self, coming: int, keep: str) -> None:
        """Remove leftovers and the longest unused entries until `coming` bytes fit the bound and the disk."""
        for leftover in self._folder.glob(".making-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        entries = sorted((f for f in self._folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
        sizes = {folder: sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) for folder in entries}
        for folder in entries:
            room = shutil.disk_usage(self._folder).free >= coming
            if room and sum(sizes.values()) + coming <= self._kept_bytes:
                return
            if folder.name != keep:
                log.info("removing the converted model %s to make room", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
            sizes.pop(folder)
        free = shutil.disk_usage(self._folder).free
        if free < coming:
            raise DiskFull(
                f"converting the model needs {coming // 2**20} MB in {self._folder}, {free // 2**20} MB are free"
            )


def _scales(
    folder: Path, weights: DecoderWeights, recipe: Recipe, calibrate: Calibrate, progress: Progress
) -> npt.NDArray[np.float32]:
    """Write the decoder with float32 keys and values, look at them, and remove it again."""
    folder.mkdir()
    _write(folder, weights, recipe, progress)
    try:
        return calibrate(_read(folder), lambda: progress(0, 0))
    finally:
        # Windows holds on to mapped files until the last reference is gone.
        gc.collect()
        shutil.rmtree(folder, ignore_errors=True)


def _halves(progress: Progress) -> tuple[Progress, Progress]:
    """One progress for two runs of equal length. A call with a total of 0 only asks whether to go on."""
    last = (0, 0)

    def first(done: int, total: int) -> None:
        nonlocal last
        last = (done, 2 * total) if total else last
        progress(*last)

    return first, lambda done, total: progress(total + done, 2 * total)


def _needed_bytes(shape: Shape, key: Key) -> int:
    numbers = shape.parameters()
    cross = 8 * shape.layers * shape.dim**2 if shape.cross else 0
    embedding = 4 * shape.codebooks * (shape.card + 1) * shape.dim
    scales = 0 if key.bits == 32 else numbers // key.block * 4
    return numbers * key.bits // 8 + scales + cross + embedding + 2**20


def _write(folder: Path, weights: DecoderWeights, recipe: Recipe, progress: Progress) -> None:
    write_decoder(weights, recipe, folder, progress)
    np.save(folder / EMBEDDING_FILE, weights.embedding())
    if weights.shape.cross:
        _write_cross(folder, weights)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    meta = {
        "shape": asdict(weights.shape),
        "kv_width": recipe.kv_width,
        "files": {path.name: [path.stat().st_size, _checksum(path)] for path in files},
    }
    for path in files:
        _sync(path)
    (folder / META_FILE).write_text(json.dumps(meta), encoding="utf-8")
    _sync(folder / META_FILE)


def _write_cross(folder: Path, weights: DecoderWeights) -> None:
    """The projections a condition goes through once a generation, float32 [layers, 2 * dim, dim]."""
    shape = weights.shape
    size = (shape.layers, 2 * shape.dim, shape.dim)
    table = np.lib.format.open_memmap(folder / CROSS_FILE, mode="w+", dtype=np.float32, shape=size)
    biases = []
    for index, layer in enumerate(weights.layers()):
        if layer.cross_kv is not None:
            table[index] = layer.cross_kv.weight
            if layer.cross_kv.bias is not None:
                biases.append(layer.cross_kv.bias)
    table.flush()
    if biases:
        np.save(folder / CROSS_BIAS_FILE, np.stack(biases))


def _read(folder: Path) -> Entry:
    meta: dict[str, Any] = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    for name, (size, checksum) in meta["files"].items():
        path = folder / name
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, not {size}")
        if _checksum(path) != checksum:
            raise ValueError(f"{name} reads otherwise than it was written")
    return Entry(folder, Shape(**meta["shape"]), int(meta["kv_width"]))


def _checksum(path: Path) -> int:
    """CRC-32 over evenly spaced pieces, the ends included: reading gigabytes at each start would cost seconds."""
    size, value = path.stat().st_size, 0
    with path.open("rb") as file:
        for index in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * index // max(1, SAMPLES - 1))
            value = zlib.crc32(file.read(SAMPLE_BYTES), value)
    return value


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
