"""audiocraft's own loop behind the Engine interface: slow, exact, what every other backend is compared with.

The windows past the model's own are cut here, because audiocraft counts its progress wrongly there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from modules.contract import EngineInfo
from modules.musicgen.conditions import attributes, melody_wave
from modules.musicgen.engine import (
    Codes,
    GenerationSpec,
    ModelFacts,
    Sink,
    Steering,
    Window,
    check,
    completed,
    plan,
    steering,
)
from modules.musicgen.patterns import delay_pattern
from modules.musicgen.sampling import Bias, TensorBias

FORBIDDEN = -1e4
"""Infinities would have no difference."""


class ReferenceEngine:
    """One LMModel, one take at a time.

    A take's tokens depend on its seed and on no other take: each runs alone, the generators seeded right before.
    """

    def __init__(self, lm: Any, device: str, facts: ModelFacts, why: str = "") -> None:
        self._lm: Any = lm
        self._device = device
        self.facts = facts
        self._info = EngineInfo(backend="reference", precision=facts.precision, device=device, why=why)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def close(self) -> None:
        self._lm = None

    def generate(self, spec: GenerationSpec, sink: Sink) -> Codes:
        """See Engine. With one take the frames of each window are delivered when it is done, else all at the end."""
        prompt = check(spec, self.facts)
        planned = plan(spec, self.facts, prompt)
        meter = _Meter(sink, len(spec.seeds) * sum(self._steps(window) for window in planned))
        melody, steered = melody_wave(spec, self.facts, self._device), steering(spec, self.facts, prompt)
        spec = completed(spec, self.facts, prompt, steered)
        takes = []
        for seed in spec.seeds:
            seed_everything(seed)
            parts = []
            for codes in self._take(spec, planned, prompt, melody, steered, meter):
                parts.append(codes)
                if len(spec.seeds) == 1:
                    sink.frames(codes[None])
            takes.append(np.concatenate(parts, axis=1))
        result = np.stack(takes)
        if len(spec.seeds) > 1:
            sink.frames(result)
        return result

    def _take(
        self,
        spec: GenerationSpec,
        planned: list[Window],
        prompt: Codes,
        melody: Any,
        steered: Steering | None,
        meter: _Meter,
    ) -> Iterator[Codes]:
        """The new frames of each window, int64 [K, n]."""
        import torch

        known = prompt
        for window in planned:
            context = torch.from_numpy(known[None, :, window.start : window.known]).to(self._device)
            condition = attributes(spec.prompt, melody, window, self.facts, self._device, alone=len(planned) == 1)
            bias = self._bias(steered, window, prompt.shape[1])
            passes = 2 if spec.two_step_cfg else 1
            with self._guidance(spec.cfg_coef), self._autocast(), biased(self._lm, bias, passes):
                codes = self._lm.generate(
                    context if window.context else None,
                    [condition],
                    max_gen_len=window.length,
                    temp=spec.temperature,
                    top_k=min(spec.top_k, self.facts.cardinality),
                    top_p=spec.top_p,
                    cfg_coef=spec.cfg_coef,
                    two_step_cfg=spec.two_step_cfg,
                    remove_prompts=True,
                    callback=meter.step,
                )
            fresh = codes[0].to("cpu", torch.int64).numpy()
            known = np.concatenate([known, fresh], axis=1)
            yield fresh

    def _bias(self, steered: Steering | None, window: Window, prompt_frames: int) -> list[Bias]:
        """What moves the window's logits, if anything does."""
        if steered is None:
            return []
        pattern = delay_pattern(self._lm.pattern_provider, self.facts.cardinality)
        frames = steered.bias(window.known - prompt_frames, window.end - prompt_frames)
        return [Bias(pattern.steps_of(frames, window.context, window.length), steered.course)]

    def _steps(self, window: Window) -> int:
        """Decoder steps of a window: its new frames and the pattern's delay."""
        pattern = self._lm.pattern_provider.get_pattern(window.length)
        return len(pattern.layout) - int(pattern.get_first_step_with_timesteps(window.context))

    @contextmanager
    def _guidance(self, cfg_coef: float) -> Iterator[None]:
        """The model's own coefficient set to the one asked for: with two_step_cfg audiocraft reads that one."""
        before = self._lm.cfg_coef
        self._lm.cfg_coef = cfg_coef
        try:
            yield
        finally:
            self._lm.cfg_coef = before

    def _autocast(self) -> Any:
        import torch

        half = self.facts.precision in ("float16", "bfloat16")
        dtype = torch.bfloat16 if self.facts.precision == "bfloat16" else torch.float16
        return torch.autocast(self._device, dtype=dtype, enabled=half and self._device != "cpu")


@contextmanager
def biased(lm: Any, biases: Sequence[Bias], passes: int = 1) -> Iterator[None]:
    """What audiocraft's loop computes inside is moved.

    That is done before the guidance, to the conditional and to the unconditional logits: their difference stays, so
    the guided ones are moved by as much.

    Args:
        biases: one for each row, or none.
        passes: 2 where the conditional logits and the others are computed one after the other.
    """
    if not biases:
        yield
        return
    import torch

    device = next(lm.parameters()).device
    tensors = [TensorBias(replace(bias, steps=np.maximum(bias.steps, FORBIDDEN)), device) for bias in biases]
    fed, calls = [0] * passes, 0

    def move(_: Any, arguments: tuple[Any, ...], logits: Any) -> Any:
        nonlocal calls
        sequence, turn = arguments[0], calls % passes
        fed[turn], calls = fed[turn] + sequence.shape[-1], calls + 1
        step = torch.tensor([fed[turn]], device=device)
        last = logits[..., -1, :]
        rows = [
            tensors[row % len(tensors)].add(last[row : row + 1], step, sequence[row : row + 1, :, -1])
            for row in range(len(last))
        ]
        return torch.cat([logits[..., :-1, :], torch.cat(rows)[..., None, :].to(logits.dtype)], dim=-2)

    hook = lm.register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


class _Meter:
    """Counts steps over takes and windows."""

    def __init__(self, sink: Sink, total: int) -> None:
        self._progress: Callable[[int, int], None] = sink.progress
        self._done, self._total = 0, total

    def step(self, _done: int, _total: int) -> None:
        """audiocraft's callback after each step; its own numbers know one window only."""
        self._done += 1
        self._progress(self._done, self._total)


def seed_everything(seed: int) -> None:
    """Seed every generator a sampler or demucs' random shift may draw from."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global one
    torch.manual_seed(seed)
