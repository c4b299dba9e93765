"""The kernels of a card's step, run by Triton's interpreter on the CPU and, where there is a card, compiled on it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which is why this stands before what imports it.
    os.environ["TRITON_INTERPRET"] = "1"

from modules.musicgen import compat
from modules.musicgen.backends import cuda, fused
from modules.musicgen.backends.torch_static import StaticDecoder
from modules.musicgen.backends.weights import DecoderWeights, positions
from modules.musicgen.sampling import SamplingRule
from tests import decoders
from tests.decoders import Listener
from tests.test_engine import device_engine

pytest.importorskip("triton", reason="it comes with ./install.sh --dev on Linux")
ROOM, HEARD = 96, 70
"""Positions the buffers have, and how many are in them before the step that is looked at."""
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    compat.import_stack()


class Step:
    """One position after HEARD others, by plain torch and by the kernels."""

    def __init__(self, lm: Any, device: str, dtype: str, takes: int, guided: bool) -> None:
        weights = DecoderWeights(lm)
        self.plain = StaticDecoder(weights, device, getattr(torch, dtype))
        self.folded = StaticDecoder(weights, device, getattr(torch, dtype), fold=True)
        shape, generator = weights.shape, torch.Generator().manual_seed(1)
        self.takes, self.rows = takes, 2 * takes if guided else takes
        self.sine = torch.from_numpy(positions(0, ROOM, shape)).to(device, self.plain.dtype)
        self.states = torch.randn(self.rows, 5, shape.dim, generator=generator).to(self.sine)
        size = (takes, shape.codebooks, ROOM)
        self.sequence = torch.randint(0, shape.card, size, generator=generator).to(device)
        self.added: Any = None
        self.at = torch.tensor([HEARD], device=device)

    def tokens(self, first: int, last: int) -> Any:
        part = self.sequence[..., first:last]
        return torch.cat([part, part]) if self.rows > self.takes else part

    def begun(self, decoder: StaticDecoder) -> tuple[Any, Any]:
        kv = decoder.cache(self.rows, ROOM)
        cross = decoder.cross(self.states) if decoder.shape.cross else []
        x = decoder.embed(self.tokens(0, HEARD)) + self.sine[:HEARD]
        decoder.run(x, torch.arange(HEARD, device=x.device), kv, cross, HEARD)
        return kv, cross

    def expected(self) -> Any:
        kv, cross = self.begun(self.plain)
        x = self.plain.embed(self.tokens(HEARD, HEARD + 1))
        x = x if self.added is None else x + self.added
        logits = self.plain.run(x + self.sine[HEARD], self.at, kv, cross, HEARD + 1)
        return logits.float().unflatten(-1, (self.plain.shape.codebooks, self.plain.shape.card)).cpu().numpy()

    def found(self) -> Any:
        kv, cross = self.begun(self.folded)
        assert fused.suits(self.folded, self.rows)
        step = fused.FusedStep(self.folded, self.rows, self.takes)
        logits = step.logits(self.sequence, self.at, self.at.clone(), self.sine, self.added, kv, cross)
        return logits.cpu().numpy()


KINDS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo with biases": {"stereo": True, "bias": True},
    "conditions before the music": {"prepend": True},
}


@pytest.mark.parametrize("on", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("takes", "guided"), [(1, False), (1, True), (3, True)], ids=["1 row", "2 rows", "6 rows"])
def test_a_step_of_the_kernels_is_a_step_of_plain_torch(on: str, dtype: str, takes: int, guided: bool) -> None:
    step = Step(decoders.build(dim=32, layers=2, heads=2, card=64), on, dtype, takes, guided)
    expected, found = step.expected(), step.found()
    assert np.abs(found - expected).max() < (1e-5 if dtype == "float32" else 1e-2) * np.abs(expected).max()


@pytest.mark.parametrize("on", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_run_every_kind_of_model(on: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SPAN", 64)  # several stretches of the inputs, as a large model has
    step = Step(decoders.build(dim=64, layers=1, heads=4, card=64, **KINDS[kind]), on, "float32", 2, True)
    expected = step.expected()
    assert np.abs(step.found() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("on", DEVICES)
def test_what_is_added_to_every_position_is_added(on: str) -> None:
    lm = decoders.build(dim=32, layers=1, heads=2, card=64)
    step = Step(lm, on, "float32", 1, True)
    without = step.found()
    step.added = torch.linspace(-2, 2, 64, device=on).reshape(2, 1, 32)
    expected = step.expected()
    assert np.abs(step.found() - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(without - expected).max() > 1e-2


RULES = [
    SamplingRule(0.0, 50, 0.0), SamplingRule(1.0, 20, 0.0), SamplingRule(0.7, 1, 0.0), SamplingRule(1.3, 0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("on", DEVICES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kernel_draws_what_torch_draws_and_leaves_known_tokens_alone(
    on: str, guided: bool, rule: SamplingRule
) -> None:
    takes, lm = 2, decoders.build(dim=32, layers=1, heads=2, card=64)
    decoder = StaticDecoder(DecoderWeights(lm), on, torch.float32)
    books, card = decoder.shape.codebooks, decoder.shape.card
    step = fused.FusedStep(decoder, 2 * takes if guided else takes, takes)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        step._logits.copy_(3 * torch.randn(step._logits.shape, generator=generator))
        step._logits[0, 0, :9] = 2.5  # equals, perhaps at the edge of what may be drawn
        uniform = torch.rand(takes, 8, books, generator=generator).to(on)
        sequence = torch.full((takes, books, 8), -1, device=on)
        sequence[0, 1, 4] = 7
        step.draw(sequence, torch.tensor([3], device=on), uniform, rule, 3.0)
        logits = step._logits if not guided else step._logits[2:] + (step._logits[:2] - step._logits[2:]) * 3.0
        expected = cuda.draw(logits.reshape(takes, books, card), rule, uniform[:, 4])
        expected[0, 1] = 7
        assert (sequence[..., 4] == expected).all()
        assert (sequence[..., [0, 1, 2, 3, 5, 6, 7]] == -1).all()


@interpreted
def test_a_window_by_the_kernels_has_the_tokens_of_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = decoders.build(dim=32, layers=1, heads=2, card=64)
    spec = replace(decoders.SPEC, duration_s=0.04, temperature=1.0)
    expected = device_engine(lm, "cpu").generate(spec, Listener())
    monkeypatch.setattr(fused, "fits", fused.suits)
    assert (device_engine(lm, "cpu").generate(spec, Listener()) == expected).all()


@pytest.mark.gpu
@pytest.mark.parametrize("takes", [1, 2, 4])
def test_a_window_of_recorded_kernels_has_the_tokens_of_launched_ones(
    takes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernels that start early must not read what is not there yet."""
    lm = decoders.build(dim=64, layers=3, heads=4)
    spec = replace(decoders.SPEC, duration_s=2.0, seeds=tuple(range(takes)), temperature=1.0)
    for precision in ("float32", "float16", "bfloat16"):
        recorded = device_engine(lm, "cuda", precision).generate(spec, Listener())
        again = device_engine(lm, "cuda", precision).generate(spec, Listener())
        assert (recorded == again).all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda.DeviceCursor, "_capture", lambda cursor, _: setattr(cursor, "_capturing", False))
            assert (device_engine(lm, "cuda", precision).generate(spec, Listener()) == recorded).all()
    assert not caplog.messages, "the kernels did not run"


def test_without_triton_the_steps_are_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder: Any = type("Decoder", (), {"device": "cuda", "folded": True, "shape": None})
    monkeypatch.setattr(fused, "triton", None)
    assert not fused.fits(decoder, 2)


def test_a_decoder_whose_kernels_failed_is_not_tried_again() -> None:
    lm = decoders.build(dim=32, layers=1, heads=2, card=64)
    decoder = StaticDecoder(DecoderWeights(lm), "cpu", torch.float32, fold=True)
    assert fused.suits(decoder, 2)
    decoder.kernels_failed = True
    assert not fused.suits(decoder, 2)


@pytest.mark.gpu
def test_kernels_that_fail_give_way_to_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("there is no C compiler")

    lm, spec = decoders.build(dim=64, layers=2, heads=4), replace(decoders.SPEC, duration_s=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "fits", lambda _decoder, _rows: False)
        expected = device_engine(lm, "cuda").generate(spec, Listener())
    monkeypatch.setattr(fused.FusedStep, "logits", fail)
    assert (device_engine(lm, "cuda").generate(spec, Listener()) == expected).all()
    assert "no C compiler" in caplog.text
