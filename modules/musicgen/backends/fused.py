"""A step of the decoder in a few Triton kernels, for NVIDIA cards.

What a step costs there is not arithmetic but reading the weights, and launching kernels that read too little.

A layer is nine launches. LayerNorms are not launches of their own: their gains and offsets are folded into the weights
that follow (`StaticDecoder(fold=True)`), and mean and deviation are gathered while the product reads its input. The
attention reads exactly the positions there are, in pieces, so one recorded step serves a window from its first position
to its last. Sums are taken in float32 and always in the same order: the same step gives the same numbers.

Triton's interpreter runs the same kernels on a CPU, which is how they are tested where there is no card.
"""

from __future__ import annotations

from typing import Any

from modules.musicgen.backends.torch_static import StaticDecoder
from modules.musicgen.backends.weights import EPSILON
from modules.musicgen.patterns import UNKNOWN
from modules.musicgen.sampling import SamplingRule

try:
    import triton

    from modules.musicgen.backends import kernels
except ImportError:  # Windows, Macs, and torch's builds for CPUs come without it.
    triton = None

ROWS = 16
"""Rows of one pass at most: the tensor cores' smallest tile."""
FEW_ROWS = 2
"""Up to so many are multiplied number by number, more on the tensor cores."""
ATTEND: dict[str, int] = {"BLOCK": 32, "STAGES": 1, "num_warps": 2}
"""Positions looked at at a time, and by how many warps."""
LEAST = 32
"""What every size must be a multiple of."""
SPAN = 1024
"""Inputs that a program takes of a product that has many of them and few outputs."""
NO_ACTIVATION, GELU, RELU = 0, 1, 2


def fits(decoder: StaticDecoder, rows: int) -> bool:
    """Whether these kernels can run a step of the decoder for so many rows."""
    return triton is not None and decoder.device.startswith("cuda") and suits(decoder, rows)


def suits(decoder: StaticDecoder, rows: int) -> bool:
    """Whether the sizes are such that they can."""
    shape = decoder.shape
    return (
        decoder.folded
        and not decoder.kernels_failed
        and rows <= ROWS
        and shape.head_dim == triton.next_power_of_2(shape.head_dim)
        and all(size % LEAST == 0 for size in (shape.dim, shape.hidden))
    )


def piece(size: int, most: int) -> int:
    """The largest power of two that divides `size` and is not above `most`."""
    return min(most, size & -size)


def starts_early(device: str) -> bool:
    """Whether a kernel may start, and read its weights, while the one before it ends: on Hopper and later."""
    import torch

    if not device.startswith("cuda") or not hasattr(getattr(triton.language.extra, "cuda", None), "gdc_wait"):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


class FusedStep:
    """A step of one pass over buffers that stay where they are, so that it can be recorded.

    Args:
        rows: of the pass; `takes` of them are conditional, and come first.
    """

    def __init__(self, decoder: StaticDecoder, rows: int, takes: int) -> None:
        import torch

        shape = decoder.shape
        self._decoder, self._rows, self._takes = decoder, rows, takes
        self._few = rows <= FEW_ROWS
        # Enough programs that every multiprocessor has some, and few enough that joining them costs little.
        parts = 1
        while parts < 16 and rows * shape.heads * parts < 1024:
            parts *= 2
        self._parts = parts
        self._early: dict[str, Any] = (
            {"PDL": True, "launch_pdl": True} if starts_early(decoder.device) else {"PDL": False}
        )

        def room(*size: int, dtype: Any = None) -> Any:
            return torch.zeros(size, device=decoder.device, dtype=dtype or decoder.dtype)

        self._x, self._queries, self._mixed = room(rows, shape.dim), room(rows, shape.dim), room(rows, shape.dim)
        self._hidden = room(rows, shape.hidden)
        self._logits = room(rows, shape.codebooks, shape.card, dtype=torch.float32)
        pieces = rows * shape.heads * parts
        self._highest, self._weight = room(pieces, dtype=torch.float32), room(pieces, dtype=torch.float32)
        shares = shape.hidden // piece(shape.hidden, SPAN)
        shared = not self._few and shape.hidden > shape.dim
        self._pieces = room(shares, rows, shape.dim, dtype=torch.float32) if shared else None
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
        kernels.embed[(self._rows, triton.cdiv(dim, block))](
            sequence, at, where, decoder.embedding, sine, added, self._x, sequence.shape[2], self._takes,
            DIM=dim, CODEBOOKS=shape.codebooks, WORDS=shape.card + 1, BLOCK=block, **self._early,
        )  # fmt: skip
        act = GELU if shape.activation == "gelu" else RELU
        for index, layer in enumerate(decoder.layers):
            keys, values = kv[index]
            self._project(layer.qkv, keys, values, where)
            self._attention(keys, values, where, None)
            self._linear(self._mixed, layer.out, self._x, add=True)
            if layer.cross_q is not None:
                self._linear(self._x, layer.cross_q, self._queries, norm=True)
                keys, values = cross[index]
                self._attention(keys, values, where, keys.shape[2])
                self._linear(self._mixed, layer.cross_out, self._x, add=True)
            self._linear(self._x, layer.feed_in, self._hidden, norm=True, act=act)
            self._linear(self._hidden, layer.feed_out, self._x, add=True)
        self._linear(self._x, decoder.head, self._logits.flatten(1), norm=True)
        return self._logits

    def draw(self, sequence: Any, at: Any, uniform: Any, rule: SamplingRule, coefficient: float) -> None:
        """Write the column after `at` of `sequence` where it is open; `uniform` float32 [takes, steps, K]."""
        shape = self._decoder.shape
        top_k = rule.top_k if 0 < rule.top_k < shape.card else shape.card
        kernels.draw[(self._takes, shape.codebooks)](
            self._logits, uniform, sequence, at, sequence.shape[2], self._takes, float(coefficient),
            float(rule.temperature) if not rule.greedy else 1.0, GUIDED=self._rows > self._takes,
            CODEBOOKS=shape.codebooks, CARD=shape.card, WIDTH=triton.next_power_of_2(shape.card), TOP_K=top_k,
            GREEDY=rule.greedy, OPEN=UNKNOWN, num_warps=8, **self._early,
        )  # fmt: skip

    def _cut(self, inputs: int) -> dict[str, Any]:
        """How a product is cut up, as measured: see docs/decisions/026."""
        if self._few:
            rows = triton.next_power_of_2(self._rows)
            cut = {"M": rows, "BN": 8, "BK": piece(inputs, 1024), "num_warps": 4}
        else:
            rows = max(8, triton.next_power_of_2(self._rows))
            cut = {"M": rows, "BN": 16, "BK": piece(inputs, 256), "num_warps": 2}
        return {**self._early, **cut}

    def _linear(
        self, x: Any, pair: Any, out: Any, norm: bool = False, act: int = NO_ACTIVATION, add: bool = False
    ) -> None:
        weight, bias = pair
        outputs, inputs = weight.shape
        if add and self._pieces is not None and inputs > outputs:
            self._in_shares(x, pair, out)
            return
        cut = self._cut(inputs)
        kernels.linear[(triton.cdiv(outputs, cut["BN"]),)](
            x, weight, self._decoder.sums.get(weight), bias, out, self._rows,
            N=outputs, K=inputs, EPS=EPSILON, NORM=norm, ACT=act, ADD=add, FEW=self._few, **cut,
        )  # fmt: skip

    def _in_shares(self, x: Any, pair: Any, out: Any) -> None:
        """A product of many inputs and few outputs would keep a few programs busy for long; here each has a stretch."""
        weight, bias = pair
        outputs, inputs = weight.shape
        span = piece(inputs, SPAN)
        cut = self._cut(span)
        kernels.share[(triton.cdiv(outputs, cut["BN"]), inputs // span)](
            x, weight, self._pieces, self._rows, N=outputs, K=inputs, SPAN=span, **cut
        )
        size = self._rows * outputs
        kernels.add[(triton.cdiv(size, 256),)](
            self._pieces, bias, out, size, N=outputs, PARTS=inputs // span, BLOCK=256, num_warps=2, **self._early
        )

    def _project(self, pair: Any, keys: Any, values: Any, where: Any) -> None:
        weight, bias = pair
        cut = self._cut(weight.shape[1])
        kernels.queries_keys_values[(triton.cdiv(weight.shape[0], cut["BN"]),)](
            self._x, weight, self._decoder.sums[weight], bias, self._queries, keys, values, where, self._rows,
            keys.shape[2], DIM=weight.shape[1], D=self._decoder.shape.head_dim, EPS=EPSILON,
            FEW=self._few, **cut,
        )  # fmt: skip

    def _attention(self, keys: Any, values: Any, where: Any, whole: int | None) -> None:
        """Over the positions up to `where`, or over all of `whole`."""
        shape, heads = self._decoder.shape, self._rows * self._decoder.shape.heads
        parts = 1 if whole else self._parts
        kernels.attend[(heads, parts)](
            self._queries, keys, values, where, self._highest, self._weight, self._gathered, self._mixed,
            keys.shape[2], SCALE=shape.head_dim**-0.5, WHOLE=whole is not None, D=shape.head_dim, PARTS=parts,
            **({**ATTEND, "BLOCK": 16} if whole else ATTEND), **self._early,
        )  # fmt: skip
        if parts > 1:
            kernels.join[(heads,)](
                self._highest,
                self._weight,
                self._gathered,
                self._mixed,
                D=shape.head_dim,
                PARTS=parts,
                num_warps=1,
                **self._early,
            )
