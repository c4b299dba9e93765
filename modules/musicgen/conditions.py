"""What the decoder is conditioned on, computed once: audiocraft's own conditioners and fuser, then plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modules.musicgen.engine import GenerationSpec, ModelFacts, Window

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """The same for one or more rows of the decoder's batch.

    Args:
        prepend: float32 [rows, P, dim], embeddings before the first step; P may be 0.
        cross: float32 [rows, S, dim], what the cross-attention sees; None without one.
        added: float32 [rows, 1, dim], added to the embedding of every step; None for nothing.
    """

    prepend: Floats
    cross: Floats | None
    added: Floats | None

    @property
    def rows(self) -> int:
        return int(self.prepend.shape[0])

    def row(self, index: int) -> Conditions:
        """One row alone."""
        return self._map(lambda array: array[index : index + 1])

    def repeat(self, times: int) -> Conditions:
        """Every row `times` times, in order: a a b b."""
        return self._map(lambda array: np.repeat(array, times, axis=0))

    def _map(self, change: Any) -> Conditions:
        cross = None if self.cross is None else change(self.cross)
        added = None if self.added is None else change(self.added)
        return Conditions(change(self.prepend), cross, added)


class Conditioner:
    """Turns a text and a melody into Conditions with the model's own condition provider and fuser.

    It holds on to those two alone: the decoder's weights may be let go of.
    """

    def __init__(self, lm: Any, device: str, facts: ModelFacts) -> None:
        self._provider: Any = lm.condition_provider
        self._fuser: Any = lm.fuser
        self._dim = int(lm.dim)
        self._device = device
        self._facts = facts

    def close(self) -> None:
        self._provider = self._fuser = None

    def melody(self, spec: GenerationSpec) -> Any:
        """The melody as a float32 tensor [C, T] at the model's rate, or None."""
        return melody_wave(spec, self._facts, self._device)

    def both(self, text: str, melody: Any, window: Window, *, alone: bool) -> Conditions:
        """The conditional row and the unconditional one, padded to each other as audiocraft pads a batch.

        Args:
            melody: what `melody` gave.
            alone: the generation is this one window; else the melody goes on where the window before left it.
        """
        given = self._attributes(text, melody, window, alone=alone)
        return self._fuse([given, _nothing(given)])

    def each(self, text: str, melody: Any, window: Window, *, alone: bool) -> tuple[Conditions, Conditions]:
        """The same two computed apart, as for two_step_cfg: their lengths may differ."""
        given = self._attributes(text, melody, window, alone=alone)
        return self._fuse([given]), self._fuse([_nothing(given)])

    def several(self, texts: tuple[str, ...]) -> Conditions:
        """The conditional rows of several texts, then as many unconditional ones, padded to each other."""
        window = Window(0, 0, 1)
        given = [self._attributes(text, None, window, alone=True) for text in texts]
        return self._fuse([*given, *(_nothing(each) for each in given)])

    def _attributes(self, text: str, melody: Any, window: Window, *, alone: bool) -> Any:
        return attributes(text, melody, window, self._facts, self._device, alone=alone)

    def _fuse(self, attributes: list[Any]) -> Conditions:
        import torch

        with torch.inference_mode():
            tensors = self._provider(self._provider.tokenize(attributes))
            # The fuser lets an empty step show what it puts before, adds to and lays beside every step.
            empty = torch.zeros((len(attributes), 1, self._dim), device=self._device)
            fused, cross = self._fuser(empty, tensors)
        rows = _array(fused)
        added = rows[:, -1:] if self._fuser.fuse2cond.get("sum") else None
        return Conditions(rows[:, :-1], None if cross is None else _array(cross), added)


def melody_wave(spec: GenerationSpec, facts: ModelFacts, device: str) -> Any:
    """The melody as a float32 tensor [C, T] at the model's rate, or None, also where no condition takes it."""
    if spec.melody is None or not facts.melody:
        return None
    import torch

    from modules import audio

    clip = audio.to_channels(audio.resample(spec.melody, facts.sample_rate_hz), facts.channels)
    return torch.from_numpy(np.ascontiguousarray(clip.samples)).to(device)


def attributes(text: str, melody: Any, window: Window, facts: ModelFacts, device: str, *, alone: bool) -> Any:
    """What a window is conditioned on, as audiocraft's ConditioningAttributes.

    Args:
        melody: float32 tensor [C, T] at the model's rate, or None.
        alone: the generation is this one window; else the melody goes on where the window before left it, round and
            round.
    """
    import torch
    from audiocraft.modules.conditioners import ConditioningAttributes, WavCondition

    given = ConditioningAttributes(text={"description": text})
    if not facts.melody:
        return given
    rate = facts.sample_rate_hz
    if melody is None:
        wave, length = torch.zeros((1, 1, 1), device=device), 0
    elif alone:
        wave, length = melody[None], melody.shape[-1]
    else:
        first, length = int(window.start / facts.frame_rate_hz * rate), int(facts.max_window_s * rate)
        positions = torch.arange(first, first + length, device=device) % melody.shape[-1]
        wave = melody[None][..., positions]
    size = torch.tensor([length], device=device)
    given.wav["self_wav"] = WavCondition(wave, size, [rate], [None], [0.0])
    return given


def _nothing(attributes: Any) -> Any:
    """The unconditional twin."""
    from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

    return ClassifierFreeGuidanceDropout(p=1.0)([attributes])[0]


def _array(tensor: Any) -> Floats:
    import torch

    return np.ascontiguousarray(tensor.to("cpu", torch.float32).numpy())
