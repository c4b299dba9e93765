"""Scales for keys and values kept as int8, found by letting the decoder make music for a moment.

A channel's keys differ much less between steps than channels differ from each other, so keys have a scale a
channel; values have one a head (their scale is undone in a projection whose weights share scales across a head).
Whatever is larger than all that was seen and the margin is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modules.musicgen.backends.onnx_graph import kv_names
from modules.musicgen.patterns import DelayPattern
from modules.musicgen.sampling import Sampler, SamplingRule, guide

if TYPE_CHECKING:
    from modules.musicgen.backends.onnx import OnnxDecoder
    from modules.musicgen.conditions import Conditions

TEXTS = (
    "warm lo-fi piano over soft vinyl drums",
    "energetic techno with a driving bass line and bright synth stabs",
    "orchestral film score with strings, brass and timpani",
)
STEPS = 96
MARGIN = 1.5
LARGEST = 127.0
LEAST_SHARE = 1e-3
"""A channel that stayed silent may still speak later: its scale is at least this share of its layer's largest."""


def key_value_scales(
    decoder: OnnxDecoder, texts: Conditions, pattern: DelayPattern, window_steps: int, breathe: Callable[[], None]
) -> npt.NDArray[np.float32]:
    """Run the decoder twice over STEPS steps, once as they come and once spread over the whole window.

    Args:
        decoder: with float32 keys and values.
        texts: the conditional rows, then as many unconditional ones.
        window_steps: of the longest window.
        breathe: called after each step; may raise.
    Returns:
        float32 [layers, 2, heads, head_dim].
    """
    runs = [_peaks(decoder, texts, pattern, spacing, breathe) for spacing in (1, max(1, window_steps // STEPS))]
    peaks = np.maximum(*runs)
    peaks[:, 1] = peaks[:, 1].max(axis=-1, keepdims=True)
    least = peaks.max(axis=(2, 3), keepdims=True) * LEAST_SHARE
    return np.asarray(np.maximum(peaks, np.maximum(least, np.float32(1e-6))) * MARGIN / LARGEST, np.float32)


def _peaks(
    decoder: OnnxDecoder, texts: Conditions, pattern: DelayPattern, spacing: int, breathe: Callable[[], None]
) -> npt.NDArray[np.float32]:
    """The largest key and value of each channel, float32 [layers, 2, heads, head_dim]."""
    from modules.musicgen.backends.onnx import OnnxPass

    takes = texts.rows // 2
    sampler = Sampler(SamplingRule(temperature=1.0, top_k=250, top_p=0.0), tuple(range(takes)))
    row = OnnxPass(decoder, texts, STEPS, spacing)
    sequence = pattern.spread(np.zeros((takes, len(pattern.delays), 0), np.int64), STEPS)
    for step in range(1, STEPS + 1):
        fed = sequence[..., step - 1 : step]
        logits = row.feed(np.concatenate([fed, fed]))
        drawn = sampler.draw(guide(logits[:takes], logits[takes:], 3.0))
        sequence[..., step] = np.where(sequence[..., step] < 0, drawn, sequence[..., step])
        breathe()
    length = texts.prepend.shape[1] + STEPS
    peaks = np.stack(list(_channel_peaks(row.arrays(slice(0, texts.rows))[0], decoder.shape.layers, length)))
    row.close()
    return peaks


def _channel_peaks(
    buffers: dict[str, npt.NDArray[np.float32]], layers: int, length: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Each layer's float32 [2, heads, head_dim] from buffers [rows, heads, room, head_dim]."""
    for index in range(layers):
        yield np.stack([np.abs(buffers[name][:, :, :length]).max(axis=(0, 2)) for name in kv_names(index)])
