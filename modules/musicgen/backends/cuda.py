"""The decoder on an NVIDIA card: half precision, each step one captured graph, sampled on the device.

A step reads its token, runs the rows, guides, samples and writes the next token without the host looking on; the
host looks every STRIDE steps. The random numbers are drawn on the host beforehand, the same ones every other backend
draws, so a take's numbers never depend on the takes beside it. Everything but the capture runs on any device, which
is how it is tested where there is no card.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.contract import EngineInfo
from modules.musicgen.backends.interface import Cursor, Guidance
from modules.musicgen.backends.torch_static import StaticDecoder
from modules.musicgen.backends.weights import DecoderWeights, positions
from modules.musicgen.conditions import Conditions
from modules.musicgen.engine import Codes
from modules.musicgen.patterns import UNKNOWN
from modules.musicgen.sampling import Sampler, SamplingRule, TensorBias

if TYPE_CHECKING:
    from modules.musicgen.backends.fused import FusedStep

log = logging.getLogger(__name__)

STRIDE = 16
"""Steps between two looks of the host: a cancel is heard within as many, some 15 ms."""
BUCKET = 256
"""Keys and values are read in multiples of this; each has a graph of its own."""
PREFILL = 256
"""Positions of a context fed at once."""


class CudaBackend:
    """One decoder on one device."""

    def __init__(self, weights: DecoderWeights, device: str, precision: str, why: str) -> None:
        import torch

        self._decoder: StaticDecoder | None = StaticDecoder(weights, device, getattr(torch, precision), fold=True)
        self._width = self._decoder.embedding.element_size()
        self._info = EngineInfo(backend="cuda", precision=precision, device=device, why=why)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def row_bytes(self, positions: int) -> int:
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        return self._decoder.shape.kv_bytes(positions, self._width)

    def cursor(self, guidance: Guidance, sampler: Sampler, positions: int, breathe: Callable[[], None]) -> Cursor:
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        return DeviceCursor(self._decoder, guidance, sampler, positions, breathe)

    def close(self) -> None:
        self._decoder = None


@dataclass
class _Rows:
    """The tensors of one pass. `where` int64 [1] is the place of the position fed next."""

    kv: list[tuple[Any, Any]]
    cross: list[tuple[Any, Any]]
    sine: Any
    added: Any
    prepend: Any
    where: Any
    doubled: bool


class DeviceCursor:
    """A window decoded where its tensors are.

    Args:
        steps: positions of the window's sequence.
        breathe: called between the pieces of a long context.
    """

    stride = STRIDE

    def __init__(
        self, decoder: StaticDecoder, guidance: Guidance, sampler: Sampler, steps: int, breathe: Callable[[], None]
    ) -> None:
        import torch

        self._decoder, self._guidance, self._breathe = decoder, guidance, breathe
        self._rule, self._steps = sampler.rule, steps
        self._sampler = sampler
        self._sequence: Any = None
        self._uniform: Any = None
        self._bias: Any = None
        self._at: Any = None
        self._fed = 0
        self._capturing = decoder.device.startswith("cuda")
        self._graphs: dict[int, Any] = {}
        with torch.inference_mode():
            self._passes = [self._rows(conditions) for conditions in guidance.passes]
            self._fused = self._fuse()

    def advance(self, sequence: Codes, start: int, stop: int) -> None:
        import torch

        with torch.inference_mode():
            if self._sequence is None:
                self._begin(sequence, start)
            for step in range(start, stop):
                self._step(step)
            # The one place where the host waits for the device.
            sequence[..., start:stop] = self._sequence[..., start:stop].to("cpu").numpy()

    def close(self) -> None:
        self._graphs.clear()
        self._passes.clear()
        self._sequence = self._uniform = self._bias = None

    def _rows(self, conditions: Conditions) -> _Rows:
        import torch

        decoder, offset = self._decoder, conditions.prepend.shape[1]
        # Whole buckets, so that the last one may be read to its end.
        length = -(-(offset + self._steps) // BUCKET) * BUCKET

        def put(array: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).to(decoder.device, decoder.dtype)

        return _Rows(
            kv=decoder.cache(conditions.rows, length),
            cross=[] if conditions.cross is None else decoder.cross(put(conditions.cross)),
            sine=put(positions(0, length, decoder.shape)),
            added=None if conditions.added is None else put(conditions.added),
            prepend=put(conditions.prepend),
            where=torch.full((1,), offset, dtype=torch.int64, device=decoder.device),
            doubled=conditions.rows > self._guidance.takes,
        )

    def _fuse(self) -> FusedStep | None:
        from modules.musicgen.backends import fused

        rows = self._passes[0].prepend.shape[0]
        if len(self._passes) > 1 or not fused.fits(self._decoder, rows):
            return None
        return fused.FusedStep(self._decoder, rows, self._guidance.takes)

    # ------------------------------------------------------------------------------------------- the context
    def _begin(self, sequence: Codes, start: int) -> None:
        """Put the sequence and the random numbers on the device and feed all but the last known position."""
        import torch

        device, codebooks = self._decoder.device, sequence.shape[1]
        self._sequence = torch.from_numpy(sequence).to(device)
        drawn = self._sampler.uniform(sequence.shape[2] - start, codebooks).astype(np.float32)
        lead = np.zeros((len(drawn), start, codebooks), np.float32)
        self._uniform = torch.from_numpy(np.concatenate([lead, drawn], axis=1)).to(device)
        if self._guidance.bias is not None:
            self._bias = TensorBias(self._guidance.bias, device)
        self._at = torch.full((1,), start - 1, dtype=torch.int64, device=device)
        for rows in self._passes:
            x = torch.cat([rows.prepend, self._embedded(rows, self._sequence[..., : start - 1])], dim=1)
            for first in range(0, x.shape[1], PREFILL):
                piece = x[:, first : first + PREFILL]
                where = torch.arange(first, first + piece.shape[1], device=device)
                self._decoder.run(piece + rows.sine[where], where, rows.kv, rows.cross, first + piece.shape[1])
                self._breathe()
            rows.where.fill_(x.shape[1])
        self._fed = start - 1

    def _embedded(self, rows: _Rows, tokens: Any) -> Any:
        import torch

        x = self._decoder.embed(torch.cat([tokens, tokens]) if rows.doubled else tokens)
        return x if rows.added is None else x + rows.added

    # ---------------------------------------------------------------------------------------------- a step
    def _step(self, step: int) -> None:
        while self._capturing and (bucket := self._bucket(step)) not in self._graphs:
            self._capture(bucket)
        if self._capturing:
            self._graphs[self._bucket(step)].replay()
        else:
            self._run(self._bucket(step))

    def _bucket(self, step: int) -> int:
        """How much of the buffers a step looks at. Fused kernels see to it themselves: one graph serves for all."""
        furthest = max(rows.prepend.shape[1] for rows in self._passes) + step
        return 0 if self._fused else -(-furthest // BUCKET) * BUCKET

    def _run(self, length: int) -> None:
        """One step in tensors alone: nothing here waits for the device or depends on a number of the host's."""
        if self._fused is not None:
            self._run_fused(self._fused, self._passes[0])
            return
        token = self._sequence.index_select(2, self._at)
        logits = [self._logits(rows, token, min(length, rows.sine.shape[0])) for rows in self._passes]
        self._at.add_(1)
        self._write(logits, token)

    def _run_fused(self, fused: FusedStep, rows: _Rows) -> None:
        logits = fused.logits(self._sequence, self._at, rows.where, rows.sine, rows.added, rows.kv, rows.cross)
        rows.where.add_(1)
        if self._bias is None and self._rule.top_p <= 0:
            fused.draw(self._sequence, self._at, self._uniform, self._rule, self._guidance.cfg_coef)
            self._at.add_(1)
            return
        token = self._sequence.index_select(2, self._at)
        self._at.add_(1)
        self._write([logits], token)

    def _write(self, logits: list[Any], token: Any) -> None:
        """Draw what comes after `token`, the column before the one that `at` points to now."""
        import torch

        guided = self._guide(logits)
        if self._bias is not None:
            guided = self._bias.add(guided, self._at, token[..., 0])
        drawn = draw(guided, self._rule, self._uniform.index_select(1, self._at)[:, 0])
        column = self._sequence.index_select(2, self._at)
        self._sequence.index_copy_(2, self._at, torch.where(column == UNKNOWN, drawn[..., None], column))

    def _logits(self, rows: _Rows, token: Any, length: int) -> Any:
        """float32 [rows, K, card] after one more position."""
        x = self._embedded(rows, token) + rows.sine.index_select(0, rows.where)
        logits = self._decoder.run(x, rows.where, rows.kv, rows.cross, length)
        rows.where.add_(1)
        return logits.float().unflatten(-1, (self._decoder.shape.codebooks, self._decoder.shape.card))

    def _guide(self, logits: list[Any]) -> Any:
        takes, coefficient = self._guidance.takes, self._guidance.cfg_coef
        if len(logits) == 1 and len(logits[0]) == takes:
            return logits[0]
        conditional, unconditional = logits if len(logits) == 2 else logits[0].split(takes)
        return unconditional + (conditional - unconditional) * coefficient

    def _capture(self, length: int) -> None:
        """Record a step over buffers of this length; a card that cannot runs each step as it is."""
        import torch

        kept = [self._sequence.clone(), self._at.clone(), *(rows.where.clone() for rows in self._passes)]
        try:
            side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._run(length)
            torch.cuda.current_stream().wait_stream(side)
            self._restore(kept)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run(length)
            self._graphs[length] = graph
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - of Triton's compiler, of the C compiler behind it, of the driver
            if self._fused is None:
                log.warning("this card records no graphs, each step is launched anew: %s", error)
                self._capturing = False
            else:
                log.warning("this card runs no fused kernels, the steps are slower: %s", error)
                self._fused, self._decoder.kernels_failed = None, True
        self._restore(kept)

    def _restore(self, kept: list[Any]) -> None:
        """Back to before a rehearsal; the keys and values it wrote are written again by the step itself."""
        for tensor, before in zip(
            [self._sequence, self._at, *(rows.where for rows in self._passes)], kept, strict=True
        ):
            tensor.copy_(before)


def draw(logits: Any, rule: SamplingRule, uniform: Any) -> Any:
    """sampling.Sampler.draw in torch: logits [takes, K, card], uniform [takes, K], float32 -> int64 [takes, K]."""
    import torch

    if rule.greedy:
        return logits.argmax(dim=-1)
    card = logits.shape[-1]
    if rule.top_p <= 0 and 0 < rule.top_k < card:
        edge = logits.topk(rule.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < edge, float("-inf"))
    weights = torch.softmax(logits / rule.temperature, dim=-1)
    if rule.top_p > 0:
        ranked, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(dim=-1) - ranked
        weights = torch.zeros_like(weights).scatter(-1, order, ranked.masked_fill(before > rule.top_p, 0.0))
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[..., -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= target[..., None]).sum(dim=-1)
