"""The decoder on ONNX Runtime, for CPUs: quantised weights, keys and values in buffers that are bound once."""

from __future__ import annotations

import functools
import logging
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modules.contract import EngineInfo, ModelBroken
from modules.musicgen.backends import onnx_cache
from modules.musicgen.backends.calibration import TEXTS, key_value_scales
from modules.musicgen.backends.interface import Cursor, Guidance, HostCursor
from modules.musicgen.backends.onnx_cache import Entry, Key, OnnxCache
from modules.musicgen.backends.onnx_graph import GRAPH_FILE, cross_names, int8_attention, kv_names
from modules.musicgen.backends.weights import DecoderWeights, Shape, positions
from modules.musicgen.conditions import Conditioner, Conditions
from modules.musicgen.engine import Codes, ModelFacts
from modules.musicgen.patterns import DelayPattern
from modules.musicgen.sampling import Logits, Sampler

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


BITS = {"float32": 32, "int8": 8, "int4": 4}
BLOCKS = {32: 0, 8: 128, 4: 32}
"""Weights that share a scale. With 8 bits larger blocks are as good and a tenth faster."""


def open_onnx(
    weights: DecoderWeights,
    conditioner: Conditioner,
    pattern: DelayPattern,
    facts: ModelFacts,
    folder: Path,
    threads: int,
    why: str,
    progress: Callable[[int, int], None],
) -> OnnxBackend:
    """The converted decoder in the precision `facts` names, made now if it is not in the cache at `folder`.

    Raises:
        ModelBroken, DiskFull, and whatever `progress` raises.
    """
    bits = BITS[facts.precision]
    kv = "int8" if bits < 32 and int8_cache_works() else "float32"
    key = Key(facts.model, facts.checkpoint_hash or weights.fingerprint(), bits, BLOCKS[bits], kv)
    cache = OnnxCache(folder)

    def calibrate(entry: Entry, breathe: Callable[[], None]) -> Floats:
        steps = pattern.steps(facts.max_frames)
        return key_value_scales(OnnxDecoder(entry, threads), conditioner.several(TEXTS), pattern, steps, breathe)

    entry = cache.find(key) or cache.make(key, weights, calibrate, progress)
    return OnnxBackend(entry, facts.precision, threads, f"{why}; keys and values in {kv}")


@functools.cache
def int8_cache_works() -> bool:
    """Whether this build of ONNX Runtime has attention over int8 keys and values on the CPU."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(int8_attention(), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its errors share no base but this, and each means no
        log.info("ONNX Runtime %s keeps keys and values in float32: %s", onnxruntime.__version__, error)
        return False
    return True


class OnnxBackend:
    """One converted decoder."""

    def __init__(self, entry: Entry, precision: str, threads: int, why: str) -> None:
        self._decoder: OnnxDecoder | None = OnnxDecoder(entry, threads)
        self._shape, self._kv_width = entry.shape, entry.kv_width
        self._info = EngineInfo(backend="onnx", precision=precision, device="cpu", why=why)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def row_bytes(self, positions: int) -> int:
        return self._shape.kv_bytes(positions, self._kv_width)

    def cursor(self, guidance: Guidance, sampler: Sampler, positions: int, breathe: Callable[[], None]) -> Cursor:
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        decoder = self._decoder
        return HostCursor(lambda conditions: OnnxPass(decoder, conditions, positions), guidance, sampler, breathe)

    def close(self) -> None:
        self._decoder = None


class OnnxDecoder:
    """A session and the arrays that stay outside it: embeddings, and what a condition goes through once."""

    def __init__(self, entry: Entry, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads spin between the many small operators of a step, but never once the step is done: the server's
        # own threads get the cores back.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(entry.folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors share no base but this
            raise ModelBroken(f"the converted model {entry.folder.name} cannot be run: {error}") from error
        self.shape: Shape = entry.shape
        self.kv_dtype = np.dtype(np.int8 if entry.kv_width == 1 else np.float32)
        self.embedding = _mapped(entry.folder / onnx_cache.EMBEDDING_FILE)
        self._cross = entry.folder / onnx_cache.CROSS_FILE if entry.shape.cross else None
        bias = entry.folder / onnx_cache.CROSS_BIAS_FILE
        self._cross_bias = _mapped(bias) if bias.is_file() else None

    def embed(self, tokens: Codes) -> Floats:
        """int64 [rows, K, n] -> float32 [rows, n, dim]: the sum of the codebooks' embeddings."""
        total: Floats = self.embedding[0][tokens[:, 0]]
        for k in range(1, self.shape.codebooks):
            total = total + self.embedding[k][tokens[:, k]]
        return total

    def cross(self, states: Floats) -> dict[str, Floats]:
        """Keys and values of every layer's cross-attention by input name, float32 [rows, heads, S, head_dim]."""
        if self._cross is None:
            return {}
        shape, found = self.shape, {}
        unlike, order = np.unique(states, axis=0, return_inverse=True)
        for index in range(shape.layers):
            # Mapped anew for each layer, so that no more than one layer's pages count as this process' memory.
            both = unlike @ _mapped(self._cross)[index].T
            if self._cross_bias is not None:
                both += self._cross_bias[index]
            split = both.reshape(*both.shape[:2], 2, shape.heads, shape.head_dim).transpose(2, 0, 3, 1, 4)
            for name, part in zip(cross_names(index), split, strict=True):
                found[name] = np.ascontiguousarray(part[order.reshape(-1)])
        return found


class OnnxPass:
    """Rows on their way through the decoder.

    A step runs all rows at once over buffers that are bound once. Several positions at once are run row by row,
    because GroupQueryAttention takes no batch there; a row that has had the same inputs as the one before it is
    copied from it.

    Args:
        spacing: positions from one step to the next; more than 1 only to see how the decoder behaves far out.
    """

    def __init__(self, decoder: OnnxDecoder, conditions: Conditions, steps: int, spacing: int = 1) -> None:
        self._decoder, self._shape = decoder, decoder.shape
        shape, rows = decoder.shape, conditions.rows
        self._rows, self._position = rows, 0
        self._pending: Floats | None = conditions.prepend
        self._added = conditions.added
        length = conditions.prepend.shape[1] + steps
        self._sine = positions(0, length * spacing, shape)[::spacing]
        size = (rows, shape.heads, length, shape.head_dim)
        names = [name for index in range(shape.layers) for name in kv_names(index)]
        room = fresh_memory(len(names) * math.prod(size) * decoder.kv_dtype.itemsize)
        self._buffers = dict(zip(names, room.view(decoder.kv_dtype).reshape(-1, *size), strict=True))
        self._cross = {} if conditions.cross is None else decoder.cross(conditions.cross)
        self._twins = [row > 0 and _same(conditions, row) for row in range(rows)]
        self._logits: Floats = np.empty((rows, 1, shape.codebooks * shape.card), np.float32)
        self._step = _Binding(decoder, slice(0, rows), 1, self)

    def feed(self, tokens: Codes) -> Logits:
        x = self._decoder.embed(tokens)
        if self._added is not None:
            x = x + self._added
        if self._pending is not None:
            x, self._pending = np.concatenate([self._pending, x], axis=1), None
        first, last = self._position, self._position + x.shape[1]
        x = x + self._sine[first:last]
        if x.shape[1] == 1:
            self._step.run(x, last)
        else:
            self._feed_rows(x, last)
        self._position = last
        return self._logits.reshape(self._rows, self._shape.codebooks, self._shape.card)

    def _feed_rows(self, x: Floats, total: int) -> None:
        for row in range(self._rows):
            self._twins[row] = self._twins[row] and bool((x[row] == x[row - 1]).all())
            if self._twins[row]:
                for buffer in self._buffers.values():
                    buffer[row, :, total - x.shape[1] : total] = buffer[row - 1, :, total - x.shape[1] : total]
                self._logits[row] = self._logits[row - 1]
            else:
                _Binding(self._decoder, slice(row, row + 1), x.shape[1], self).run(x[row : row + 1], total)

    def arrays(self, rows: slice) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Floats], Floats]:
        """(buffers, cross-attention's keys and values, logits) of some rows."""
        buffers = {name: array[rows] for name, array in self._buffers.items()}
        return buffers, {name: array[rows] for name, array in self._cross.items()}, self._logits[rows]

    def close(self) -> None:
        self._step.close()
        self._buffers, self._cross = {}, {}


class _Binding:
    """Some rows' arrays bound to the session. On the CPU a bound value shares its array's memory."""

    def __init__(self, decoder: OnnxDecoder, rows: slice, count: int, source: OnnxPass) -> None:
        self._session: Any = decoder.session
        self._binding: Any = decoder.session.io_binding()
        self._kept: list[Any] = []
        height = rows.stop - rows.start
        self._x: Floats = np.empty((height, count, decoder.shape.dim), np.float32)
        self._last = np.zeros(height, np.int32)
        self._total = np.zeros((), np.int32)
        buffers, cross, logits = source.arrays(rows)
        inputs = {"x": self._x, "last": self._last, "total": self._total, **cross, **buffers}
        values = {name: self._value(array) for name, array in inputs.items()}
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in buffers:
            self._binding.bind_ortvalue_output(f"{name}_out", values[name])
        self._binding.bind_ortvalue_output("logits", self._value(logits))

    def run(self, x: Floats, total: int) -> None:
        """Run positions total - n .. total - 1 through the decoder, x float32 [rows, n, dim]."""
        self._x[:] = x
        self._last[:] = total - 1
        self._total[...] = total
        self._session.run_with_iobinding(self._binding)

    def close(self) -> None:
        self._binding, self._kept = None, []

    def _value(self, array: npt.NDArray[Any]) -> Any:
        import onnxruntime

        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        self._kept.append((array, value))
        return value


def fresh_memory(size: int) -> npt.NDArray[np.uint8]:
    """Fresh memory of `size` bytes, on Linux in pages of 2 MB: it is read from end to end at every step."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8)
    try:
        memory = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"{size // 2**20} MB of keys and values: {error.strerror}") from error
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        log.debug("this system has no large pages")
    return np.frombuffer(memory, np.uint8)


def _same(conditions: Conditions, row: int) -> bool:
    """Whether a row is conditioned as the one before it."""
    parts = (conditions.prepend, conditions.cross, conditions.added)
    return all(part is None or bool((part[row] == part[row - 1]).all()) for part in parts)


def _mapped(path: Path) -> Floats:
    return np.asarray(np.load(path, mmap_mode="r"))
