"""Tokens to sound and back, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modules import audio
from modules.audio import Clip
from modules.contract import InvalidParameter
from modules.musicgen.engine import Codes

WHOLE_S: Final = 60.0
"""Longest sound decoded at once, in seconds; EnCodec's last layers take about 25 MB a second."""
CONTEXT_FRAMES: Final = 100
"""Frames decoded again before a piece, to bring the decoder's LSTM to where it was."""
LOOKAHEAD_FRAMES: Final = 32
"""Frames a piece's sound depends on after its end: EnCodec's convolutions look 6 ahead, a ConvNeXt stack up to 30."""
PIECE_FRAMES: Final = 50
"""Least frames worth a run of the decoder."""


class Codec:
    """A compression model of audiocraft's, in numpy.

    Args:
        model: CompressionModel in eval mode on `device`.
        guard: entered around each run; turns a lack of memory into OutOfMemory.
    """

    def __init__(
        self, model: Any, device: str, guard: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._model: Any = model
        self._device = device
        self._guard = guard
        self.sample_rate_hz = int(model.sample_rate)
        self.frame_rate_hz = float(model.frame_rate)
        self.channels = int(model.channels)
        self.codebooks = int(model.num_codebooks)
        self.cardinality = int(model.cardinality)

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return round(self.sample_rate_hz / self.frame_rate_hz)

    def close(self) -> None:
        self._model = None

    def encode(self, clip: Clip) -> Codes:
        """Encode a clip, resampled and mixed to what the model takes.

        Returns:
            int64 [K, T], T = ceil(seconds * frame_rate).
        """
        import torch

        fitting = audio.to_channels(audio.resample(clip, self.sample_rate_hz), self.channels)
        wave = torch.from_numpy(np.ascontiguousarray(fitting.samples))[None]
        with self._guard(), torch.inference_mode():
            codes, _ = self._model.encode(wave.to(self._device))
            return np.asarray(codes[0].to("cpu", torch.int64).numpy())

    def decode(self, codes: Codes) -> Clip:
        """Decode int64 [K, T] to T * hop samples. The sound may pass full scale; whoever writes it limits it.

        Raises:
            InvalidParameter: the codes are not this model's.
        """
        if codes.ndim != 2 or codes.shape[0] != self.codebooks:
            raise InvalidParameter(f"tokens of shape {codes.shape} do not fit {self.codebooks} codebooks")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.cardinality:
            raise InvalidParameter(f"tokens outside 0 to {self.cardinality - 1} are not this model's")
        if codes.shape[1] <= WHOLE_S * self.frame_rate_hz:
            return Clip(self._run(codes), self.sample_rate_hz)
        stream, step = self.stream(), int(WHOLE_S / 2 * self.frame_rate_hz)
        pieces = [stream.push(codes[:, at : at + step]) for at in range(0, codes.shape[1], step)]
        return Clip(np.concatenate([*pieces, stream.finish()], axis=1), self.sample_rate_hz)

    def stream(self) -> CodecStream:
        """A decoder that takes codes as they come."""
        return CodecStream(self._run, self.codebooks, self.channels, self.hop)

    def _run(self, codes: Codes) -> npt.NDArray[np.float32]:
        """int64 [K, T] -> float32 [C, T * hop]."""
        import torch

        if codes.shape[1] == 0:
            return np.zeros((self.channels, 0), np.float32)
        with self._guard(), torch.inference_mode():
            wave = self._model.decode(torch.from_numpy(np.ascontiguousarray(codes))[None].to(self._device), None)
            samples = wave[0].to("cpu", torch.float32).numpy()
        return np.ascontiguousarray(samples[:, : codes.shape[1] * self.hop])


class CodecStream:
    """Decodes codes piece by piece: each piece again with what came before it, held back until what follows is known.

    The pieces joined are as long as the whole decoded at once and differ from it by what the decoder's LSTM remembers
    from more than CONTEXT_FRAMES ago.
    """

    def __init__(
        self, run: Callable[[Codes], npt.NDArray[np.float32]], codebooks: int, channels: int, hop: int
    ) -> None:
        self._run, self._channels, self._hop = run, channels, hop
        self._codes: Codes = np.zeros((codebooks, 0), np.int64)
        self._emitted = 0
        """Frames of `_codes` whose sound has been given."""

    def push(self, codes: Codes) -> npt.NDArray[np.float32]:
        """Take int64 [K, n] more frames; give the sound that is certain by now, float32 [C, m], m may be 0."""
        self._codes = np.concatenate([self._codes, codes], axis=1)
        certain = self._codes.shape[1] - LOOKAHEAD_FRAMES
        return self._emit(certain) if certain - self._emitted >= PIECE_FRAMES else self._emit(self._emitted)

    def finish(self) -> npt.NDArray[np.float32]:
        """The sound of what is left, float32 [C, m]."""
        return self._emit(self._codes.shape[1])

    def _emit(self, until: int) -> npt.NDArray[np.float32]:
        if until <= self._emitted:
            return np.zeros((self._channels, 0), np.float32)
        sound = self._run(self._codes)[:, self._emitted * self._hop : until * self._hop]
        forget = max(0, until - CONTEXT_FRAMES)
        self._codes, self._emitted = self._codes[:, forget:], until - forget
        return np.ascontiguousarray(sound)
