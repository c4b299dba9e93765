"""audiocraft's own loop behind the Engine interface: slow, exact, what every other backend is compared with.

The windows past the model's own are cut here, because audiocraft counts its progress wrongly there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modules.contract import EngineInfo
from modules.musicgen.conditions import attributes, melody_wave
from modules.musicgen.engine import Codes, GenerationSpec, ModelFacts, Sink, Window, check, plan


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
        melody = melody_wave(spec, self.facts, self._device)
        takes = []
        for seed in spec.seeds:
            seed_everything(seed)
            parts = []
            for codes in self._take(spec, planned, prompt, melody, meter):
                parts.append(codes)
                if len(spec.seeds) == 1:
                    sink.frames(codes[None])
            takes.append(np.concatenate(parts, axis=1))
        result = np.stack(takes)
        if len(spec.seeds) > 1:
            sink.frames(result)
        return result

    def _take(
        self, spec: GenerationSpec, planned: list[Window], prompt: Codes, melody: Any, meter: _Meter
    ) -> Iterator[Codes]:
        """The new frames of each window, int64 [K, n]."""
        import torch

        known = prompt
        for window in planned:
            context = torch.from_numpy(known[None, :, window.start : window.known]).to(self._device)
            condition = attributes(spec.prompt, melody, window, self.facts, self._device, alone=len(planned) == 1)
            with self._guidance(spec.cfg_coef), self._autocast():
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
