"""Writes one decoder step as an ONNX graph, straight from the decoder's parameters, a layer in memory at a time.

The graph takes embeddings (positions added) of n positions of every row, the length so far, and the buffers of keys
and values, which GroupQueryAttention reads and writes in place; it gives the logits after the last position. The
weights lie in one file beside the graph. Operators beyond ONNX's own are ONNX Runtime's (domain com.microsoft):
MatMulNBits (block-quantised weights), GroupQueryAttention, MultiHeadAttention, SkipLayerNormalization, Gelu.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from modules.musicgen.backends.quantise import quantise
from modules.musicgen.backends.weights import EPSILON, DecoderWeights, Layer, Linear, Norm, Shape

GRAPH_FILE, WEIGHTS_FILE = "decoder.onnx", "decoder.bin"
ALIGNMENT = 4096
OPSET, IR_VERSION = 18, 10
SMALL_BYTES = 1024
"""Tensors up to this size stay in the graph itself."""


@dataclass(frozen=True)
class Recipe:
    """How weights and keys and values are kept.

    Args:
        bits: 32, 8 or 4 a weight.
        block: weights that share a scale, where quantised.
        kv_scales: float32 [layers, 2, heads, head_dim]: int8 keys and values, each times its scale; None for float32.
    """

    bits: int
    block: int
    kv_scales: npt.NDArray[np.float32] | None = None

    @property
    def kv_width(self) -> int:
        """Bytes of a key or value."""
        return 4 if self.kv_scales is None else 1


def write_decoder(weights: DecoderWeights, recipe: Recipe, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write GRAPH_FILE and WEIGHTS_FILE into `folder`. `progress(done, total)` counts layers and may raise."""
    with (folder / WEIGHTS_FILE).open("wb") as file:
        writer = _Writer(weights.shape, recipe, file)
        model = writer.decoder(weights, progress)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString())


def kv_names(layer: int) -> tuple[str, str]:
    """The buffers' names as inputs; as outputs they end in `_out`."""
    return f"keys_{layer}", f"values_{layer}"


def cross_names(layer: int) -> tuple[str, str]:
    return f"cross_keys_{layer}", f"cross_values_{layer}"


class _Writer:
    """Collects nodes; tensors go straight to the file."""

    def __init__(self, shape: Shape, recipe: Recipe, file: BinaryIO) -> None:
        from onnx import TensorProto, helper

        self._helper: Any = helper
        self._types: Any = TensorProto
        self._shape, self._recipe, self._file = shape, recipe, file
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._made = 0

    def decoder(self, weights: DecoderWeights, progress: Callable[[int, int], None]) -> Any:
        """The whole graph as a ModelProto."""
        shape, kind = self._shape, self._types
        self._input("x", kind.FLOAT, ["rows", "n", shape.dim])
        self._input("last", kind.INT32, ["rows"])
        self._input("total", kind.INT32, [])
        x, pending = "x", ""
        for index, layer in enumerate(weights.layers()):
            x, pending = self._layer(index, layer, x, pending)
            progress(index + 1, shape.layers + 1)
        norm, head = weights.head()
        last, _ = self._norm(self._last(x), self._last(pending), norm)
        logits = self._linear(last, head)
        self._node("Identity", [logits], "logits")
        self._outputs.append(self._value("logits", kind.FLOAT, ["rows", 1, shape.codebooks * shape.card]))
        progress(shape.layers + 1, shape.layers + 1)
        return self._model()

    def attention_alone(self) -> bytes:
        """A graph of one self-attention and nothing else."""
        dim = self._shape.dim
        self._input("x", self._types.FLOAT, ["rows", "n", dim])
        self._input("last", self._types.INT32, ["rows"])
        self._input("total", self._types.INT32, [])
        self._attend(0, self._linear("x", Linear(np.ones((3 * dim, dim), np.float32), None)))
        return bytes(self._model().SerializeToString())

    def _layer(self, index: int, layer: Layer, x: str, pending: str) -> tuple[str, str]:
        """One layer: from (x, what is still to be added to it) to the same two."""
        normed, x = self._norm(x, pending, layer.norm_self)
        pending = self._linear(self._self_attention(index, normed, layer), _values_unscaled(layer.out, self._kv(index)))
        if layer.norm_cross is not None and layer.cross_q is not None and layer.cross_out is not None:
            normed, x = self._norm(x, pending, layer.norm_cross)
            pending = self._linear(self._cross_attention(index, normed, layer.cross_q), layer.cross_out)
        normed, x = self._norm(x, pending, layer.norm_feed)
        inner = self._activate(self._linear(normed, layer.feed_in))
        return x, self._linear(inner, layer.feed_out)

    def _kv(self, index: int) -> npt.NDArray[np.float32] | None:
        scales = self._recipe.kv_scales
        return None if scales is None else scales[index]

    def _self_attention(self, index: int, x: str, layer: Layer) -> str:
        scales = self._kv(index)
        return self._attend(index, self._linear(x, layer.qkv if scales is None else _folded(layer.qkv, scales)))

    def _attend(self, index: int, packed: str) -> str:
        """Queries, keys and values in one tensor [rows, n, 3 * dim], over the layer's buffers."""
        shape, scales = self._shape, self._kv(index)
        kind = self._types.FLOAT if scales is None else self._types.INT8
        names = kv_names(index)
        for name in names:
            size = ["rows", shape.heads, "room", shape.head_dim]
            self._input(name, kind, size)
            self._outputs.append(self._value(f"{name}_out", kind, size))
        inputs, extra = [packed, "", "", *names, "last", "total"], {}
        if scales is not None:
            # The scales are in the projections already; to the operator each number is worth itself.
            one = self._tensor(np.ones(1, np.float32))
            inputs += ["", "", "", "", "", one, one]
            extra = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        mixed = self._fresh()
        self._nodes.append(
            self._helper.make_node(
                "GroupQueryAttention", inputs, [mixed, *(f"{name}_out" for name in names)], domain="com.microsoft",
                num_heads=shape.heads, kv_num_heads=shape.heads, **extra,
            )
        )  # fmt: skip
        return mixed

    def _cross_attention(self, index: int, x: str, query: Linear) -> str:
        shape, names = self._shape, cross_names(index)
        for name in names:
            self._input(name, self._types.FLOAT, ["rows", shape.heads, "seen", shape.head_dim])
        return self._node(
            "MultiHeadAttention", [self._linear(x, query), *names], domain="com.microsoft", num_heads=shape.heads
        )

    def _linear(self, x: str, linear: Linear) -> str:
        bias = None if linear.bias is None else self._tensor(linear.bias)
        if self._recipe.bits == 32:
            product = self._node("MatMul", [x, self._tensor(linear.weight.T)])
            return product if bias is None else self._node("Add", [product, bias])
        packed = quantise(linear.weight, self._recipe.bits, self._recipe.block)
        inputs = [x, self._tensor(packed.codes), self._tensor(packed.scales)]
        if bias is not None:
            inputs += ["", "", bias]
        out, into = linear.weight.shape
        return self._node(
            "MatMulNBits", inputs, domain="com.microsoft",
            K=into, N=out, bits=self._recipe.bits, block_size=self._recipe.block, accuracy_level=4,
        )  # fmt: skip

    def _norm(self, x: str, pending: str, norm: Norm) -> tuple[str, str]:
        """(the norm of x + pending, x + pending)."""
        gain, offset = self._tensor(norm.gain), self._tensor(norm.offset)
        if not pending:
            return self._node("LayerNormalization", [x, gain, offset], axis=-1, epsilon=EPSILON), x
        normed, added = self._fresh(), self._fresh()
        self._nodes.append(
            self._helper.make_node(
                "SkipLayerNormalization", [x, pending, gain, offset], [normed, "", "", added],
                domain="com.microsoft", epsilon=EPSILON,
            )
        )  # fmt: skip
        return normed, added

    def _activate(self, x: str) -> str:
        if self._shape.activation == "relu":
            return self._node("Relu", [x])
        return self._node("Gelu", [x], domain="com.microsoft")

    def _last(self, x: str) -> str:
        """[rows, n, dim] -> [rows, 1, dim]: only the last position needs logits."""
        bounds = [self._tensor(np.array([value], np.int64)) for value in (-1, np.iinfo(np.int64).max, 1)]
        return self._node("Slice", [x, *bounds])

    def _node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or self._fresh()
        self._nodes.append(self._helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _fresh(self) -> str:
        self._made += 1
        return f"t{self._made}"

    def _input(self, name: str, kind: int, size: list[Any]) -> None:
        self._inputs.append(self._value(name, kind, size))

    def _value(self, name: str, kind: int, size: list[Any]) -> Any:
        return self._helper.make_tensor_value_info(name, kind, size)

    def _tensor(self, array: npt.NDArray[Any]) -> str:
        """Keep a constant, in the file unless it is small."""
        name, array = f"w{len(self._tensors)}", np.ascontiguousarray(array)
        kind = self._helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = self._types(name=name, data_type=kind, dims=array.shape)
        if array.nbytes <= SMALL_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            tensor.data_location = self._types.EXTERNAL
            facts = {"location": WEIGHTS_FILE, "offset": str(self._file.tell()), "length": str(array.nbytes)}
            for key, value in facts.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            self._file.write(array.data)
        self._tensors.append(tensor)
        return name

    def _model(self) -> Any:
        graph = self._helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, self._tensors)
        domains = [self._helper.make_opsetid("", OPSET), self._helper.make_opsetid("com.microsoft", 1)]
        model = self._helper.make_model(graph, opset_imports=domains, producer_name="audiocraft-webui")
        model.ir_version = IR_VERSION
        return model


def int8_attention() -> bytes:
    """The smallest graph with attention over int8 keys and values, to see whether it can be run."""
    shape = Shape(8, 1, 1, 8, 1, 1, cross=False, activation="gelu", position_scale=1, max_period=1e4)
    recipe = Recipe(32, 0, np.ones((1, 2, 1, 8), np.float32))
    writer = _Writer(shape, recipe, io.BytesIO())
    return writer.attention_alone()


def _folded(qkv: Linear, scales: npt.NDArray[np.float32]) -> Linear:
    """The projection whose keys and values come out divided by their scales, and its queries multiplied by the keys'.

    Queries times keys stay what they were; the values' scale is undone in the projection after the attention.
    """
    keys, values = scales.reshape(2, -1)
    factor = np.concatenate([keys, 1 / keys, 1 / values]).astype(np.float32)
    return Linear(qkv.weight * factor[:, None], None if qkv.bias is None else qkv.bias * factor)


def _values_unscaled(out: Linear, scales: npt.NDArray[np.float32] | None) -> Linear:
    if scales is None:
        return out
    return Linear(out.weight * scales[1].reshape(1, -1), out.bias)
