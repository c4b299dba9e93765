"""Our own token loop against audiocraft's, on every backend a CPU can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import settings
from modules.audio import Clip
from modules.contract import Cancelled, InvalidParameter, ModelBroken
from modules.musicgen import backends, compat, memory
from modules.musicgen.catalog import Shape
from modules.musicgen.engine import Codes, Course, Engine, GenerationSpec, ModelFacts
from modules.musicgen.patterns import UNKNOWN, DelayPattern
from tests import decoders
from tests.decoders import SPEC, Listener

Open = Callable[..., Engine]


@pytest.fixture(scope="module", autouse=True)
def stack() -> None:
    import torch

    compat.import_stack()
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "mono": {}, "stereo": {"stereo": True}, "prepending": {"prepend": True}, "biased": {"bias": True},
    }  # fmt: skip
    return {name: decoders.build(**options) for name, options in kinds.items()}


@pytest.fixture(scope="module")
def engines(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Open:
    folder, made = tmp_path_factory.mktemp("cache"), {}

    def open_engine(kind: str, backend: str, precision: str = "float32") -> Engine:
        key = (kind, backend, precision)
        if key not in made:
            options = ["--cache-dir", str(folder / kind), "--backend", backend, "--precision", precision]
            lm = models[kind]
            made[key] = backends.choose(
                settings.parse([*options, "--threads", "1"], {}), lm, "cpu", decoders.facts(lm, precision)
            )
        return made[key]

    return open_engine


def some_codes(frames: int, codebooks: int = 4) -> Codes:
    return np.random.default_rng(1).integers(0, decoders.CARD, (codebooks, frames))


CASES = {
    "one window": replace(SPEC, duration_s=2.0),
    "three windows": replace(SPEC, duration_s=4.5),
    "no guidance": replace(SPEC, cfg_coef=1.0),
    "strong guidance in two steps": replace(SPEC, cfg_coef=6.0, two_step_cfg=True),
    "an empty text": replace(SPEC, prompt=""),
    "a prompt": replace(SPEC, prompt_codes=some_codes(40)),
    "a prompt that fills the window": replace(SPEC, prompt_codes=some_codes(130)),
}


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_audiocrafts(engines: Open, backend: str, case: str) -> None:
    expected = engines("mono", "reference").generate(CASES[case], Listener())
    assert (engines("mono", backend).generate(CASES[case], Listener()) == expected).all()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("kind", ["stereo", "prepending", "biased"])
def test_greedy_tokens_of_other_kinds_of_model_are_audiocrafts(engines: Open, backend: str, kind: str) -> None:
    spec = replace(SPEC, duration_s=2.6)
    expected = engines(kind, "reference").generate(spec, Listener())
    assert (engines(kind, backend).generate(spec, Listener()) == expected).all()


@pytest.mark.parametrize("two_step", [False, True])
def test_the_prepended_conditions_of_a_pass_apart_are_padded_as_audiocraft_pads_them(
    engines: Open, two_step: bool
) -> None:
    spec = replace(SPEC, two_step_cfg=two_step, cfg_coef=4.0)
    expected = engines("prepending", "reference").generate(spec, Listener())
    assert (engines("prepending", "onnx").generate(spec, Listener()) == expected).all()


@pytest.mark.slow
def test_greedy_tokens_stay_audiocrafts_over_500_steps(models: dict[str, Any], tmp_path: Path) -> None:
    lm = models["mono"]
    facts = decoders.facts(lm, window_s=10.0)
    spec = replace(SPEC, duration_s=10.0)
    ours, theirs = (
        backends.choose(settings.parse(["--cache-dir", str(tmp_path), "--backend", name], {}), lm, "cpu", facts)
        for name in ("onnx", "reference")
    )
    expected = theirs.generate(spec, Listener())
    assert expected.shape[2] == 500
    assert len({tuple(frame) for frame in expected[0].T}) > 50, "a model that repeats itself shows nothing"
    assert (ours.generate(spec, Listener()) == expected).all()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_takes_tokens_do_not_depend_on_the_takes_beside_it(engines: Open, backend: str) -> None:
    spec = replace(SPEC, temperature=1.0, seeds=(5, 6, 7))
    engine = engines("mono", backend)
    together = engine.generate(spec, Listener())
    alone = [engine.generate(replace(spec, seeds=(seed,)), Listener())[0] for seed in spec.seeds]
    assert [(a == b).all() for a, b in zip(together, alone, strict=True)] == [True] * 3
    assert (together[0] != together[1]).any()


def test_a_prompt_is_shared_by_the_takes_and_left_out_of_the_answer(engines: Open) -> None:
    spec = replace(SPEC, temperature=1.0, seeds=(5, 6), prompt_codes=some_codes(60))
    codes = engines("mono", "onnx").generate(spec, Listener())
    assert codes.shape == (2, 4, 50)
    alone = engines("mono", "onnx").generate(replace(spec, seeds=(6,)), Listener())
    assert (codes[1] == alone[0]).all()


@pytest.mark.parametrize("case", ["one window", "three windows", "a prompt"])
def test_frames_come_as_soon_as_they_are_finished_and_join_to_the_answer(engines: Open, case: str) -> None:
    listener = Listener()
    codes = engines("mono", "onnx").generate(replace(CASES[case], seeds=(1, 2)), listener)
    assert (np.concatenate(listener.pieces, axis=2) == codes).all()
    assert max(piece.shape[2] for piece in listener.pieces) == 1


def test_progress_rises_by_one_to_the_total_over_all_windows(engines: Open) -> None:
    listener = Listener()
    engines("mono", "onnx").generate(CASES["three windows"], listener)
    total = listener.steps[0][1]
    # While a window reads its context the last number is said again, so that a cancel is heard.
    assert list(dict.fromkeys(listener.steps)) == [(done, total) for done in range(1, total + 1)]
    assert listener.steps == sorted(listener.steps)


@pytest.mark.parametrize("step", [1, 30, 103])
def test_a_cancel_is_honoured_at_its_step_and_the_engine_works_on(engines: Open, step: int) -> None:
    engine, listener = engines("mono", "onnx"), Listener(stop_at=step)
    with pytest.raises(Cancelled):
        engine.generate(CASES["one window"], listener)
    assert listener.steps[-1][0] == step
    assert engine.generate(SPEC, Listener()).shape == (1, 4, 50)


def test_a_cancel_is_heard_while_a_long_prompt_is_read(engines: Open) -> None:
    listener = Listener(stop_at=0)
    with pytest.raises(Cancelled):
        engines("mono", "onnx").generate(CASES["a prompt"], listener)
    assert listener.steps == [(0, 53)]


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(engines: Open) -> None:
    spec = replace(SPEC, temperature=1.0)
    engine = engines("mono", "onnx")
    first, again, other = (engine.generate(replace(spec, seeds=(s,)), Listener()) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_text_and_the_guidance_change_the_tokens(engines: Open) -> None:
    engine = engines("mono", "onnx")
    plain = engine.generate(SPEC, Listener())
    for change in ({"prompt": "dark techno drums"}, {"cfg_coef": 8.0}):
        assert (engine.generate(replace(SPEC, **change), Listener()) != plain).any()


def test_generating_leaves_pythons_own_generator_where_it_was(engines: Open) -> None:
    import random

    random.seed(5)
    before = random.getstate()
    engines("mono", "onnx").generate(replace(SPEC, temperature=1.0), Listener())
    assert random.getstate() == before


def test_takes_that_do_not_fit_the_memory_together_run_in_groups_with_the_same_tokens(
    engines: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(SPEC, temperature=1.0, seeds=(5, 6, 7), duration_s=2.5)
    engine = engines("mono", "onnx")
    together = engine.generate(spec, Listener())
    room = 2 * 2 * engine._backend.row_bytes(100 + 4 + 512)  # type: ignore[attr-defined]
    monkeypatch.setattr(memory, "available_bytes", lambda _: room / 0.7 + 1)
    listener = Listener()
    apart = engine.generate(spec, listener)
    assert (apart == together).all()
    assert [piece.shape for piece in listener.pieces] == [(3, 4, 125)]
    assert listener.steps[-1][0] == listener.steps[-1][1]


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": -0.1}, {"seeds": ()}])
def test_a_rule_that_cannot_be_is_refused(engines: Open, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        engines("mono", "onnx").generate(replace(SPEC, **change), Listener())


# ------------------------------------------------------------------------------- what the memory is reckoned with
def kept_bytes(engine: Any, takes: int) -> int:
    """What the keys and values of a whole window really take."""
    from modules.musicgen.backends.interface import Guidance
    from modules.musicgen.engine import Window
    from modules.musicgen.sampling import Sampler, SamplingRule

    rows = engine._conditioner.both("a warm piano", None, Window(0, 0, 1), alone=True).repeat(takes)
    steps, sampler = engine._pattern.steps(decoders.FRAMES), Sampler(SamplingRule(1.0, 0, 0.0), tuple(range(takes)))
    cursor = engine._backend.cursor(Guidance((rows,), takes, 3.0), sampler, steps, lambda: None)
    (opened,) = cursor._passes
    arrays = opened._buffers.values() if hasattr(opened, "_buffers") else [part for pair in opened._kv for part in pair]
    total = int(sum(array.nbytes for array in arrays))
    cursor.close()
    return total


@pytest.mark.parametrize("takes", [1, 3])
@pytest.mark.parametrize(
    ("backend", "precision"), [("torch", "float32"), ("onnx", "float32"), ("onnx", "int8"), ("onnx", "int4")]
)
def test_keys_and_values_are_reckoned_as_the_backend_allocates_them(
    engines: Open, backend: str, precision: str, takes: int
) -> None:
    shape = Shape(dim=64, layers=3, card=decoders.CARD)
    kept = kept_bytes(engines("mono", backend, precision), takes)
    assert memory.cache_bytes(shape, decoders.FRAMES, precision, takes) == kept


def test_what_a_melody_model_puts_before_has_room_in_the_reckoning(engines: Open) -> None:
    shape, frames = Shape(dim=64, layers=3, card=decoders.CARD, cross_attention=False), decoders.FRAMES
    kept, reckoned = kept_bytes(engines("prepending", "onnx"), 1), memory.cache_bytes(shape, frames, "float32")
    assert kept <= reckoned
    # Three words are put before, where there is room for 512 positions.
    assert reckoned - kept == (memory.PREPENDED_STEPS - 3) * 2 * 2 * 3 * 64 * 4


def test_a_build_without_int8_attention_is_reckoned_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(dim=64, layers=3)
    small = memory.cache_bytes(shape, 100, "int8")
    monkeypatch.setattr("modules.musicgen.backends.onnx.int8_cache_works", lambda: False)
    assert memory.cache_bytes(shape, 100, "int8") == 4 * small == memory.cache_bytes(shape, 100, "float32")


# -------------------------------------------------------------------------------------------------- steering
MELODY = Clip(np.zeros((1, 320), np.float32), 32_000)


class Steered:
    """Adds the same to each frame's logits, as a test decides by the frame's number."""

    def __init__(self, bias: Callable[[int], np.ndarray], following: Codes | None = None, held: float = 0.0) -> None:
        shape = (4, decoders.CARD + 1)
        self._bias = bias
        following = np.zeros(shape, np.int64) if following is None else following
        self.course = Course(following, np.full(shape, held, np.float32))
        self.sounding = np.zeros(12, np.float32)

    def bias(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._bias(frame) for frame in range(start, stop)]).astype(np.float32)


def steer(patch: pytest.MonkeyPatch, engine: Engine, steering: Steered, spec: GenerationSpec) -> Codes:
    facts: ModelFacts = engine.facts  # type: ignore[attr-defined]
    patch.setattr(engine, "facts", replace(facts, follow=lambda _: steering))
    return engine.generate(replace(spec, melody=MELODY), Listener())


@pytest.fixture(params=["torch", "onnx", "reference", "on its device"])
def any_engine(request: pytest.FixtureRequest, engines: Open, models: dict[str, Any]) -> Engine:
    on_device = request.param == "on its device"
    return device_engine(models["mono"], "cpu") if on_device else engines("mono", request.param)


STEERED = {
    "two windows": replace(SPEC, duration_s=2.6, temperature=1.0, seeds=(1, 2)),
    "a prompt, in two steps": replace(SPEC, temperature=1.0, prompt_codes=some_codes(70), two_step_cfg=True),
}


@pytest.mark.parametrize("case", STEERED)
def test_only_the_codes_that_steering_allows_in_a_frame_come_in_it(
    any_engine: Engine, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def allowed(frame: int) -> np.ndarray:
        return np.asarray((np.arange(decoders.CARD) - np.arange(4)[:, None] - frame) % 7 == 0)

    steering = Steered(lambda frame: np.where(allowed(frame), 0, -np.inf))
    codes = steer(monkeypatch, any_engine, steering, STEERED[case])
    assert codes.shape[1:] == (4, STEERED[case].duration_s * 50)
    wanted = np.stack([allowed(frame) for frame in range(codes.shape[2])], axis=1)
    assert np.take_along_axis(wanted[None].repeat(len(codes), 0), codes[..., None], 3).all()
    assert len(np.unique(codes)) > 20


def test_steering_that_adds_nothing_leaves_the_tokens_as_they_are(
    any_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = STEERED["a prompt, in two steps"]
    plain = any_engine.generate(spec, Listener())
    nothing = Steered(lambda _: np.zeros((4, decoders.CARD)))
    assert (steer(monkeypatch, any_engine, nothing, spec) == plain).all()


def test_a_code_that_is_held_leads_to_the_one_that_follows_it(
    any_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = np.tile((np.arange(decoders.CARD + 1) + 3) % decoders.CARD, (4, 1))
    steering = Steered(lambda _: np.zeros((4, decoders.CARD)), following, held=1e4)
    codes = steer(monkeypatch, any_engine, steering, replace(SPEC, prompt_codes=some_codes(20)))
    joined = np.concatenate([some_codes(20)[None], codes], axis=2)[:, :, 19:]
    assert (joined[..., 1:] == following[0][joined[..., :-1]]).all()


# ----------------------------------------------------------------------------------------- choosing a backend
def choose(lm: Any, folder: Path, *flags: str, device: str = "cpu") -> Engine:
    chosen = settings.parse(["--cache-dir", str(folder), *flags], {})
    return backends.choose(chosen, lm, device, decoders.facts(lm, "float32"))


def test_what_was_picked_and_why_is_told(models: dict[str, Any], tmp_path: Path) -> None:
    info = choose(models["mono"], tmp_path).info
    assert (info.backend, info.precision, info.device) == ("onnx", "float32", "cpu")
    assert "CPU" in info.why


def test_a_decoder_of_another_kind_falls_back_to_audiocrafts_loop_and_says_why(tmp_path: Path) -> None:
    lm = decoders.build()
    lm.transformer.positional_embedding = "rope"
    info = choose(lm, tmp_path).info
    assert info.backend == "reference"
    assert "rope" in info.why
    with pytest.raises(InvalidParameter, match="--backend onnx"):
        choose(lm, tmp_path, "--backend", "onnx")


def test_a_backend_of_another_device_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="--backend cuda"):
        choose(models["mono"], tmp_path, "--backend", "cuda")


def broken(change: Callable[[Any], None]) -> Any:
    lm = decoders.build()
    change(lm)
    return lm


def _shorten(lm: Any) -> None:
    import torch

    lm.transformer.layers[1].linear1.weight = torch.nn.Parameter(torch.zeros(64, 64))


def _drop(lm: Any) -> None:
    lm.transformer.layers[2].self_attn.out_proj.weight = None


def _spoil(lm: Any) -> None:
    lm.linears[3].weight.data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_shorten, "layers.1.linear1.weight"),
        (_drop, "layers.2.self_attn.out_proj.weight"),
        (_spoil, "linears.3.weight"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_layer_that_is_missing_misshapen_or_not_finite_is_named_and_never_played(
    tmp_path: Path, backend: str, change: Callable[[Any], None], words: str
) -> None:
    with pytest.raises(ModelBroken, match=words):
        choose(broken(change), tmp_path, "--backend", backend)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------- the delay pattern
@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([(0, 1, 2, 3), (0, 0, 1, 1, 2, 2, 3, 3), (0,), (1, 4)]))
def test_spreading_and_gathering_frames_is_the_identity(known: int, new: int, delays: tuple[int, ...]) -> None:
    pattern = DelayPattern(delays, special=99)
    codes = np.random.default_rng(0).integers(0, 99, (2, len(delays), known))
    sequence = pattern.spread(codes, known + new)
    assert (pattern.gather(sequence, 0, known) == codes).all()
    assert (sequence == UNKNOWN).sum() == 2 * len(delays) * new
    assert (sequence[..., 0] == 99).all()


@pytest.mark.parametrize("stereo", [False, True])
@pytest.mark.parametrize(("context", "frames"), [(0, 10), (7, 10), (1, 30)])
def test_the_pattern_is_audiocrafts(stereo: bool, context: int, frames: int) -> None:
    import torch
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    delays = (0, 0, 1, 1, 2, 2, 3, 3) if stereo else (0, 1, 2, 3)
    theirs = DelayedPatternProvider(len(delays), list(delays)).get_pattern(frames)
    codes = np.full((1, len(delays), frames), UNKNOWN)
    codes[..., :context] = np.random.default_rng(0).integers(0, 50, (1, len(delays), context))
    pattern = DelayPattern(delays, special=50)
    expected, _, _ = theirs.build_pattern_sequence(torch.from_numpy(codes), 50)
    assert (pattern.spread(codes[..., :context], frames) == expected.numpy()).all()
    assert pattern.first_step(context) == theirs.get_first_step_with_timesteps(context)


# ------------------------------------------------------------------------- the card's loop, on the CPU and on a card
def device_engine(lm: Any, device: str, precision: str = "float32") -> Engine:
    from modules.musicgen.backends.cuda import CudaBackend
    from modules.musicgen.backends.weights import DecoderWeights
    from modules.musicgen.conditions import Conditioner
    from modules.musicgen.loop import LoopEngine
    from modules.musicgen.patterns import delay_pattern

    facts = decoders.facts(lm, precision)
    backend = CudaBackend(DecoderWeights(lm), device, precision, "test")
    return LoopEngine(backend, Conditioner(lm, "cpu", facts), delay_pattern(lm.pattern_provider, lm.card), facts)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_a_loop_that_stays_on_its_device_gives_audiocrafts_greedy_tokens(
    engines: Open, models: dict[str, Any], device: str, case: str
) -> None:
    expected = engines("mono", "reference").generate(CASES[case], Listener())
    assert (device_engine(models["mono"], device).generate(CASES[case], Listener()) == expected).all()


@pytest.mark.parametrize("kind", ["stereo", "prepending", "biased"])
@pytest.mark.parametrize("two_step", [False, True])
def test_a_loop_that_stays_on_its_device_runs_every_kind_of_model(
    engines: Open, models: dict[str, Any], kind: str, two_step: bool
) -> None:
    spec = replace(SPEC, two_step_cfg=two_step, cfg_coef=4.0)
    expected = engines(kind, "reference").generate(spec, Listener())
    assert (device_engine(models[kind], "cpu").generate(spec, Listener()) == expected).all()


@pytest.mark.parametrize(
    "rule", [{"top_k": 20}, {"top_p": 0.8}, {"top_k": 0}, {"top_k": 50, "temperature": 1.6}], ids=str
)
def test_sampling_on_the_device_draws_what_the_host_draws(
    engines: Open, models: dict[str, Any], rule: dict[str, Any]
) -> None:
    spec = replace(SPEC, **{"temperature": 1.0, "seeds": (4, 9), **rule})
    expected = engines("mono", "torch").generate(spec, Listener())
    assert (device_engine(models["mono"], "cpu").generate(spec, Listener()) == expected).all()


def test_a_loop_that_stays_on_its_device_tells_frames_and_progress_and_hears_a_cancel(models: dict[str, Any]) -> None:
    engine, listener = device_engine(models["mono"], "cpu"), Listener()
    codes = engine.generate(CASES["three windows"], listener)
    assert (np.concatenate(listener.pieces, axis=2) == codes).all()
    assert listener.steps[-1][0] == listener.steps[-1][1]
    stopped = Listener(stop_at=20)
    with pytest.raises(Cancelled):
        engine.generate(CASES["one window"], stopped)
    assert stopped.steps[-1][0] == 20
    assert (engine.generate(CASES["three windows"], Listener()) == codes).all()


@pytest.mark.gpu
def test_captured_steps_on_a_card_give_the_tokens_of_steps_launched_one_by_one(models: dict[str, Any]) -> None:
    from modules.musicgen.backends import cuda

    spec = replace(CASES["one window"], temperature=1.0, seeds=(1, 2))
    captured = device_engine(models["mono"], "cuda", "bfloat16").generate(spec, Listener())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda.DeviceCursor, "_capture", lambda cursor, _: setattr(cursor, "_capturing", False))
        assert (device_engine(models["mono"], "cuda", "bfloat16").generate(spec, Listener()) == captured).all()


# ------------------------------------------------------------------------------------------------ completing
def test_a_text_is_completed_by_what_the_music_goes_on_from(
    any_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The completed text is what conditions, and it is told by the context that is given and by what is followed."""
    context, told = some_codes(20), []

    def complete(text: str, codes: Codes, steered: Any) -> str:
        told.append((text, codes.copy(), steered))
        return "another text altogether"

    plain = replace(SPEC, duration_s=0.6, prompt_codes=context)
    asked = replace(plain, prompt="another text altogether")
    usual, wanted = any_engine.generate(plain, Listener()), any_engine.generate(asked, Listener())
    monkeypatch.setattr(any_engine, "facts", replace(any_engine.facts, complete=complete))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(any_engine.generate(plain, Listener()), wanted)
    assert (usual != wanted).any()
    steering = Steered(lambda _: np.zeros((4, decoders.CARD)))
    steer(monkeypatch, any_engine, steering, replace(plain, prompt_codes=None))
    (text, codes, steered), (_, none, followed) = told
    assert text == SPEC.prompt
    np.testing.assert_array_equal(codes, context)
    assert (steered, none.shape[1], followed) == (None, 0, steering)
