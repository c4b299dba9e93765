"""From logits to tokens, as audiocraft does it, in numpy and with a generator for each take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modules.musicgen.engine import Codes, Course, GenerationSpec

Logits: TypeAlias = npt.NDArray[np.float32]


def guide(conditional: Logits, unconditional: Logits, cfg_coef: float) -> Logits:
    """Classifier-free guidance (Ho & Salimans 2022): the unconditional logits moved `cfg_coef` times towards the
    conditional ones. Any equal shapes."""
    return np.asarray(unconditional + (conditional - unconditional) * np.float32(cfg_coef), np.float32)


@dataclass(frozen=True)
class Bias:
    """What is added to the guided logits of a window's steps.

    Args:
        steps: float32 [S, K, card], by the step that is drawn.
        course: and by the code before it.
    """

    steps: Logits
    course: Course

    def add(self, logits: Logits, step: int, before: Codes) -> Logits:
        """float32 [takes, K, card] moved, `before` int64 [takes, K] being the codes of the step before."""
        moved, books = logits + self.steps[step], np.arange(logits.shape[1])
        moved[np.arange(len(logits))[:, None], books, self.course.following[books, before]] += self.course.held[
            books, before
        ]
        return np.asarray(moved, np.float32)


class TensorBias:
    """The same in torch, of tensors alone: no number of the host's is looked at."""

    def __init__(self, bias: Bias, device: Any) -> None:
        import torch

        self._steps = torch.from_numpy(bias.steps).to(device)
        self._following = torch.from_numpy(bias.course.following).to(device)
        self._held = torch.from_numpy(bias.course.held).to(device)

    def add(self, logits: Any, step: Any, before: Any) -> Any:
        """logits [rows, K, card], step int64 [1], before int64 [rows, K]."""
        tables = (self._following.expand(len(before), -1, -1), self._held.expand(len(before), -1, -1))
        code, held = (table.gather(2, before[..., None]) for table in tables)
        moved = logits + self._steps.index_select(0, step)
        return moved.scatter_add(2, code, held.to(moved.dtype))


@dataclass(frozen=True)
class SamplingRule:
    """How a token is drawn: `temperature` 0 takes the most likely; else `top_p` > 0 goes before `top_k`; 0 is off."""

    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, spec: GenerationSpec) -> SamplingRule:
        return cls(spec.temperature, spec.top_k, spec.top_p)

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0


class Sampler:
    """Draws tokens for several takes; each take has its own generator and draws the same numbers whoever runs beside.

    Args:
        seeds: one a take.
    """

    def __init__(self, rule: SamplingRule, seeds: tuple[int, ...]) -> None:
        self.rule = rule
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def draw(self, logits: Logits) -> Codes:
        """float32 [takes, K, card] -> int64 [takes, K]."""
        if self.rule.greedy:
            return np.asarray(logits.argmax(axis=-1), np.int64)
        weights = token_weights(logits, self.rule)
        return pick(weights, self.uniform(1, logits.shape[1])[:, 0])

    def uniform(self, steps: int, codebooks: int) -> npt.NDArray[np.float64]:
        """The numbers the next `steps` draws use, in [0, 1), float64 [takes, steps, K]; those draws are then made."""
        return np.stack([generator.random((steps, codebooks)) for generator in self._generators])


def token_weights(logits: Logits, rule: SamplingRule) -> npt.NDArray[np.float64]:
    """Unnormalised probabilities, 0 for what the rule leaves out. float32 [..., card] -> float64 [..., card]."""
    card = logits.shape[-1]
    if rule.top_p <= 0 and 0 < rule.top_k < card:
        # Cut before the exponential: equal logits at the edge all stay in, as in audiocraft.
        edge = np.partition(logits, card - rule.top_k, axis=-1)[..., card - rule.top_k, None]
        logits = np.where(logits >= edge, logits, np.float32(-np.inf))
    peak = logits.max(axis=-1, keepdims=True)
    weights = np.exp((logits - peak).astype(np.float64) / rule.temperature)
    return _nucleus(weights, rule.top_p) if rule.top_p > 0 else weights


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.float64]:
    """Keep each token before which less than or just `top_p` of the probability lies, the likeliest first."""
    order = np.argsort(-weights, axis=-1, kind="stable")
    ranked = np.take_along_axis(weights, order, axis=-1)
    ranked /= ranked.sum(axis=-1, keepdims=True)
    before = np.cumsum(ranked, axis=-1) - ranked
    kept = np.where(before > top_p, 0.0, ranked)
    result = np.empty_like(weights)
    np.put_along_axis(result, order, kept, axis=-1)
    return result


def pick(weights: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> Codes:
    """Invert the cumulative distribution: weights [..., card], uniform [...] in [0, 1) -> int64 [...]."""
    cumulative = np.cumsum(weights, axis=-1)
    total = cumulative[..., -1]
    # A product rounded up to the total would fall off the end.
    target = np.minimum(uniform * total, np.nextafter(total, 0.0))
    # "<=" steps over tokens of weight 0 even where the target is exactly on an edge.
    return np.asarray((cumulative <= target[..., None]).sum(axis=-1), np.int64)
