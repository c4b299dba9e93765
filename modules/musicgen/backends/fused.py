"""One step of the decoder in a few fused Triton kernels, for NVIDIA cards: what a step costs there is not arithmetic but
the reading of the weights, and the launching of kernels that read too little.

A layer is nine launches. LayerNorms are not launches of their own: their gains and offsets are folded into the weights
that follow (`StaticDecoder(fold=True)`), and mean and deviation are gathered while the product reads its input. The
attention reads exactly the positions there are, in pieces, so one recorded step serves a window from its first position
to its last. Sums are taken in float32 and always in the same order: the same step gives the same numbers.

Triton's interpreter runs the same kernels on a CPU, which is how they are tested where there is no card.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from modules.musicgen.backends.torch_static import StaticDecoder
from modules.musicgen.backends.weights import EPSILON
from modules.musicgen.patterns import UNKNOWN
from modules.musicgen.sampling import SamplingRule

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows, Macs, and torch's builds for CPUs come without it.
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads it when a kernel is defined."""
ROWS = 16
"""Rows of one pass at most: the tensor cores' smallest tile."""
NO_ACTIVATION, GELU, RELU = 0, 1, 2


@dataclass(frozen=True)
class Tile:
    """How a product is cut up: `outputs` of it a program, `inputs` of the weights read at a time, on `warps`."""

    outputs: int
    inputs: int
    warps: int


if triton is not None:

    @triton.jit
    def _product(
        x, w, sums, bias, n, rows, N: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr,
        NORM: tl.constexpr, ACT: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    ):  # fmt: skip
        """float32 [M, BN]: act(norm(x[rows, K]) @ w[n].T + bias[n]), for the outputs `n`."""
        m = tl.arange(0, M)
        kept = n < N
        total = tl.zeros([M], tl.float32)
        squares = tl.zeros([M], tl.float32)
        if DOT:
            product = tl.zeros([BN, M], tl.float32)
            for k0 in range(0, K, BK):
                k = k0 + tl.arange(0, BK)
                weights = tl.load(w + n[:, None] * K + k[None, :], mask=kept[:, None] & (k < K)[None, :], other=0.0)
                inputs = tl.load(
                    x + m[None, :] * K + k[:, None], mask=(m < rows)[None, :] & (k < K)[:, None], other=0.0
                )
                product = tl.dot(weights, inputs, product, input_precision="ieee")
                if NORM:
                    wide = inputs.to(tl.float32)
                    total += tl.sum(wide, 0)
                    squares += tl.sum(wide * wide, 0)
            y = tl.trans(product)
        else:
            gathered = tl.zeros([M, BN, BK], tl.float32)
            for k0 in tl.static_range(0, K, BK):
                k = k0 + tl.arange(0, BK)
                weights = tl.load(w + n[:, None] * K + k[None, :], mask=kept[:, None] & (k < K)[None, :], other=0.0)
                inputs = tl.load(
                    x + m[:, None] * K + k[None, :], mask=(m < rows)[:, None] & (k < K)[None, :], other=0.0
                )
                wide = inputs.to(tl.float32)
                gathered += wide[:, None, :] * weights.to(tl.float32)[None, :, :]
                if NORM:
                    total += tl.sum(wide, 1)
                    squares += tl.sum(wide * wide, 1)
            y = tl.sum(gathered, 2)
        if NORM:
            mean = total / K
            deviation = tl.rsqrt(tl.maximum(squares / K - mean * mean, 0.0) + EPS)
            y = deviation[:, None] * (y - mean[:, None] * tl.load(sums + n, mask=kept, other=0.0)[None, :])
        if bias is not None:
            y += tl.load(bias + n, mask=kept, other=0.0).to(tl.float32)[None, :]
        if ACT == 1:
            y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
        if ACT == 2:
            y = tl.maximum(y, 0.0)
        return y

    @triton.jit
    def _linear(
        x, w, sums, bias, out, rows, N: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr,
        NORM: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
        DOT: tl.constexpr,
    ):  # fmt: skip
        """out [rows, N] = (out +) the product."""
        n = tl.program_id(0) * BN + tl.arange(0, BN)
        y = _product(x, w, sums, bias, n, rows, N, K, EPS, NORM, ACT, M, BN, BK, DOT)
        m = tl.arange(0, M)
        there = (m < rows)[:, None] & (n < N)[None, :]
        at = out + m[:, None] * N + n[None, :]
        if ADD:
            y += tl.load(at, mask=there, other=0.0).to(tl.float32)
        tl.store(at, y.to(out.dtype.element_ty), mask=there)

    @triton.jit
    def _queries_keys_values(
        x, w, sums, bias, queries, keys, values, where, rows, length, DIM: tl.constexpr, D: tl.constexpr,
        EPS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    ):  # fmt: skip
        """The product's first third to `queries` [rows, DIM], the others to their place in the buffers."""
        n = tl.program_id(0) * BN + tl.arange(0, BN)
        y = _product(x, w, sums, bias, n, rows, 3 * DIM, DIM, EPS, True, 0, M, BN, BK, DOT).to(queries.dtype.element_ty)
        m = tl.arange(0, M)
        there = (m < rows)[:, None] & (n < 3 * DIM)[None, :]
        part = (tl.program_id(0) * BN) // DIM
        column = n - part * DIM
        place = (m[:, None] * (DIM // D) + (column // D)[None, :]) * length + tl.load(where)
        kept = place.to(tl.int64) * D + (column % D)[None, :]
        if part == 0:
            tl.store(queries + m[:, None] * DIM + column[None, :], y, mask=there)
        elif part == 1:
            tl.store(keys + kept, y, mask=there)
        else:
            tl.store(values + kept, y, mask=there)

    @triton.jit
    def _attend(
        queries, keys, values, where, highest, weight, mixed, out, length, SCALE: tl.constexpr, WHOLE: tl.constexpr,
        D: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """A head of a row looks at a part of the positions; what it gathers is joined by `_join`, or is all of it."""
        head, part = tl.program_id(0), tl.program_id(1)
        seen = length if WHOLE else (tl.load(where) + 1).to(tl.int32)
        share = tl.cdiv(tl.cdiv(seen, PARTS), BLOCK) * BLOCK
        first = part * share
        last = tl.minimum(first + share, seen)
        d = tl.arange(0, D)
        query = tl.load(queries + head * D + d).to(tl.float32) * SCALE
        at = head.to(tl.int64) * length * D
        peak = float("-inf")
        total = 0.0
        gathered = tl.zeros([D], tl.float32)
        for start in range(first, last, BLOCK):
            position = start + tl.arange(0, BLOCK)
            there = position < last
            near = at + position[:, None] * D + d[None, :]
            key = tl.load(keys + near, mask=there[:, None], other=0.0).to(tl.float32)
            value = tl.load(values + near, mask=there[:, None], other=0.0).to(tl.float32)
            score = tl.where(there, tl.sum(key * query[None, :], 1), float("-inf"))
            higher = tl.maximum(peak, tl.max(score, 0))
            share_of = tl.exp(score - higher)
            fade = tl.exp(peak - higher)
            gathered = gathered * fade + tl.sum(share_of[:, None] * value, 0)
            total = total * fade + tl.sum(share_of, 0)
            peak = higher
        if PARTS == 1:
            tl.store(out + head * D + d, (gathered / total).to(out.dtype.element_ty))
        else:
            piece = head * PARTS + part
            tl.store(highest + piece, peak)
            tl.store(weight + piece, total)
            tl.store(mixed + piece * D + d, gathered)

    @triton.jit
    def _join(highest, weight, mixed, out, D: tl.constexpr, PARTS: tl.constexpr):
        head = tl.program_id(0)
        piece = head * PARTS + tl.arange(0, PARTS)
        d = tl.arange(0, D)
        peak = tl.load(highest + piece)
        share = tl.exp(peak - tl.max(peak, 0))
        total = tl.sum(share * tl.load(weight + piece), 0)
        gathered = tl.sum(share[:, None] * tl.load(mixed + piece[:, None] * D + d[None, :]), 0)
        tl.store(out + head * D + d, (gathered / total).to(out.dtype.element_ty))

    @triton.jit
    def _embed(
        sequence, at, where, tables, sine, added, out, steps, takes, DIM: tl.constexpr, CODEBOOKS: tl.constexpr,
        WORDS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """A row's token, one of each codebook, as the sum of their vectors and its position's."""
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = column < DIM
        known = sequence + (row % takes) * CODEBOOKS * steps + tl.load(at)
        x = tl.load(sine + tl.load(where) * DIM + column, mask=there, other=0.0).to(tl.float32)
        for book in tl.static_range(CODEBOOKS):
            token = tl.load(known + book * steps)
            x += tl.load(tables + (book * WORDS + token) * DIM + column, mask=there, other=0.0).to(tl.float32)
        if added is not None:
            x += tl.load(added + row * DIM + column, mask=there, other=0.0).to(tl.float32)
        tl.store(out + row * DIM + column, x.to(out.dtype.element_ty), mask=there)

    @triton.jit
    def _draw(
        logits, uniform, sequence, at, steps, takes, coefficient, temperature, GUIDED: tl.constexpr,
        CODEBOOKS: tl.constexpr, CARD: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, GREEDY: tl.constexpr,
        OPEN: tl.constexpr,
    ):  # fmt: skip
        """The next token of one codebook of one take, written where the sequence is still open."""
        take, book = tl.program_id(0), tl.program_id(1)
        code = tl.arange(0, WIDTH)
        there = code < CARD
        row = (take * CODEBOOKS + book) * CARD + code
        logit = tl.load(logits + row, mask=there, other=float("-inf"))
        if GUIDED:
            free = tl.load(logits + takes * CODEBOOKS * CARD + row, mask=there, other=float("-inf"))
            logit = tl.where(there, free + (logit - free) * coefficient, float("-inf"))
        if GREEDY:
            token = tl.argmax(logit, 0)
        else:
            if TOP_K < CARD:
                # The bits of a float, ordered as the numbers are; the edge is found a bit at a time.
                bits = logit.to(tl.int32, bitcast=True)
                order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
                edge = tl.where(tl.sum((order >= 0).to(tl.int32), 0) >= TOP_K, 0, -2147483648).to(tl.int32)
                for bit in tl.static_range(31):
                    higher = edge | (1 << (30 - bit))
                    edge = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= TOP_K, higher, edge)
                logit = tl.where(order >= edge, logit, float("-inf"))
            weights = tl.exp((logit - tl.max(logit, 0)) / temperature)
            cumulative = tl.cumsum(weights, 0)
            total = tl.max(cumulative, 0)
            drawn = tl.load(uniform + (take * steps + tl.load(at) + 1) * CODEBOOKS + book)
            target = tl.minimum(drawn * total, total * 0.99999994)
            token = tl.sum((cumulative <= target).to(tl.int32), 0)
        place = sequence + (take * CODEBOOKS + book) * steps + tl.load(at) + 1
        known = tl.load(place)
        tl.store(place, tl.where(known == OPEN, token.to(tl.int64), known))


def fits(decoder: StaticDecoder, rows: int) -> bool:
    """Whether these kernels can run a step of the decoder for so many rows."""
    shape = decoder.shape
    return (
        triton is not None
        and (decoder.device.startswith("cuda") or INTERPRETED)
        and decoder.folded
        and rows <= ROWS
        and shape.head_dim == triton.next_power_of_2(shape.head_dim)
        and shape.dim % ROWS == 0
    )


def tile(outputs: int, inputs: int, rows: int) -> Tile:
    """What is fastest for a product of this size: see docs/decisions/026."""
    del outputs
    if rows <= 2:
        return Tile(8, min(512, triton.next_power_of_2(inputs)), 4)
    return Tile(16, min(256, triton.next_power_of_2(inputs)), 4)


class FusedStep:
    """A step of one pass over buffers that stay where they are, so that it can be recorded.

    Args:
        rows: of the pass; `takes` of them are conditional, and come first.
    """

    def __init__(self, decoder: StaticDecoder, rows: int, takes: int) -> None:
        import torch

        shape = decoder.shape
        self._decoder, self._rows, self._takes = decoder, rows, takes
        # Enough programs that every multiprocessor has some, and few enough that joining them costs little.
        parts = 1
        while parts < 16 and rows * shape.heads * parts < 256:
            parts *= 2
        self._parts = parts

        def room(*size: int, dtype: Any = None) -> Any:
            return torch.zeros(size, device=decoder.device, dtype=dtype or decoder.dtype)

        self._x, self._queries, self._mixed = room(rows, shape.dim), room(rows, shape.dim), room(rows, shape.dim)
        self._hidden = room(rows, shape.hidden)
        self._logits = room(rows, shape.codebooks, shape.card, dtype=torch.float32)
        pieces = rows * shape.heads * parts
        self._highest, self._weight = room(pieces, dtype=torch.float32), room(pieces, dtype=torch.float32)
        self._gathered = room(pieces, shape.head_dim, dtype=torch.float32)

    def logits(self, sequence: Any, at: Any, where: Any, sine: Any, added: Any, kv: Any, cross: Any) -> Any:
        """float32 [rows, K, card] after one more position; the array is written over by the next call.

        Args:
            sequence: int64 [takes, K, steps]; its column `at`, int64 [1], is fed.
            where: int64 [1], the position's place in the buffers `kv`.
            sine, added: [length, dim] and [rows, 1, dim] or None.
            cross: what StaticDecoder.cross gave.
        """
        decoder, shape = self._decoder, self._decoder.shape
        dim, block = shape.dim, triton.next_power_of_2(min(shape.dim, 512))
        _embed[(self._rows, triton.cdiv(dim, block))](
            sequence, at, where, decoder.embedding, sine, added, self._x, sequence.shape[2], self._takes,
            DIM=dim, CODEBOOKS=shape.codebooks, WORDS=shape.card + 1, BLOCK=block,
        )  # fmt: skip
        act = GELU if shape.activation == "gelu" else RELU
        for index, layer in enumerate(decoder.layers):
            self._project(layer.qkv, *kv[index], where)
            self._attention(*kv[index], where, None)
            self._linear(self._mixed, layer.out, self._x, add=True)
            if layer.cross_q is not None:
                self._linear(self._x, layer.cross_q, self._queries, norm=True)
                self._attention(*cross[index], where, cross[index][0].shape[2])
                self._linear(self._mixed, layer.cross_out, self._x, add=True)
            self._linear(self._x, layer.feed_in, self._hidden, norm=True, act=act)
            self._linear(self._hidden, layer.feed_out, self._x, add=True)
        self._linear(self._x, decoder.head, self._logits.flatten(1), norm=True)
        return self._logits

    def draw(self, sequence: Any, at: Any, uniform: Any, rule: SamplingRule, coefficient: float) -> None:
        """Write the column after `at` of `sequence` where it is open; `uniform` float32 [takes, steps, K]."""
        shape = self._decoder.shape
        top_k = rule.top_k if 0 < rule.top_k < shape.card else shape.card
        _draw[(self._takes, shape.codebooks)](
            self._logits, uniform, sequence, at, sequence.shape[2], self._takes, float(coefficient),
            float(rule.temperature) if not rule.greedy else 1.0, GUIDED=self._rows > self._takes,
            CODEBOOKS=shape.codebooks, CARD=shape.card, WIDTH=triton.next_power_of_2(shape.card), TOP_K=top_k,
            GREEDY=rule.greedy, OPEN=UNKNOWN, num_warps=8,
        )  # fmt: skip

    def _tile(self, weight: Any) -> tuple[Tile, dict[str, Any]]:
        found = tile(*weight.shape, self._rows)
        dot = self._rows > 2
        rows = ROWS if dot else triton.next_power_of_2(self._rows)
        options = {"M": rows, "BN": found.outputs, "BK": found.inputs, "DOT": dot, "num_warps": found.warps}
        return found, options

    def _linear(
        self, x: Any, pair: Any, out: Any, norm: bool = False, act: int = NO_ACTIVATION, add: bool = False
    ) -> None:
        weight, bias = pair
        outputs, inputs = weight.shape
        cut, options = self._tile(weight)
        _linear[(triton.cdiv(outputs, cut.outputs),)](
            x, weight, self._decoder.sums.get(weight), bias, out, self._rows,
            N=outputs, K=inputs, EPS=EPSILON, NORM=norm, ACT=act, ADD=add, **options,
        )  # fmt: skip

    def _project(self, pair: Any, keys: Any, values: Any, where: Any) -> None:
        weight, bias = pair
        cut, options = self._tile(weight)
        _queries_keys_values[(triton.cdiv(weight.shape[0], cut.outputs),)](
            self._x, weight, self._decoder.sums[weight], bias, self._queries, keys, values, where, self._rows,
            keys.shape[2], DIM=weight.shape[1], D=self._decoder.shape.head_dim, EPS=EPSILON, **options,
        )  # fmt: skip

    def _attention(self, keys: Any, values: Any, where: Any, whole: int | None) -> None:
        """Over the positions up to `where`, or over all of `whole`."""
        shape, heads = self._decoder.shape, self._rows * self._decoder.shape.heads
        parts = 1 if whole else self._parts
        _attend[(heads, parts)](
            self._queries, keys, values, where, self._highest, self._weight, self._gathered, self._mixed,
            keys.shape[2], SCALE=shape.head_dim**-0.5, WHOLE=whole is not None, D=shape.head_dim, PARTS=parts,
            BLOCK=16 if whole else 64, num_warps=4,
        )  # fmt: skip
        if parts > 1:
            _join[(heads,)](
                self._highest, self._weight, self._gathered, self._mixed, D=shape.head_dim, PARTS=parts, num_warps=1
            )
