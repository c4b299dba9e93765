"""Tokens to sound and back, whole or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from modules import audio
from modules.audio import Clip
from modules.contract import InvalidParameter
from modules.musicgen import seanet
from modules.musicgen.engine import Codes

log = logging.getLogger(__name__)

WHOLE_S: Final = 60.0
"""Longest sound decoded at once, in seconds; EnCodec's last layers take about 25 MB a second."""
CONTEXT_FRAMES: Final = 100
"""Frames decoded again before a piece, to bring the decoder's LSTM to where it was."""
LOOKAHEAD_FRAMES: Final = 32
"""Frames a piece's sound depends on after its end: EnCodec's convolutions look 6 ahead, a ConvNeXt stack up to 30."""
PIECE_FRAMES: Final = 50
"""Least frames worth a run of the decoder."""
FIRST_FRAMES: Final = 16
"""The same for the first piece of a stream: somebody is waiting to hear it."""
DECODED_FRAMES: Final = 150
"""Frames a whole decoding is cut into: its last layers then stay in the processor's cache."""


class Codec:
    """A compression model of audiocraft's, in numpy.

    Args:
        model: CompressionModel in eval mode on `device`.
        guard: entered around each run; turns a lack of memory into OutOfMemory.
        own: nobody else uses the model, so its decoder's parameters are let go of once another runner has them.
    """

    def __init__(
        self,
        model: Any,
        device: str,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        own: bool = False,
    ) -> None:
        self._model: Any = model
        self._device = device
        self.guard = guard
        """Entered around each run."""
        self.sample_rate_hz = int(model.sample_rate)
        self.frame_rate_hz = float(model.frame_rate)
        self.channels = int(model.channels)
        self.codebooks = int(model.num_codebooks)
        self.cardinality = int(model.cardinality)
        self._seanet = _seanet(model, device)
        if own and self._seanet is not None:
            seanet.forget_decoder(model)

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return round(self.sample_rate_hz / self.frame_rate_hz)

    def close(self) -> None:
        self._model = self._seanet = None

    def encode(self, clip: Clip) -> Codes:
        """Encode a clip, resampled and mixed to what the model takes.

        Returns:
            int64 [K, T], T = ceil(seconds * frame_rate).
        """
        import torch

        fitting = audio.to_channels(audio.resample(clip, self.sample_rate_hz), self.channels)
        wave = torch.from_numpy(np.ascontiguousarray(fitting.samples))[None]
        with self.guard(), torch.inference_mode():
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
        if self._seanet is not None:
            return Clip(self._pieces(codes, DECODED_FRAMES), self.sample_rate_hz)
        if codes.shape[1] <= WHOLE_S * self.frame_rate_hz:
            return Clip(self._run(codes), self.sample_rate_hz)
        return Clip(self._pieces(codes, int(WHOLE_S / 2 * self.frame_rate_hz)), self.sample_rate_hz)

    def latents(self, codes: Codes) -> Any:
        """What sound is made of: int64 [K, T] of a mono model to a float32 tensor [1, dim, T] on the device."""
        import torch

        with self.guard(), torch.inference_mode():
            both = torch.from_numpy(np.ascontiguousarray(codes))[None].to(self._device)
            return self._model.decode_latent(both)

    def stream(self) -> CodecStream:
        """A decoder that takes codes as they come. EnCodec's pieces join to the whole decoding exactly."""
        if self._seanet is not None:
            return ExactStream(self._seanet, self._model, self._device, self.guard)
        return RepeatingStream(self._run, self.codebooks, self.channels, self.hop)

    def _pieces(self, codes: Codes, step: int) -> npt.NDArray[np.float32]:
        """Decode in pieces, to keep the memory of long music bounded, float32 [C, T * hop]."""
        stream = self.stream()
        pieces = [stream.push(codes[:, at : at + step]) for at in range(0, codes.shape[1], step)]
        return np.concatenate([*pieces, stream.finish()], axis=1)

    def _run(self, codes: Codes) -> npt.NDArray[np.float32]:
        """int64 [K, T] -> float32 [C, T * hop]."""
        import torch

        if codes.shape[1] == 0:
            return np.zeros((self.channels, 0), np.float32)
        with self.guard(), torch.inference_mode():
            wave = self._model.decode(torch.from_numpy(np.ascontiguousarray(codes))[None].to(self._device), None)
            samples = wave[0].to("cpu", torch.float32).numpy()
        return np.ascontiguousarray(samples[:, : codes.shape[1] * self.hop])


class CodecStream(Protocol):
    """Decodes codes as they come."""

    def push(self, codes: Codes) -> npt.NDArray[np.float32]:
        """Take int64 [K, n] more frames; give the sound that is certain by now, float32 [C, m], m may be 0."""

    def finish(self) -> npt.NDArray[np.float32]:
        """The sound of what is left, float32 [C, m]."""


@dataclass(frozen=True)
class Seanet:
    """EnCodec's decoder taken apart, with what runs it."""

    outline: seanet.Outline
    runner: seanet.Runner


def _seanet(model: Any, device: str) -> Seanet | None:
    """The model's decoder taken apart, or None when it is none of EnCodec's kind."""
    if getattr(model, "per_timestep", False):
        return None
    try:
        parts = seanet.read(model)
    except seanet.UnknownDecoder as reason:
        log.info("the codec is decoded whole: it has %s", reason)
        return None
    if device != "cpu":
        return Seanet(parts.outline(), seanet.TorchRunner(parts, device))
    import torch

    try:
        return Seanet(parts.outline(), seanet.OnnxRunner(parts, torch.get_num_threads()))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base but this; torch can do it as well
        log.warning("ONNX Runtime cannot run the codec, torch does: %s", error)
        return Seanet(parts.outline(), seanet.TorchRunner(parts, device))


class ExactStream:
    """Decodes with the LSTM's state carried and the convolutions' context kept: the pieces join to the whole.

    Frames are gathered until a piece is worth a run; a stereo model's channels run side by side.
    """

    def __init__(
        self, decoder: Seanet, model: Any, device: str, guard: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._model, self._device, self._guard = model, device, guard
        self._stereo = hasattr(model, "get_left_right_codes")
        self._stream = seanet.SeanetStream(decoder.outline, decoder.runner, 2 if self._stereo else 1)
        self._waiting: list[Codes] = []
        self._least = FIRST_FRAMES + self._stream.lag

    def push(self, codes: Codes) -> npt.NDArray[np.float32]:
        self._waiting.append(codes)
        if sum(part.shape[1] for part in self._waiting) < self._least:
            return self._run(np.zeros((len(codes), 0), np.int64), last=False)
        frames, self._waiting, self._least = np.concatenate(self._waiting, axis=1), [], PIECE_FRAMES
        return self._run(frames, last=False)

    def finish(self) -> npt.NDArray[np.float32]:
        frames = np.concatenate([*self._waiting, np.zeros((self._codebooks, 0), np.int64)], axis=1)
        self._waiting = []
        return self._run(frames, last=True)

    @property
    def _codebooks(self) -> int:
        return int(self._model.num_codebooks)

    def _run(self, codes: Codes, *, last: bool) -> npt.NDArray[np.float32]:
        with self._guard():
            if codes.shape[1] == 0 and not self._stream.started:
                return np.zeros((2 if self._stereo else self._stream.channels, 0), np.float32)
            sound = self._stream.push(self._latents(codes), last=last)
        return np.ascontiguousarray(sound[:, 0] if self._stereo else sound[0])

    def _latents(self, codes: Codes) -> npt.NDArray[np.float32]:
        """int64 [K, n] -> float32 [batch, dim, n]."""
        import torch

        with torch.inference_mode():
            both = torch.from_numpy(np.ascontiguousarray(codes))[None].to(self._device)
            inner = self._model
            if self._stereo:
                inner, both = self._model.model, torch.cat(self._model.get_left_right_codes(both))
            return np.asarray(inner.decode_latent(both).to("cpu", torch.float32).numpy())


class RepeatingStream:
    """For any codec: each piece is decoded again with what came before it, and held back until what follows is known.

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
