"""Our own token loop: audiocraft's behaviour in every parameter, on whatever backend runs the decoder.

Takes are rows of one batch, each with its own generator. Finished frames leave as soon as the delay pattern has
completed them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modules.contract import EngineInfo, InvalidParameter
from modules.musicgen import memory
from modules.musicgen.backends.interface import Backend, Guidance
from modules.musicgen.conditions import Conditioner
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
from modules.musicgen.patterns import DelayPattern
from modules.musicgen.sampling import Bias, Sampler, SamplingRule

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.7
"""Of the free memory, what keys and values may take."""
MELODY_SEED = 0
"""The melody's separation shifts its input at random; a fixed seed gives every take and every run the same melody."""


class LoopEngine:
    """A decoder behind the Engine interface."""

    def __init__(self, backend: Backend, conditioner: Conditioner, pattern: DelayPattern, facts: ModelFacts) -> None:
        self._backend, self._conditioner, self._pattern, self.facts = backend, conditioner, pattern, facts

    @property
    def info(self) -> EngineInfo:
        return self._backend.info

    def close(self) -> None:
        self._backend.close()
        self._conditioner.close()

    def generate(self, spec: GenerationSpec, sink: Sink) -> Codes:
        """See Engine. A take draws the same numbers whatever runs beside it. Its tokens are the same as long as the
        backend rounds alike for every number of rows; one of them differing may end in other tokens."""
        prompt = check(spec, self.facts)
        _check_rule(spec)
        planned = plan(spec, self.facts, prompt)
        led = _Led(self._conditioner.melody(spec), steering(spec, self.facts, prompt))
        spec = completed(spec, self.facts, prompt, led.steering)
        groups = self._groups(spec, max(window.length for window in planned)) if planned else []
        meter = _Meter(sink, len(groups) * sum(self._steps(window) for window in planned))
        if len(groups) == 1:
            return self._windows(spec, planned, prompt, led, meter)
        # Takes must be told side by side, so those of several groups are told at the end.
        meter.muted = True
        parts = [self._windows(replace(spec, seeds=seeds), planned, prompt, led, meter) for seeds in groups]
        nothing = np.zeros((len(spec.seeds), self.facts.codebooks, 0), np.int64)
        codes = np.concatenate(parts) if parts else nothing
        sink.frames(codes)
        return codes

    def _groups(self, spec: GenerationSpec, frames: int) -> list[tuple[int, ...]]:
        """The seeds in as few groups as the free memory has room for."""
        rows = 1 if spec.cfg_coef == 1 else 2
        take = rows * self._backend.row_bytes(self._pattern.steps(frames) + memory.PREPENDED_STEPS)
        free = memory.available_bytes(self._backend.info.device) * MEMORY_SHARE
        size = max(1, min(len(spec.seeds), int(free // take)))
        if size < len(spec.seeds):
            log.info("%d takes run %d at a time: more do not fit the free memory", len(spec.seeds), size)
        return [spec.seeds[at : at + size] for at in range(0, len(spec.seeds), size)]

    def _windows(self, spec: GenerationSpec, planned: list[Window], prompt: Codes, led: _Led, meter: _Meter) -> Codes:
        with _fixed_randomness():
            return self._one_after_another(spec, planned, prompt, led, meter)

    def _one_after_another(
        self, spec: GenerationSpec, planned: list[Window], prompt: Codes, led: _Led, meter: _Meter
    ) -> Codes:
        """All windows of all takes, int64 [takes, K, T_new]."""
        takes = len(spec.seeds)
        sampler = Sampler(SamplingRule.of(spec), spec.seeds)
        known = np.repeat(prompt[None], takes, axis=0)
        guidance: Guidance | None = None
        for window in planned:
            # A text is the same in every window; a melody moves on.
            if guidance is None or led.melody is not None:
                guidance = self._guidance(spec, led.melody, window, alone=len(planned) == 1)
            if led.steering is not None:
                frames = led.steering.bias(window.known - prompt.shape[1], window.end - prompt.shape[1])
                steps = self._pattern.steps_of(frames, window.context, window.length)
                guidance = replace(guidance, bias=Bias(steps, led.steering.course))
            fresh = self._window(window, known[:, :, window.start :], guidance, sampler, meter)
            known = np.concatenate([known, fresh], axis=2)
        return known[:, :, prompt.shape[1] :]

    def _window(self, window: Window, context: Codes, guidance: Guidance, sampler: Sampler, meter: _Meter) -> Codes:
        """The new frames of one window, int64 [takes, K, n], told to the sink as they are finished."""
        pattern = self._pattern
        sequence = pattern.spread(context, window.length)
        step, told = pattern.first_step(window.context), window.context
        cursor = self._backend.cursor(guidance, sampler, sequence.shape[2], meter.breathe)
        try:
            while step < sequence.shape[2]:
                stop = min(step + cursor.stride, sequence.shape[2])
                cursor.advance(sequence, step, stop)
                finished = min(pattern.finished(stop), window.length)
                if finished > told:
                    meter.frames(pattern.gather(sequence, told, finished))
                    told = finished
                meter.step(stop - step)
                step = stop
        finally:
            cursor.close()
        return pattern.gather(sequence, window.context, window.length)

    def _guidance(self, spec: GenerationSpec, melody: Any, window: Window, *, alone: bool) -> Guidance:
        """The rows to run. With a coefficient of 1 the unconditional ones would be computed for nothing."""
        takes, coefficient = len(spec.seeds), spec.cfg_coef
        if spec.two_step_cfg and coefficient != 1:
            pair = self._conditioner.each(spec.prompt, melody, window, alone=alone)
            return Guidance(tuple(each.repeat(takes) for each in pair), takes, coefficient)
        rows = self._conditioner.both(spec.prompt, melody, window, alone=alone)
        if coefficient == 1:
            rows = rows.row(0)
        return Guidance((rows.repeat(takes),), takes, coefficient)

    def _steps(self, window: Window) -> int:
        return self._pattern.steps(window.length) - self._pattern.first_step(window.context)


@dataclass(frozen=True)
class _Led:
    """What leads a generation besides its text: a melody for the conditions, or what steers the sampling."""

    melody: Any
    steering: Steering | None


class _Meter:
    """Counts steps over windows for the sink."""

    def __init__(self, sink: Sink, total: int) -> None:
        self._sink = sink
        self.muted = False
        self._done, self._total = 0, total

    def frames(self, codes: Codes) -> None:
        if not self.muted:
            self._sink.frames(codes)

    def step(self, count: int) -> None:
        for _ in range(count):
            self._done += 1
            self._sink.progress(self._done, self._total)

    def breathe(self) -> None:
        """Between the pieces of a long context: nothing is done yet, but a cancel is heard."""
        self._sink.progress(self._done, self._total)


def _check_rule(spec: GenerationSpec) -> None:
    if not spec.seeds:
        raise InvalidParameter("takes: there must be at least one", field="takes")
    for name, value in (("top_k", spec.top_k), ("top_p", spec.top_p), ("temperature", spec.temperature)):
        if not value >= 0:
            raise InvalidParameter(f"{name}: {value} must be at least 0", field=name)


@contextmanager
def _fixed_randomness() -> Iterator[None]:
    """Python's generator, which the melody's separation draws from, fixed and put back after."""
    before = random.getstate()
    random.seed(MELODY_SEED)
    try:
        yield
    finally:
        random.setstate(before)
