"""Block-wise quantisation of weights in the layout of ONNX Runtime's MatMulNBits, by rounding to the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """codes uint8 [out, blocks, block * bits / 8] around a middle of 2 ** (bits - 1); scales float32 [out, blocks]."""

    codes: npt.NDArray[np.uint8]
    scales: Floats


def quantise(weight: Floats, bits: int, block: int) -> Packed:
    """float32 [out, in] -> Packed; `in` is filled up with zeros to whole blocks.

    The number of largest size in a block is met exactly and, with its sign, takes the end of the range that reaches
    one step further, so that all codes are used.
    """
    out, into = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -into % block))).reshape(out, -1, block)
    middle = 1 << (bits - 1)
    peak = np.take_along_axis(padded, np.abs(padded).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    scales = (-peak / middle).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(padded * inverse[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return Packed(codes, scales)


def restore(packed: Packed, bits: int, into: int) -> Floats:
    """What the codes stand for, float32 [out, into]."""
    codes = packed.codes
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    middle = np.float32(1 << (bits - 1))
    values = (codes.astype(np.float32) - middle) * packed.scales[..., None]
    return np.asarray(values.reshape(len(codes), -1)[:, :into], np.float32)
