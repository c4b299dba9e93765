"""EnCodec's decoder cut where it can be cut: tokens to sound in pieces that join to exactly the whole.

SEANet (Zeghidour et al. 2021; EnCodec, Défossez et al. 2022) decodes in three parts: a convolution over frames, an
LSTM that runs forward over frames, and a stack of convolutions that brings each frame up to its samples. The first
and the last see a few frames to either side and no more; the LSTM's state is carried from piece to piece. Audio-
craft's modules and those of transformers are both read; weight_norm is folded. ONNX Runtime runs it on CPUs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Floats: TypeAlias = npt.NDArray[np.float32]
State: TypeAlias = tuple[Floats, Floats]
"""The LSTM's (h, c), float32 [layers, batch, width] each."""


class UnknownDecoder(Exception):
    """A decoder with parts that are not SEANet's."""


@dataclass(frozen=True)
class Conv:
    """weight float32 [out, in, kernel]; `left`, `right` samples of padding."""

    weight: Floats
    bias: Floats | None
    dilation: int
    left: int
    right: int
    reflect: bool


@dataclass(frozen=True)
class Raise:
    """A transposed convolution: weight float32 [in, out, kernel]; `left`, `right` samples cut off."""

    weight: Floats
    bias: Floats | None
    stride: int
    left: int
    right: int


@dataclass(frozen=True)
class Elu:
    alpha: float


@dataclass(frozen=True)
class Residual:
    branch: tuple[Any, ...]
    shortcut: tuple[Any, ...]


@dataclass(frozen=True)
class Lstm:
    """torch's layout: per layer (w_ih [4H, in], w_hh [4H, H], b_ih, b_hh), gates in the order i f g o. `skip` adds the
    input to the output."""

    layers: tuple[tuple[Floats, Floats, Floats, Floats], ...]
    skip: bool

    @property
    def width(self) -> int:
        return int(self.layers[0][1].shape[1])


@dataclass(frozen=True)
class Parts:
    """The decoder as plain data. Without an LSTM everything is in `back`."""

    front: tuple[Any, ...]
    lstm: Lstm | None
    back: tuple[Any, ...]

    def outline(self) -> Outline:
        lstm = self.lstm
        return Outline(
            front_reach=math.ceil(_reach(self.front)) if self.front else 0,
            back_reach=math.ceil(_reach(self.back)) + 1,
            layers=0 if lstm is None else len(lstm.layers),
            width=0 if lstm is None else lstm.width,
            channels=next(len(op.weight) for op in reversed(self.back) if isinstance(op, Conv)),
            hop=math.prod(op.stride for op in self.back if isinstance(op, Raise)),
        )


@dataclass(frozen=True)
class Outline:
    """What a stream must know of the parts, without their weights.

    Args:
        front_reach, back_reach: frames to either side that the part sees.
        layers, width: of the LSTM; 0 without one.
        channels: of the sound.
        hop: samples a frame.
    """

    front_reach: int
    back_reach: int
    layers: int
    width: int
    channels: int
    hop: int


class Runner(Protocol):
    """Runs the parts."""

    def front(self, latents: Floats, start: int, stop: int, state: State) -> tuple[Floats, State]:
        """Convolve latents [batch, dim, T], run frames [start, stop) of the result through the LSTM, [batch, H, n]."""

    def back(self, frames: Floats) -> Floats:
        """[batch, H, n] -> [batch, channels, n * hop]."""


def read(model: Any) -> Parts:
    """The parts of a CompressionModel's decoder (audiocraft's own or the wrapper of transformers').

    Raises:
        UnknownDecoder.
    """
    inner = model
    while not hasattr(inner, "decoder") and hasattr(inner, "model"):
        inner = inner.model
    decoder = getattr(inner, "decoder", None)
    modules = getattr(decoder, "model", getattr(decoder, "layers", None))
    if modules is None:
        raise UnknownDecoder(f"{type(model).__name__} has no decoder that is a list of layers")
    ops = [op for module in modules for op in _ops(module)]
    where = [index for index, op in enumerate(ops) if isinstance(op, Lstm)]
    if len(where) > 1:
        raise UnknownDecoder("more than one LSTM")
    if not where:
        return Parts((), None, tuple(ops))
    at = where[0]
    if any(isinstance(op, Raise) for op in ops[:at]):
        raise UnknownDecoder("an LSTM that runs faster than the frames")
    return Parts(tuple(ops[:at]), ops[at], tuple(ops[at + 1 :]))


def forget_decoder(model: Any) -> None:
    """Let go of the parameters that `read` has read; the model can then encode, but no longer decode."""
    import torch

    inner = model
    while not hasattr(inner, "decoder"):
        inner = inner.model
    inner.decoder = torch.nn.Identity()


def _ops(module: Any) -> list[Any]:
    name = type(module).__name__
    if name == "ELU":
        return [Elu(float(module.alpha))]
    if name in ("StreamableConv1d", "EncodecConv1d"):
        return [_conv(module)]
    if name in ("StreamableConvTranspose1d", "EncodecConvTranspose1d"):
        return [_raise(module)]
    if name in ("StreamableLSTM", "EncodecLSTM"):
        return [_lstm(module)]
    if name in ("SEANetResnetBlock", "EncodecResnetBlock"):
        shortcut = [] if type(module.shortcut).__name__ == "Identity" else _ops(module.shortcut)
        return [Residual(tuple(op for part in module.block for op in _ops(part)), tuple(shortcut))]
    raise UnknownDecoder(f"a layer of kind {name}")


def _conv(module: Any) -> Conv:
    conv = _plain(module, "conv")
    if conv.stride[0] != 1 or conv.groups != 1:
        raise UnknownDecoder("a convolution with a stride or groups")
    dilation = int(conv.dilation[0])
    total = (int(conv.kernel_size[0]) - 1) * dilation
    right = 0 if module.causal else total // 2
    return Conv(_weight(conv), _bias(conv), dilation, total - right, right, module.pad_mode == "reflect")


def _raise(module: Any) -> Raise:
    conv = _plain(module, "convtr" if hasattr(module, "convtr") else "conv")
    if conv.groups != 1:
        raise UnknownDecoder("a transposed convolution with groups")
    stride = int(conv.stride[0])
    total = int(conv.kernel_size[0]) - stride
    right = math.ceil(total * module.trim_right_ratio) if module.causal else total // 2
    return Raise(_weight(conv), _bias(conv), stride, total - right, right)


def _lstm(module: Any) -> Lstm:
    lstm = module.lstm
    names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    layers = [tuple(_floats(getattr(lstm, f"{name}{index}")) for name in names) for index in range(lstm.num_layers)]
    return Lstm(tuple(layers), bool(getattr(module, "skip", True)))  # type: ignore[arg-type]


def _plain(module: Any, name: str) -> Any:
    """The torch convolution inside a wrapper, which may be wrapped once more; any norm but weight_norm is unknown."""
    conv = getattr(module, name)
    norm = getattr(conv, "norm", getattr(module, "norm", None))
    if norm is not None and type(norm).__name__ != "Identity":
        raise UnknownDecoder(f"a {type(norm).__name__}")
    return getattr(conv, name, conv)


def _weight(conv: Any) -> Floats:
    import torch

    if hasattr(conv, "weight_v"):
        return _floats(torch._weight_norm(conv.weight_v, conv.weight_g, 0))  # noqa: SLF001 - what the hook calls
    return _floats(conv.weight)


def _bias(conv: Any) -> Floats | None:
    return None if conv.bias is None else _floats(conv.bias)


def _floats(tensor: Any) -> Floats:
    import torch

    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())


def _reach(ops: Sequence[Any]) -> float:
    """Frames to either side that an output sample may depend on."""
    reach, rate = 0.0, 1
    for op in ops:
        if isinstance(op, Conv):
            reach += max(op.left, op.right) / rate
        elif isinstance(op, Raise):
            reach += math.ceil(op.weight.shape[2] / op.stride) / rate
            rate *= op.stride
        elif isinstance(op, Residual):
            reach += max(_reach(op.branch), _reach(op.shortcut)) / rate
    return reach


# ---------------------------------------------------------------------------------------------------- the stream
class SeanetStream:
    """Decodes latents as they come. The pieces joined are the whole decoded at once.

    Args:
        batch: sounds side by side (the channels of a stereo model).
    """

    def __init__(self, outline: Outline, runner: Runner, batch: int) -> None:
        self._outline, self._runner = outline, runner
        size = (outline.layers, batch, outline.width)
        self._state: State = (np.zeros(size, np.float32), np.zeros(size, np.float32))
        self._latents = _Tape()
        self._frames = _Tape()

    def push(self, latents: Floats, *, last: bool = False) -> Floats:
        """Take float32 [batch, dim, n] more; give all samples that are certain, [batch, channels, m]."""
        self._latents.add(latents)
        self._front(last=last)
        return self._back(last=last)

    @property
    def started(self) -> bool:
        """Whether anything has come."""
        return self._latents.end > 0

    @property
    def channels(self) -> int:
        return self._outline.channels

    @property
    def lag(self) -> int:
        """Frames that must follow before a frame's sound is certain."""
        return self._outline.front_reach + self._outline.back_reach

    def _front(self, *, last: bool) -> None:
        reach, tape = self._outline.front_reach, self._latents
        stop = tape.end if last else tape.end - reach
        if self._outline.layers == 0:
            stop = tape.end
        if stop <= tape.done:
            return
        first = max(0, tape.done - reach)
        if self._outline.layers == 0:
            self._frames.add(tape.get(tape.done, stop))
        else:
            piece = tape.get(first, min(stop + reach, tape.end))
            made, self._state = self._runner.front(piece, tape.done - first, stop - first, self._state)
            self._frames.add(made)
        tape.finish(stop, keep=reach)

    def _back(self, *, last: bool) -> Floats:
        reach, tape, hop = self._outline.back_reach, self._frames, self._outline.hop
        stop = tape.end if last else tape.end - reach
        if stop <= tape.done:
            return np.zeros((tape.batch, self._outline.channels, 0), np.float32)
        first = max(0, tape.done - reach)
        sound = self._runner.back(tape.get(first, min(stop + reach, tape.end)))
        sound = sound[:, :, (tape.done - first) * hop : (stop - first) * hop]
        tape.finish(stop, keep=reach)
        return sound


class _Tape:
    """Frames [batch, width, n] of which the old ones are forgotten; positions are counted from the first of all."""

    def __init__(self) -> None:
        self._held: Floats | None = None
        self._first = 0
        self.done = 0

    @property
    def end(self) -> int:
        return self._first + (0 if self._held is None else self._held.shape[2])

    @property
    def batch(self) -> int:
        return 0 if self._held is None else self._held.shape[0]

    def add(self, frames: Floats) -> None:
        self._held = frames if self._held is None else np.concatenate([self._held, frames], axis=2)

    def get(self, start: int, stop: int) -> Floats:
        if self._held is None:
            raise IndexError("nothing is held")
        return np.ascontiguousarray(self._held[:, :, start - self._first : stop - self._first])

    def finish(self, stop: int, keep: int) -> None:
        """All before `stop` is done; `keep` frames of it stay as context."""
        self.done = stop
        forget = max(0, stop - keep - self._first)
        if self._held is not None and forget:
            self._held, self._first = self._held[:, :, forget:], self._first + forget


# --------------------------------------------------------------------------------------------------- the runners
class TorchRunner:
    """The parts in plain torch, on any device."""

    def __init__(self, parts: Parts, device: str) -> None:
        import torch

        def put(array: Floats | None) -> Any:
            return None if array is None else torch.from_numpy(array).to(device)

        self._device, self._parts = device, parts
        self._held: dict[int, Any] = {}
        self._put = put
        self._lstm = None if parts.lstm is None else _torch_lstm(parts.lstm, device)

    def front(self, latents: Floats, start: int, stop: int, state: State) -> tuple[Floats, State]:
        import torch

        if self._lstm is None or self._parts.lstm is None:
            raise RuntimeError("this decoder has no LSTM")
        with torch.inference_mode():
            x = self._run(self._parts.front, self._put(latents))[:, :, start:stop].permute(2, 0, 1)
            y, (h, c) = self._lstm(x, tuple(self._put(part) for part in state))
            y = (y + x if self._parts.lstm.skip else y).permute(1, 2, 0)
            return _floats(y), (_floats(h), _floats(c))

    def back(self, frames: Floats) -> Floats:
        import torch

        with torch.inference_mode():
            return _floats(self._run(self._parts.back, self._put(frames)))

    def _run(self, ops: Sequence[Any], x: Any) -> Any:
        from torch.nn import functional

        for op in ops:
            if isinstance(op, Elu):
                x = functional.elu(x, op.alpha)
            elif isinstance(op, Residual):
                x = self._run(op.shortcut, x) + self._run(op.branch, x)
            elif isinstance(op, Conv):
                weight, bias = self._tensors(op)
                x = functional.conv1d(_padded(x, op), weight, bias, dilation=op.dilation)
            else:
                weight, bias = self._tensors(op)
                x = functional.conv_transpose1d(x, weight, bias, stride=op.stride)
                x = x[:, :, op.left : x.shape[2] - op.right]
        return x

    def _tensors(self, op: Any) -> Any:
        if id(op) not in self._held:
            self._held[id(op)] = (self._put(op.weight), self._put(op.bias))
        return self._held[id(op)]


def _padded(x: Any, op: Conv) -> Any:
    """Padded as EnCodec does: where a piece is too short to be mirrored, zeros are put behind it first."""
    from torch.nn import functional

    if not op.reflect:
        return functional.pad(x, (op.left, op.right))
    missing = max(0, max(op.left, op.right) + 1 - x.shape[2])
    padded = functional.pad(functional.pad(x, (0, missing)), (op.left, op.right), mode="reflect")
    return padded[:, :, : padded.shape[2] - missing]


def _torch_lstm(source: Lstm, device: str) -> Any:
    import torch

    lstm = torch.nn.LSTM(source.layers[0][0].shape[1], source.width, len(source.layers))
    names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    state = {
        f"{n}{i}": torch.from_numpy(a)
        for i, layer in enumerate(source.layers)
        for n, a in zip(names, layer, strict=True)
    }
    lstm.load_state_dict(state)
    return lstm.to(device).eval()


class OnnxRunner:
    """The parts on ONNX Runtime, on the CPU. It keeps none of the weights it was made from.

    Raises:
        Exception: ONNX Runtime cannot build or run the graphs.
    """

    def __init__(self, parts: Parts, threads: int) -> None:
        self._front_pad, self._back_pad = _first_padding(parts.front), _first_padding(parts.back)
        self._front: Any = None if parts.lstm is None else _session(_front_graph(parts), threads)
        self._back: Any = _session(_back_graph(parts), threads)

    def front(self, latents: Floats, start: int, stop: int, state: State) -> tuple[Floats, State]:
        x = _mirrored(latents, *self._front_pad)
        bounds = {"start": np.array([start], np.int64), "stop": np.array([stop], np.int64)}
        frames, h, c = self._front.run(None, {"x": x, **bounds, "h": state[0], "c": state[1]})
        return frames, (h, c)

    def back(self, frames: Floats) -> Floats:
        return np.asarray(self._back.run(None, {"x": _mirrored(frames, *self._back_pad)})[0])


def _first_padding(ops: Sequence[Any]) -> tuple[int, int]:
    """What the first operation mirrors; it is put around in numpy, because a piece may be shorter than that."""
    first = ops[0] if ops else None
    return (first.left, first.right) if isinstance(first, Conv) and first.reflect else (0, 0)


def _mirrored(x: Floats, left: int, right: int) -> Floats:
    """Padded as EnCodec does: where a piece is too short to be mirrored, zeros are put behind it first."""
    if not left and not right:
        return x
    missing = max(0, max(left, right) + 1 - x.shape[2])
    padded = np.pad(np.pad(x, ((0, 0), (0, 0), (0, missing))), ((0, 0), (0, 0), (left, right)), mode="reflect")
    return np.ascontiguousarray(padded[:, :, : padded.shape[2] - missing])


def _unpadded(ops: Sequence[Any]) -> Sequence[Any]:
    if _first_padding(ops) == (0, 0):
        return ops
    return [replace(ops[0], left=0, right=0), *ops[1:]]


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Graph:
    """Collects the nodes of one graph."""

    def __init__(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._helper: Any = helper
        self._numpy: Any = numpy_helper
        self.types: Any = TensorProto
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def node(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"t{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(self._helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def tensor(self, array: npt.NDArray[Any]) -> str:
        name = f"w{len(self._tensors)}"
        self._tensors.append(self._numpy.from_array(np.ascontiguousarray(array), name))
        return name

    def ops(self, ops: Sequence[Any], x: str) -> str:
        for op in ops:
            x = self._op(op, x)
        return x

    def _op(self, op: Any, x: str) -> str:
        if isinstance(op, Elu):
            return self.node("Elu", [x], alpha=op.alpha)[0]
        if isinstance(op, Residual):
            return self.node("Add", [self.ops(op.shortcut, x), self.ops(op.branch, x)])[0]
        weights = [self.tensor(op.weight), *([] if op.bias is None else [self.tensor(op.bias)])]
        if isinstance(op, Raise):
            return self.node("ConvTranspose", [x, *weights], strides=[op.stride], pads=[op.left, op.right])[0]
        pads = [op.left, op.right]
        if op.reflect and any(pads):
            widths = self.tensor(np.array([0, 0, op.left, 0, 0, op.right], np.int64))
            x, pads = self.node("Pad", [x, widths], mode="reflect")[0], [0, 0]
        return self.node("Conv", [x, *weights], dilations=[op.dilation], pads=pads)[0]

    def model(self, inputs: dict[str, Any], outputs: dict[str, str]) -> bytes:
        made = [self._helper.make_node("Identity", [source], [name]) for name, source in outputs.items()]
        values = [self._helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
        results = [self._helper.make_tensor_value_info(name, self.types.FLOAT, None) for name in outputs]
        graph = self._helper.make_graph([*self._nodes, *made], "codec", values, results, self._tensors)
        model = self._helper.make_model(graph, opset_imports=[self._helper.make_opsetid("", 18)])
        model.ir_version = 10
        return bytes(model.SerializeToString())


def _back_graph(parts: Parts) -> bytes:
    graph = _Graph()
    width = _width(parts.back)
    return graph.model(
        {"x": (graph.types.FLOAT, ["batch", width, "n"])}, {"sound": graph.ops(_unpadded(parts.back), "x")}
    )


def _front_graph(parts: Parts) -> bytes:
    """Convolution, the piece asked for, and the LSTM with its state as inputs and outputs."""
    graph, lstm = _Graph(), parts.lstm
    if lstm is None:
        raise UnknownDecoder("no LSTM")
    axis = graph.tensor(np.array([2], np.int64))
    x = graph.node("Slice", [graph.ops(_unpadded(parts.front), "x"), "start", "stop", axis])[0]
    inner = x = graph.node("Transpose", [x], perm=[2, 0, 1])[0]
    count = len(lstm.layers)
    states = [graph.node("Split", [name], count, axis=0, num_outputs=count) for name in ("h", "c")]
    ends: list[list[str]] = [[], []]
    for index, layer in enumerate(lstm.layers):
        inner, h, c = _lstm_node(graph, inner, layer, states[0][index], states[1][index])
        ends[0].append(h)
        ends[1].append(c)
    if lstm.skip:
        inner = graph.node("Add", [inner, x])[0]
    frames = graph.node("Transpose", [inner], perm=[1, 2, 0])[0]
    kinds, floats = graph.types, graph.types.FLOAT
    state = (floats, [count, "batch", lstm.width])
    inputs = {
        "x": (floats, ["batch", _width(parts.front), "n"]),
        "start": (kinds.INT64, [1]),
        "stop": (kinds.INT64, [1]),
        "h": state,
        "c": state,
    }
    joined = [graph.node("Concat", names, axis=0)[0] for names in ends]
    return graph.model(inputs, {"frames": frames, "h_out": joined[0], "c_out": joined[1]})


def _lstm_node(graph: _Graph, x: str, layer: Sequence[Floats], h: str, c: str) -> list[str]:
    """One LSTM layer: [its output, h, c]. ONNX orders the gates i o f c, torch i f g o."""
    width = layer[1].shape[1]
    order = np.concatenate([np.arange(width) + gate * width for gate in (0, 3, 1, 2)])
    w_in, w_rec, b_in, b_rec = (array[order] for array in layer)
    inputs = [x, graph.tensor(w_in[None]), graph.tensor(w_rec[None]), graph.tensor(np.concatenate([b_in, b_rec])[None])]
    y, h_out, c_out = graph.node("LSTM", [*inputs, "", h, c], 3, hidden_size=width)
    direction = graph.tensor(np.array([1], np.int64))
    return [graph.node("Squeeze", [y, direction])[0], h_out, c_out]


def _width(ops: Sequence[Any]) -> int | str:
    """Channels the first convolution takes."""
    for op in ops:
        if isinstance(op, Conv):
            return int(op.weight.shape[1])
        if isinstance(op, Raise):
            return int(op.weight.shape[0])
    return "width"
