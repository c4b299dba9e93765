"""The decoder in plain torch with a fixed buffer of keys and values: float32 for Macs and odd CPUs.

Its arithmetic (`StaticDecoder`) is what the cuda backend captures as a graph, so a CPU can test both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.contract import EngineInfo
from modules.musicgen.backends.interface import Cursor, Guidance, HostCursor
from modules.musicgen.backends.weights import EPSILON, DecoderWeights, Linear, Norm, Shape, positions
from modules.musicgen.conditions import Conditions
from modules.musicgen.engine import Codes
from modules.musicgen.sampling import Logits, Sampler


@dataclass(frozen=True)
class _Layer:
    """Tensors of one layer; each projection is (weight [out, in], bias or None), each norm (gain, offset)."""

    norm_self: Any
    qkv: Any
    out: Any
    norm_cross: Any
    cross_q: Any
    cross_kv: Any
    cross_out: Any
    norm_feed: Any
    feed_in: Any
    feed_out: Any


class StaticDecoder:
    """The transformer's arithmetic over tensors of one dtype on one device.

    Everything that changes from step to step comes in as a tensor, so one recorded step serves for all.

    Args:
        fold: put the gains and offsets of the norms into the weights and biases of what follows them. `sums` then holds
            the sums of those weights by output, float32: what a mean taken off the input takes off the product.
    """

    def __init__(self, weights: DecoderWeights, device: str, dtype: Any, *, fold: bool = False) -> None:
        import torch

        def put(array: Any) -> Any:
            return None if array is None else torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        def linear(source: Linear | None, before: Norm | None = None) -> Any:
            if source is None:
                return None
            if before is None or not fold:
                return put(source.weight), put(source.bias)
            offset = source.weight @ before.offset
            weight = put(source.weight * before.gain)
            self.sums[weight] = weight.float().sum(dim=1)
            return weight, put(offset if source.bias is None else offset + source.bias)

        def norm(source: Norm | None) -> Any:
            if source is None:
                return None
            return (None, None) if fold else (put(source.gain), put(source.offset))

        self.shape: Shape = weights.shape
        self.device, self.dtype, self.folded = device, dtype, fold
        self.sums: dict[Any, Any] = {}
        self.kernels_failed = False
        """The fused kernels could not be made for it; not tried again with every window."""
        self.embedding: Any = put(weights.embedding())
        self.layers = [
            _Layer(
                norm(layer.norm_self), linear(layer.qkv, layer.norm_self), linear(layer.out), norm(layer.norm_cross),
                linear(layer.cross_q, layer.norm_cross), linear(layer.cross_kv), linear(layer.cross_out),
                norm(layer.norm_feed), linear(layer.feed_in, layer.norm_feed), linear(layer.feed_out),
            )
            for layer in weights.layers()
        ]  # fmt: skip
        out_norm, head = weights.head()
        self.out_norm, self.head = norm(out_norm), linear(head, out_norm)

    def cross(self, states: Any) -> list[tuple[Any, Any]]:
        """Keys and values [rows, heads, S, head_dim] of every layer's cross-attention, from [rows, S, dim]."""
        found = []
        for layer in self.layers:
            keys, values = _linear(states, layer.cross_kv).chunk(2, dim=-1)
            found.append((self._split(keys).contiguous(), self._split(values).contiguous()))
        return found

    def cache(self, rows: int, length: int) -> list[tuple[Any, Any]]:
        """Room for `length` positions, [rows, heads, length, head_dim] twice a layer, zeroed."""
        import torch

        size = (rows, self.shape.heads, length, self.shape.head_dim)
        return [
            (
                torch.zeros(size, device=self.device, dtype=self.dtype),
                torch.zeros(size, device=self.device, dtype=self.dtype),
            )
            for _ in self.layers
        ]

    def embed(self, tokens: Any) -> Any:
        """int64 [rows, K, n] -> [rows, n, dim]: the sum of the codebooks' embeddings."""
        import torch

        tables = torch.arange(self.shape.codebooks, device=tokens.device)[None, :, None]
        return self.embedding[tables, tokens].sum(dim=1)

    def run(self, x: Any, where: Any, kv: list[tuple[Any, Any]], cross: list[tuple[Any, Any]], length: int) -> Any:
        """Through all layers.

        Args:
            x: [rows, n, dim], embeddings with their positions added.
            where: int64 [n], the positions' places in the buffers.
            kv, cross: what `cache` and `cross` gave.
            length: how much of the buffers is looked at; more than the highest of `where`.
        Returns:
            logits [rows, K * card] after the last position.
        """
        import torch

        seen = torch.arange(length, device=x.device)[None, :] <= where[:, None]
        for index, layer in enumerate(self.layers):
            keys, values = kv[index]
            q, k, v = _linear(_norm(x, layer.norm_self), layer.qkv).chunk(3, dim=-1)
            keys.index_copy_(2, where, self._split(k))
            values.index_copy_(2, where, self._split(v))
            x = x + self._attend(q, keys[:, :, :length], values[:, :, :length], layer.out, seen)
            if layer.cross_q is not None:
                q = _linear(_norm(x, layer.norm_cross), layer.cross_q)
                x = x + self._attend(q, *cross[index], layer.cross_out, None)
            x = x + _linear(self._activate(_linear(_norm(x, layer.norm_feed), layer.feed_in)), layer.feed_out)
        return _linear(_norm(x[:, -1], self.out_norm), self.head)

    def _attend(self, q: Any, keys: Any, values: Any, out: Any, seen: Any) -> Any:
        import torch

        mixed = torch.nn.functional.scaled_dot_product_attention(self._split(q), keys, values, attn_mask=seen)
        return _linear(mixed.transpose(1, 2).flatten(2), out)

    def _split(self, x: Any) -> Any:
        """[rows, n, dim] -> [rows, heads, n, head_dim]."""
        return x.unflatten(-1, (self.shape.heads, self.shape.head_dim)).transpose(1, 2)

    def _activate(self, x: Any) -> Any:
        import torch

        return torch.nn.functional.gelu(x) if self.shape.activation == "gelu" else torch.relu(x)


class TorchBackend:
    """StaticDecoder behind the Backend interface, sampled on the CPU."""

    def __init__(self, weights: DecoderWeights, device: str, why: str) -> None:
        import torch

        self._decoder: StaticDecoder | None = StaticDecoder(weights, device, torch.float32)
        self._shape = weights.shape
        self._info = EngineInfo(backend="torch", precision="float32", device=device, why=why)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def row_bytes(self, positions: int) -> int:
        return self._shape.kv_bytes(positions, 4)

    def cursor(self, guidance: Guidance, sampler: Sampler, positions: int, breathe: Callable[[], None]) -> Cursor:
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        decoder = self._decoder
        return HostCursor(lambda conditions: TorchPass(decoder, conditions, positions), guidance, sampler, breathe)

    def close(self) -> None:
        self._decoder = None


class TorchPass:
    """Rows on their way through a StaticDecoder."""

    def __init__(self, decoder: StaticDecoder, conditions: Conditions, positions_: int) -> None:
        import torch

        self._decoder, self._shape = decoder, decoder.shape
        self._length = conditions.prepend.shape[1] + positions_
        self._position = 0
        with torch.inference_mode():
            self._pending = self._put(conditions.prepend)
            self._added = None if conditions.added is None else self._put(conditions.added)
            self._cross = [] if conditions.cross is None else decoder.cross(self._put(conditions.cross))
            self._kv = decoder.cache(conditions.rows, self._length)
            self._sine = self._put(positions(0, self._length, self._shape))

    def feed(self, tokens: Codes) -> Logits:
        import torch

        with torch.inference_mode():
            x = self._decoder.embed(torch.from_numpy(np.ascontiguousarray(tokens)).to(self._decoder.device))
            if self._added is not None:
                x = x + self._added
            if self._pending is not None:
                x, self._pending = torch.cat([self._pending, x], dim=1), None
            first, last = self._position, self._position + x.shape[1]
            where = torch.arange(first, last, device=x.device)
            logits = self._decoder.run(x + self._sine[first:last], where, self._kv, self._cross, last)
            self._position = last
            rows = logits.to("cpu", torch.float32).numpy()
        return np.asarray(rows.reshape(len(rows), self._shape.codebooks, self._shape.card), np.float32)

    def close(self) -> None:
        self._kv, self._cross = [], []

    def _put(self, array: Any) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._decoder.device, self._decoder.dtype)


def _linear(x: Any, pair: Any) -> Any:
    import torch

    return torch.nn.functional.linear(x, *pair)


def _norm(x: Any, pair: Any) -> Any:
    import torch

    gain, offset = pair
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), gain, offset, EPSILON)
