"""The decoder's parameters taken out of a loaded LMModel and checked, one tensor at a time.

Only MusicGen's kind of decoder is known here: pre-norm layers, sinusoidal positions, causal attention over all
that was. Anything else is Unsupported, and audiocraft's own loop runs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modules.contract import ModelBroken

Floats: TypeAlias = npt.NDArray[np.float32]

EPSILON = 1e-5
"""Of every LayerNorm in audiocraft's transformer."""


class Unsupported(Exception):
    """This decoder is built in a way only audiocraft's own modules know."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. `cross` says whether its layers attend to a condition."""

    dim: int
    heads: int
    layers: int
    hidden: int
    codebooks: int
    card: int
    cross: bool
    activation: str
    position_scale: float
    max_period: float

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def parameters(self) -> int:
        """Weights read in each step: all matrices but the cross-attention's keys and values."""
        per_layer = 4 * self.dim**2 + (2 * self.dim**2 if self.cross else 0) + 2 * self.dim * self.hidden
        return self.layers * per_layer + self.codebooks * self.card * self.dim

    def kv_bytes(self, positions: int, width: int) -> int:
        """Bytes of one row's keys and values at `width` bytes a number."""
        return 2 * self.layers * self.dim * positions * width


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias: weight float32 [out, in], bias float32 [out] or None."""

    weight: Floats
    bias: Floats | None


@dataclass(frozen=True)
class Norm:
    gain: Floats
    offset: Floats


@dataclass(frozen=True)
class Layer:
    """One decoder layer, LayerScale folded in; the cross-attention parts are None where the model has none."""

    norm_self: Norm
    qkv: Linear
    out: Linear
    norm_cross: Norm | None
    cross_q: Linear | None
    cross_kv: Linear | None
    cross_out: Linear | None
    norm_feed: Norm
    feed_in: Linear
    feed_out: Linear


class DecoderWeights:
    """Reads an LMModel's parameters as float32 arrays, a layer at a time so that a large model is never held twice.

    An LMModel with `layer_states` has one layer, which is filled with each layer's parameters in turn.
    """

    def __init__(self, lm: Any) -> None:
        self._lm: Any = lm
        self._states: list[dict[str, Any]] | None = vars(lm).get("layer_states")
        self.shape = _shape(lm, len(self._states) if self._states else len(lm.transformer.layers))

    def embedding(self) -> Floats:
        """float32 [K, card + 1, dim]; the last row of each is the special token's."""
        size = (self.shape.card + 1, self.shape.dim)
        return np.stack([_tensor(table.weight, size, f"emb.{k}") for k, table in enumerate(self._lm.emb)])

    def fingerprint(self) -> str:
        """sha256 over the parameters, for a model that is no file."""
        digest = hashlib.sha256()
        for name, parameter in self._lm.named_parameters():
            if not name.startswith("condition_provider"):
                digest.update(name.encode())
                digest.update(_bytes(parameter))
        return digest.hexdigest()

    def layers(self) -> Iterator[Layer]:
        for index in range(self.shape.layers):
            yield self._layer(self._module(index), f"transformer.layers.{index}")

    def _module(self, index: int) -> Any:
        if self._states is None:
            return self._lm.transformer.layers[index]
        layer = self._lm.transformer.layers[0]
        try:
            # The module rewrites the mapping it is given.
            layer.load_state_dict(dict(self._states[index]))
        except RuntimeError as error:
            words = " ".join(str(error).split())[:300]
            raise ModelBroken(f"transformer.layers.{index} does not fit the model: {words}") from error
        return layer

    def head(self) -> tuple[Norm, Linear]:
        """The last norm and all codebooks' output layers as one, [K * card, dim]."""
        shape = self.shape
        parts = [_linear(part, (shape.card, shape.dim), f"linears.{k}") for k, part in enumerate(self._lm.linears)]
        biases = [part.bias for part in parts if part.bias is not None]
        joined = Linear(np.concatenate([part.weight for part in parts]), np.concatenate(biases) if biases else None)
        return _norm(self._lm.out_norm, shape.dim, "out_norm"), joined

    def _layer(self, layer: Any, name: str) -> Layer:
        dim, hidden, cross = self.shape.dim, self.shape.hidden, self.shape.cross
        qkv, out = _attention(layer.self_attn, dim, f"{name}.self_attn")
        other: tuple[Linear, Linear] | None = None
        if cross:
            other = _attention(layer.cross_attention, dim, f"{name}.cross_attention")
        return Layer(
            norm_self=_norm(layer.norm1, dim, f"{name}.norm1"),
            qkv=qkv,
            out=_scaled(out, layer.layer_scale_1),
            norm_cross=_norm(layer.norm_cross, dim, f"{name}.norm_cross") if cross else None,
            cross_q=None if other is None else _rows(other[0], 0, dim),
            cross_kv=None if other is None else _rows(other[0], dim, 3 * dim),
            cross_out=None if other is None else _scaled(other[1], layer.layer_scale_cross),
            norm_feed=_norm(layer.norm2, dim, f"{name}.norm2"),
            feed_in=_linear(layer.linear1, (hidden, dim), f"{name}.linear1"),
            feed_out=_scaled(_linear(layer.linear2, (dim, hidden), f"{name}.linear2"), layer.layer_scale_2),
        )


def positions(first: int, count: int, shape: Shape) -> Floats:
    """The sinusoidal embedding of positions first .. first + count - 1, scaled, float32 [count, dim]."""
    half = shape.dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half - 1)
    period = np.float32(shape.max_period) ** exponent
    phase = np.arange(first, first + count, dtype=np.float32)[:, None] / period
    sine = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    return np.asarray(np.float32(shape.position_scale) * sine, np.float32)


def _shape(lm: Any, layers: int) -> Shape:
    transformer = lm.transformer
    if not layers:
        raise ModelBroken("the decoder has no layers")
    first = transformer.layers[0]
    _refuse_other_kinds(lm, first)
    return Shape(
        dim=int(lm.dim),
        heads=int(first.self_attn.num_heads),
        layers=layers,
        hidden=int(first.linear1.weight.shape[0]),
        codebooks=int(lm.n_q),
        card=int(lm.card),
        cross=first.cross_attention is not None,
        activation=_activation(first),
        position_scale=float(transformer.positional_scale),
        max_period=float(transformer.max_period),
    )


def _refuse_other_kinds(lm: Any, layer: Any) -> None:
    attention = layer.self_attn
    wrong = {
        "post-norm layers": not layer.norm_first,
        f"positions of kind {lm.transformer.positional_embedding}": lm.transformer.positional_embedding != "sin",
        "rotary positions": attention.rope is not None,
        "normalised queries and keys": bool(attention.qk_layer_norm),
        "shared keys and values": attention.kv_repeat != 1,
        "a limited past": attention.past_context is not None,
        "no causal mask": not attention.causal,
        "conditions interpolated into the input": bool(lm.fuser.fuse2cond.get("input_interpolate")),
    }
    found = [name for name, is_so in wrong.items() if is_so]
    if found:
        raise Unsupported(f"the decoder has {', '.join(found)}")


def _activation(layer: Any) -> str:
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__).lower()
    if name not in ("gelu", "relu"):
        raise Unsupported(f"the decoder's activation is {name}")
    return name


def _tensor(parameter: Any, expected: tuple[int, ...], name: str) -> Floats:
    """One parameter as float32, its shape and its numbers checked."""
    import torch

    if parameter is None:
        raise ModelBroken(f"the checkpoint lacks {name}")
    if tuple(parameter.shape) != expected:
        raise ModelBroken(f"{name} has the shape {tuple(parameter.shape)}, not {expected}")
    array = parameter.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(array).all():
        raise ModelBroken(f"{name} holds numbers that are not finite")
    return np.asarray(array, np.float32)


def _bytes(parameter: Any) -> bytes:
    import torch

    return bytes(parameter.detach().to("cpu", torch.float32).numpy().tobytes())


def _linear(module: Any, expected: tuple[int, int], name: str) -> Linear:
    bias = None if module.bias is None else _tensor(module.bias, expected[:1], f"{name}.bias")
    return Linear(_tensor(module.weight, expected, f"{name}.weight"), bias)


def _norm(module: Any, dim: int, name: str) -> Norm:
    if module is None:
        raise Unsupported(f"the decoder has no {name}")
    return Norm(_tensor(module.weight, (dim,), f"{name}.weight"), _tensor(module.bias, (dim,), f"{name}.bias"))


def _attention(module: Any, dim: int, name: str) -> tuple[Linear, Linear]:
    """The joint projection of queries, keys and values [3 * dim, dim], and the output's."""
    inner = module if module.custom else module.mha
    weight = _tensor(inner.in_proj_weight, (3 * dim, dim), f"{name}.in_proj_weight")
    bias = None if inner.in_proj_bias is None else _tensor(inner.in_proj_bias, (3 * dim,), f"{name}.in_proj_bias")
    return Linear(weight, bias), _linear(inner.out_proj, (dim, dim), f"{name}.out_proj")


def _rows(linear: Linear, start: int, stop: int) -> Linear:
    bias = None if linear.bias is None else linear.bias[start:stop]
    return Linear(linear.weight[start:stop], bias)


def _scaled(linear: Linear, layer_scale: Any) -> Linear:
    """LayerScale folded into the projection before it."""
    scale = getattr(layer_scale, "scale", None)
    if scale is None:
        return linear
    factor = _tensor(scale, linear.weight.shape[:1], "layer_scale")
    bias = None if linear.bias is None else linear.bias * factor
    return Linear(linear.weight * factor[:, None], bias)
