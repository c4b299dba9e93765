"""From logits to tokens, as audiocraft does it, in numpy and with a generator for each take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from modules.musicgen.engine import Codes, GenerationSpec

Logits: TypeAlias = npt.NDArray[np.float32]


def guide(conditional: Logits, unconditional: Logits, cfg_coef: float) -> Logits:
    """Classifier-free guidance (Ho & Salimans 2022): the unconditional logits moved `cfg_coef` times towards the
    conditional ones. Any equal shapes."""
    return np.asarray(unconditional + (conditional - unconditional) * np.float32(cfg_coef), np.float32)


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
