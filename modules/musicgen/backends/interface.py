"""What a way of running the decoder must offer: conditions prepared and a pass opened, then one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from modules.contract import EngineInfo
from modules.musicgen.conditions import Conditions
from modules.musicgen.engine import Codes
from modules.musicgen.patterns import UNKNOWN
from modules.musicgen.sampling import Bias, Logits, Sampler, guide

PREFILL_STEPS = 32
"""Positions of a context fed at once: few enough that a cancel is honoured soon."""


class Pass(Protocol):
    """Some rows going through the decoder side by side, from their first position on."""

    def feed(self, tokens: Codes) -> Logits:
        """Feed the next n positions of every row, int64 [rows, K, n].

        The first call also feeds what the conditions put before.

        Returns:
            float32 [rows, K, card]: the logits after the last of them. The array may be written over by the next call.
        """

    def close(self) -> None:
        """Let go of the keys and values."""


@dataclass(frozen=True)
class Guidance:
    """How the logits of rows become the logits of takes.

    Args:
        passes: Conditions of the rows of each pass. One pass of `takes` rows: no guidance. One of 2 * takes rows: the
            conditional rows, then the unconditional ones. Two passes of `takes` rows: the same, one after the other.
        takes: how many.
        cfg_coef: the guidance's strength.
        bias: what is added to the guided logits, made for the window.
    """

    passes: tuple[Conditions, ...]
    takes: int
    cfg_coef: float
    bias: Bias | None = None


class Cursor(Protocol):
    """A window on its way."""

    stride: int
    """Steps worth taking at once: 1, or more where asking after each one would hold the device up."""

    def advance(self, sequence: Codes, start: int, stop: int) -> None:
        """Fill `sequence[..., start:stop]` where it is UNKNOWN; all that is before is known. int64 [takes, K, S]."""

    def close(self) -> None:
        """Let go of the keys and values."""


class Backend(Protocol):
    """One loaded decoder."""

    @property
    def info(self) -> EngineInfo: ...

    def row_bytes(self, positions: int) -> int:
        """Memory a row of so many positions takes."""

    def cursor(self, guidance: Guidance, sampler: Sampler, positions: int, breathe: Callable[[], None]) -> Cursor:
        """Open a window of `positions` steps. `breathe` is called between the pieces of long work and may raise."""

    def close(self) -> None:
        """Let go of everything, weights included."""


class HostCursor:
    """Guides and samples on the CPU, whatever runs the rows.

    Args:
        start: opens a pass for some conditions.
    """

    stride = 1

    def __init__(
        self, start: Callable[[Conditions], Pass], guidance: Guidance, sampler: Sampler, breathe: Callable[[], None]
    ) -> None:
        self._guidance, self._sampler, self._breathe = guidance, sampler, breathe
        self._passes = [start(conditions) for conditions in guidance.passes]
        self._fed = 0

    def advance(self, sequence: Codes, start: int, stop: int) -> None:
        for step in range(start, stop):
            while step - self._fed > PREFILL_STEPS:
                self._feed(sequence[..., self._fed : self._fed + PREFILL_STEPS])
                self._breathe()
            logits = self._feed(sequence[..., self._fed : step])
            if self._guidance.bias is not None:
                logits = self._guidance.bias.add(logits, step, sequence[..., step - 1])
            drawn, column = self._sampler.draw(logits), sequence[..., step]
            sequence[..., step] = np.where(column == UNKNOWN, drawn, column)

    def close(self) -> None:
        for each in self._passes:
            each.close()
        self._passes = []

    def _feed(self, tokens: Codes) -> Logits:
        self._fed += tokens.shape[2]
        takes, coefficient = self._guidance.takes, self._guidance.cfg_coef
        if len(self._passes) == 2:
            conditional, unconditional = (each.feed(tokens) for each in self._passes)
            return guide(conditional, unconditional, coefficient)
        if self._guidance.passes[0].rows == takes:
            return self._passes[0].feed(tokens)
        logits = self._passes[0].feed(np.concatenate([tokens, tokens]))
        return guide(logits[:takes], logits[takes:], coefficient)
