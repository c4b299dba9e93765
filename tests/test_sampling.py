"""Guidance and sampling; audiocraft's own functions are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modules.musicgen.sampling import Sampler, SamplingRule, guide, pick, token_weights

CARD = 96
RULES = {
    "top-k": SamplingRule(temperature=1.0, top_k=20, top_p=0.0),
    "top-k and a temperature": SamplingRule(temperature=1.7, top_k=50, top_p=0.0),
    "top-p over top-k": SamplingRule(temperature=0.8, top_k=3, top_p=0.9),
    "everything": SamplingRule(temperature=1.0, top_k=0, top_p=0.0),
}


def logits(takes: int = 1, codebooks: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (takes, codebooks, CARD)).astype(np.float32)


def audiocrafts_probabilities(values: np.ndarray, rule: SamplingRule) -> np.ndarray:
    """What LMModel._sample_next_token draws from, as audiocraft hands it to its multinomial."""
    import torch
    from audiocraft.utils import utils

    handed = []

    def keep(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        handed.append(probs.clone())
        return torch.zeros((*probs.shape[:-1], 1), dtype=torch.long)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "multinomial", keep)
        probs = torch.softmax(torch.from_numpy(values) / rule.temperature, dim=-1)
        order = None
        if rule.top_p > 0:
            order = torch.sort(probs, dim=-1, descending=True)[1]
            utils.sample_top_p(probs.clone(), rule.top_p)
        elif rule.top_k > 0:
            utils.sample_top_k(probs.clone(), rule.top_k)
        else:
            keep(probs, 1)
    found = handed[0]
    return np.asarray(found if order is None else torch.zeros_like(found).scatter(-1, order, found))


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    from modules.musicgen import compat

    compat.import_stack()


@pytest.mark.parametrize("name", RULES)
def test_probabilities_are_audiocrafts(name: str) -> None:
    values, rule = logits(3, 4), RULES[name]
    weights = token_weights(values, rule)
    ours = weights / weights.sum(axis=-1, keepdims=True)
    assert np.allclose(ours, audiocrafts_probabilities(values, rule), atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_draws_are_distributed_as_audiocrafts_by_a_chi_square_test(name: str) -> None:
    values, rule, draws = logits(1, 1, seed=5), RULES[name], 20_000
    sampler = Sampler(rule, (11,))
    many = np.repeat(values, draws, axis=1)
    seen = np.bincount(sampler.draw(many)[0], minlength=CARD)
    expected = audiocrafts_probabilities(values, rule)[0, 0].astype(np.float64) * draws
    assert (seen[expected == 0] == 0).all()
    common = expected >= 5
    seen_all = np.append(seen[common], seen[~common].sum())
    expected_all = np.append(expected[common], expected[~common].sum())
    kept = expected_all > 0
    result = stats.chisquare(seen_all[kept], expected_all[kept] * seen_all.sum() / expected_all.sum())
    assert result.pvalue > 1e-3


def test_a_wrong_distribution_fails_the_same_chi_square_test() -> None:
    values, draws = logits(1, 1, seed=5), 20_000
    seen = np.bincount(Sampler(RULES["top-k"], (11,)).draw(np.repeat(values, draws, axis=1))[0], minlength=CARD)
    other = token_weights(values, SamplingRule(temperature=1.1, top_k=20, top_p=0.0))[0, 0]
    expected = other / other.sum() * draws
    common = expected >= 5
    assert stats.chisquare(seen[common], expected[common] * seen[common].sum() / expected[common].sum()).pvalue < 1e-6


def test_temperature_zero_takes_the_most_likely_token_whatever_else_is_asked() -> None:
    values = logits(2, 4)
    drawn = Sampler(SamplingRule(temperature=0.0, top_k=5, top_p=0.5), (1, 2)).draw(values)
    assert (drawn == values.argmax(axis=-1)).all()


def test_tokens_as_likely_as_the_kth_stay_in_as_in_audiocraft() -> None:
    values = np.zeros((1, 1, CARD), np.float32)
    values[..., :5] = 1
    weights = token_weights(values, SamplingRule(temperature=1.0, top_k=3, top_p=0.0))
    assert (weights > 0).sum() == 5


def test_a_takes_draws_do_not_depend_on_the_takes_beside_it() -> None:
    rule, values = RULES["top-k"], logits(3, 4)
    together, alone = Sampler(rule, (4, 5, 6)), Sampler(rule, (5,))
    for _ in range(20):
        assert (together.draw(values)[1] == alone.draw(values[1:2])[0]).all()


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    values = logits(1, 4)
    first, again, other = (
        [Sampler(RULES["everything"], (seed,)).draw(values).tolist() for _ in range(2)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_guidance_moves_from_the_unconditional_to_and_past_the_conditional() -> None:
    conditional, unconditional = logits(seed=1), logits(seed=2)
    assert np.allclose(guide(conditional, unconditional, 0), unconditional)
    assert np.allclose(guide(conditional, unconditional, 1), conditional, atol=1e-6)
    assert np.allclose(guide(conditional, unconditional, 3), 3 * conditional - 2 * unconditional, atol=1e-5)


@settings(max_examples=200)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda weights: sum(weights) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_without_weight_is_never_picked(weights: list[float], uniform: float) -> None:
    picked = int(pick(np.array(weights), np.array(uniform)))
    assert 0 <= picked < len(weights)
    assert weights[picked] > 0


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_pick_the_first_and_the_last_token_with_weight(uniform: float) -> None:
    weights = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    assert int(pick(weights, np.array(uniform))) == (1 if uniform == 0 else 3)
