"""The reference engine and the codec on small real checkpoints; audiocraft's own MusicGen is the oracle."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import settings
from modules.audio import Clip
from modules.contract import Cancelled, InvalidParameter
from modules.musicgen import backends, compat
from modules.musicgen.backends.onnx import OnnxPass
from modules.musicgen.backends.reference import ReferenceEngine, seed_everything
from modules.musicgen.codec import Codec
from modules.musicgen.engine import Codes, GenerationSpec, ModelFacts, Window, windows
from modules.musicgen.loop import MELODY_SEED
from tests import checkpoints

SPEC = GenerationSpec(prompt="warm lo-fi piano", duration_s=0.5, seeds=(7,), top_k=50, extend_stride_s=2.4)
REPOS = (checkpoints.SMALL, checkpoints.MELODY, checkpoints.STEREO, checkpoints.T5_REPO, checkpoints.DEMUCS_REPO)


class Loaded:
    """One checkpoint loaded by audiocraft's loaders."""

    def __init__(self, repo: str) -> None:
        from audiocraft.models import loaders
        from audiocraft.models.musicgen import MusicGen

        self.lm: Any = loaders.load_lm_model(repo, device="cpu")
        compression = loaders.load_compression_model(repo, device="cpu")
        melody = "self_wav" in self.lm.condition_provider.conditioners
        if melody:
            self.lm.condition_provider.conditioners["self_wav"].match_len_on_eval = True
            self.lm.condition_provider.conditioners["self_wav"]._use_masking = False
        self.oracle: Any = MusicGen(repo, compression, self.lm, max_duration=30)
        self.oracle.max_duration = checkpoints.WINDOW_S
        self.codec = Codec(self.oracle.compression_model, "cpu")
        self.facts = ModelFacts(
            model=repo, checkpoint_hash=None, precision="float32", frame_rate_hz=self.codec.frame_rate_hz,
            sample_rate_hz=self.codec.sample_rate_hz, channels=self.codec.channels, codebooks=self.codec.codebooks,
            cardinality=self.codec.cardinality, max_window_s=checkpoints.WINDOW_S, melody=melody,
        )  # fmt: skip
        self.engine = ReferenceEngine(self.lm, "cpu", self.facts)

    def ask_oracle(self, spec: GenerationSpec, **inputs: Any) -> Codes:
        """audiocraft's own answer for the first seed, prompt included, int64 [K, T]."""
        self.oracle.set_generation_params(
            duration=spec.duration_s + inputs.get("prompt_s", 0.0), top_k=spec.top_k, top_p=spec.top_p,
            temperature=spec.temperature, cfg_coef=spec.cfg_coef, extend_stride=spec.extend_stride_s,
        )  # fmt: skip
        melody = inputs.get("melody")
        attributes, _ = self.oracle._prepare_tokens_and_attributes([spec.prompt], None, melody and [melody[0]])
        seed_everything(spec.seeds[0])
        tokens = self.oracle._generate_tokens(attributes, inputs.get("prompt"))
        return np.asarray(tokens[0].numpy())


class Recorder:
    """A sink that keeps everything and can stop the generation at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.codes: list[Codes] = []
        self.stop_at = stop_at

    def progress(self, done_steps: int, total_steps: int) -> None:
        self.steps.append((done_steps, total_steps))
        if done_steps == self.stop_at:
            raise Cancelled("enough")

    def frames(self, codes: Codes) -> None:
        self.codes.append(codes)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        compat.import_stack()
        import huggingface_hub.constants
        import torch

        torch.set_num_threads(1)  # small tensors: two threads would only wait for each other
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        checkpoints.put_in_cache(home / "hub", checkpoints.make_hub(home / "made"), *REPOS)
        yield home


@pytest.fixture(scope="module")
def small(hub: Path) -> Loaded:
    return Loaded(checkpoints.SMALL)


@pytest.fixture(scope="module")
def melody(hub: Path) -> Loaded:
    return Loaded(checkpoints.MELODY)


@pytest.fixture(scope="module")
def stereo(hub: Path) -> Loaded:
    return Loaded(checkpoints.STEREO)


def tune(seconds: float, rate: int = checkpoints.SAMPLE_RATE_HZ) -> Clip:
    time = np.arange(int(seconds * rate)) / rate
    wave = np.sin(2 * math.pi * 220 * time * (1 + np.floor(time) / 4)) / 2
    return Clip(wave[None].astype(np.float32), rate)


def test_one_window_gives_audiocrafts_own_tokens(small: Loaded) -> None:
    codes = small.engine.generate(SPEC, Recorder())
    assert codes.shape == (1, checkpoints.CODEBOOKS, 25)
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes[0], small.ask_oracle(SPEC))


def test_windows_past_the_models_own_give_audiocrafts_own_tokens(small: Loaded) -> None:
    spec = replace(SPEC, duration_s=7.5)
    recorder = Recorder()
    codes = small.engine.generate(spec, recorder)
    np.testing.assert_array_equal(codes[0], small.ask_oracle(spec))
    assert [piece.shape[2] for piece in recorder.codes] == [200, 120, 55]
    np.testing.assert_array_equal(np.concatenate(recorder.codes, axis=2), codes)


def test_a_prompt_is_continued_with_audiocrafts_own_tokens_and_left_out(small: Loaded) -> None:
    import torch

    prompt = small.codec.encode(tune(1.0))
    spec = replace(SPEC, duration_s=4.5, prompt_codes=prompt)
    codes = small.engine.generate(spec, Recorder())
    oracle = small.ask_oracle(spec, prompt=torch.from_numpy(prompt[None]), prompt_s=1.0)
    np.testing.assert_array_equal(oracle[:, :50], prompt)
    np.testing.assert_array_equal(codes[0], oracle[:, 50:])


def test_a_prompt_longer_than_the_window_is_heard_from_its_end(small: Loaded) -> None:
    prompt = small.codec.encode(tune(6.0))
    codes = small.engine.generate(replace(SPEC, prompt_codes=prompt), Recorder())
    end = small.engine.generate(replace(SPEC, prompt_codes=prompt[:, -80:]), Recorder())
    np.testing.assert_array_equal(codes, end)


def test_progress_is_true_over_takes_and_windows(small: Loaded) -> None:
    recorder = Recorder()
    small.engine.generate(replace(SPEC, duration_s=5.0, seeds=(1, 2)), recorder)
    total = 2 * ((200 + 3) + (50 + 3))
    assert recorder.steps == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(("stop_at", "duration_s"), [(1, 0.5), (17, 0.5), (230, 5.0)])
def test_a_cancel_is_honoured_at_the_step_it_comes_and_leaves_a_working_engine(
    small: Loaded, stop_at: int, duration_s: float
) -> None:
    recorder = Recorder(stop_at)
    with pytest.raises(Cancelled):
        small.engine.generate(replace(SPEC, duration_s=duration_s), recorder)
    assert len(recorder.steps) == stop_at
    assert not small.lm.get_streaming_state()
    np.testing.assert_array_equal(small.engine.generate(SPEC, Recorder())[0], small.ask_oracle(SPEC))


def test_a_takes_tokens_depend_on_its_own_seed_alone(small: Loaded) -> None:
    recorder = Recorder()
    together = small.engine.generate(replace(SPEC, seeds=(3, 4, 3)), recorder)
    for take, seed in enumerate((3, 4, 3)):
        np.testing.assert_array_equal(
            together[take], small.engine.generate(replace(SPEC, seeds=(seed,)), Recorder())[0]
        )
    assert (together[0] != together[1]).any()
    np.testing.assert_array_equal(np.concatenate(recorder.codes, axis=2), together)


def test_a_cold_run_and_a_warm_run_with_one_seed_are_equal(hub: Path, small: Loaded) -> None:
    import torch

    warm = small.engine.generate(SPEC, Recorder())
    torch.manual_seed(99)
    cold = Loaded(checkpoints.SMALL).engine.generate(SPEC, Recorder())
    np.testing.assert_array_equal(cold, warm)


def test_temperature_zero_ignores_the_seed(small: Loaded) -> None:
    first, second = small.engine.generate(replace(SPEC, temperature=0.0, seeds=(1, 2)), Recorder())
    np.testing.assert_array_equal(first, second)


def test_top_k_beyond_the_codebook_keeps_every_token(small: Loaded) -> None:
    beyond = small.engine.generate(replace(SPEC, top_k=2048), Recorder())
    np.testing.assert_array_equal(beyond, small.engine.generate(replace(SPEC, top_k=checkpoints.CARD), Recorder()))


def test_two_step_guidance_honours_the_coefficient_that_was_asked(small: Loaded) -> None:
    def greedy(cfg_coef: float, *, two_step: bool) -> Codes:
        spec = replace(SPEC, temperature=0.0, cfg_coef=cfg_coef, two_step_cfg=two_step)
        return small.engine.generate(spec, Recorder())

    assert (greedy(1.0, two_step=True) != greedy(9.0, two_step=True)).any()
    np.testing.assert_array_equal(greedy(9.0, two_step=True), greedy(9.0, two_step=False))
    assert small.lm.cfg_coef == 3.0


def test_the_prompt_changes_the_music(small: Loaded) -> None:
    other = small.engine.generate(replace(SPEC, prompt="fast techno drums"), Recorder())
    assert (other != small.engine.generate(SPEC, Recorder())).any()


def test_a_melody_is_followed_with_audiocrafts_own_tokens(melody: Loaded) -> None:
    import torch

    spec = replace(SPEC, melody=tune(2.5))
    codes = melody.engine.generate(spec, Recorder())
    assert spec.melody is not None
    np.testing.assert_array_equal(codes[0], melody.ask_oracle(spec, melody=[torch.from_numpy(spec.melody.samples)]))
    assert (codes != melody.engine.generate(SPEC, Recorder())).any()


@pytest.mark.slow
def test_a_melody_goes_on_over_the_windows_as_in_audiocraft(melody: Loaded) -> None:
    import torch

    spec = replace(SPEC, duration_s=5.0, melody=tune(2.5))
    codes = melody.engine.generate(spec, Recorder())
    assert spec.melody is not None
    np.testing.assert_array_equal(codes[0], melody.ask_oracle(spec, melody=[torch.from_numpy(spec.melody.samples)]))


@pytest.fixture(scope="module")
def own(melody: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our own loop on ONNX Runtime, on the melody model."""
    folder = tmp_path_factory.mktemp("onnx")
    chosen = settings.parse(["--cache-dir", str(folder), "--precision", "float32", "--threads", "1"], {})
    engine = backends.choose(chosen, melody.lm, "cpu", melody.facts)
    assert engine.info.backend == "onnx"
    return engine


def test_our_own_loop_follows_a_melody_with_the_tokens_of_generate_with_chroma(melody: Loaded, own: Any) -> None:
    import torch

    clip = tune(2.5)
    spec = replace(SPEC, duration_s=2.0, temperature=0.0, melody=clip)
    melody.oracle.set_generation_params(
        use_sampling=False, duration=spec.duration_s, cfg_coef=spec.cfg_coef, extend_stride=spec.extend_stride_s
    )
    # The separation shifts its input at random.
    random.seed(MELODY_SEED)
    waves = [torch.from_numpy(clip.samples)]
    _, expected = melody.oracle.generate_with_chroma([spec.prompt], waves, clip.sample_rate_hz, return_tokens=True)
    codes = own.generate(spec, Recorder())
    assert codes.shape[2] == 100
    np.testing.assert_array_equal(codes[0], expected[0].numpy())
    higher = Clip(clip.samples[:, ::-1].copy(), clip.sample_rate_hz)
    assert (codes != own.generate(replace(spec, melody=higher), Recorder())).any()


def test_our_own_loops_logits_after_a_melody_are_audiocrafts(melody: Loaded, own: Any) -> None:
    import torch
    from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

    clip, tokens = tune(2.5), np.random.default_rng(2).integers(0, checkpoints.CARD, (1, checkpoints.CODEBOOKS, 60))
    both = np.repeat(tokens, 2, axis=0)
    random.seed(MELODY_SEED)
    given, _ = melody.oracle._prepare_tokens_and_attributes([SPEC.prompt], None, [torch.from_numpy(clip.samples)])
    with torch.inference_mode():
        expected = melody.lm(torch.from_numpy(both), given + ClassifierFreeGuidanceDropout(p=1.0)(given)).numpy()
    random.seed(MELODY_SEED)
    heard = own._conditioner.melody(replace(SPEC, melody=clip))
    conditions = own._conditioner.both(SPEC.prompt, heard, Window(0, 0, 60), alone=True)
    row = OnnxPass(own._backend._decoder, conditions, 60)
    found = np.stack([row.feed(both[..., at : at + 1]).copy() for at in range(60)], axis=2)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    # The chroma of a tune is before the first step, and it is not the silence of the row without a condition.
    assert conditions.prepend.shape[1] > 10
    assert np.abs(conditions.prepend[0] - conditions.prepend[1]).max() > 0.01


def test_a_melody_model_makes_music_without_a_melody(melody: Loaded) -> None:
    np.testing.assert_array_equal(melody.engine.generate(SPEC, Recorder())[0], melody.ask_oracle(SPEC))


def test_a_melody_for_a_model_without_one_is_refused(small: Loaded) -> None:
    with pytest.raises(InvalidParameter, match="cannot follow a melody") as caught:
        small.engine.generate(replace(SPEC, melody=tune(1.0)), Recorder())
    assert caught.value.field == "audio_prompt"


@pytest.mark.parametrize("codes", [np.zeros((2, 9), np.int64), np.full((4, 9), checkpoints.CARD), np.full((4, 9), -1)])
def test_prompt_tokens_of_another_model_are_refused(small: Loaded, codes: Codes) -> None:
    with pytest.raises(InvalidParameter) as caught:
        small.engine.generate(replace(SPEC, prompt_codes=codes), Recorder())
    assert caught.value.field == "continuation"


def test_a_stereo_model_gives_eight_codebooks_and_two_channels(stereo: Loaded) -> None:
    codes = stereo.engine.generate(SPEC, Recorder())
    assert codes.shape == (1, 8, 25)
    np.testing.assert_array_equal(codes[0], stereo.ask_oracle(SPEC))
    sound = stereo.codec.decode(codes[0])
    assert sound.samples.shape == (2, 25 * stereo.codec.hop)
    assert np.abs(sound.samples[0] - sound.samples[1]).max() > 0.01


# ----------------------------------------------------------------------------------------------- windows
@given(prompt=st.integers(0, 4000), new=st.integers(1, 15000), room=st.integers(2, 2000), share=st.floats(0.01, 0.99))
def test_windows_cover_every_new_frame_once_and_never_pass_the_models_own(
    prompt: int, new: int, room: int, share: float
) -> None:
    stride = min(max(1, int(room * share)), room - 1)
    plan = list(windows(prompt, new, room, stride))
    assert plan[0].known == prompt
    assert plan[-1].end == prompt + new
    assert all(after.known == before.end for before, after in itertools.pairwise(plan))
    assert all(0 <= w.start <= w.known < w.end and w.length <= room for w in plan)
    assert all(w.new <= stride and w.context == room - stride for w in plan[1:])


def test_thirty_seconds_and_more_are_cut_as_audiocraft_does() -> None:
    assert list(windows(0, 1500, 1500, 900)) == [Window(0, 0, 1500)]
    assert list(windows(0, 2500, 1500, 900)) == [Window(0, 0, 1500), Window(900, 1500, 2400), Window(1800, 2400, 2500)]
    assert list(windows(500, 1000, 1500, 900)) == [Window(0, 500, 1500)]


def test_a_stride_that_does_not_fit_the_window_is_a_defect() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        list(windows(0, 10, 100, 100))


# ------------------------------------------------------------------------------------------------- codec
def test_the_codec_gives_audiocrafts_own_codes_and_sound(small: Loaded) -> None:
    import torch

    clip = tune(1.0)
    codes = small.codec.encode(clip)
    expected, _ = small.oracle.compression_model.encode(torch.from_numpy(clip.samples)[None])
    np.testing.assert_array_equal(codes, expected[0].numpy())
    sound = small.oracle.compression_model.decode(torch.from_numpy(codes)[None]).detach().numpy()[0]
    np.testing.assert_allclose(small.codec.decode(codes).samples, sound, atol=1e-6)


def test_the_codec_takes_any_rate_and_channels(small: Loaded) -> None:
    clip = Clip(np.repeat(tune(1.0, 48_000).samples, 6, axis=0), 48_000)
    codes = small.codec.encode(clip)
    assert codes.shape == (checkpoints.CODEBOOKS, 50)
    assert 0 <= codes.min() <= codes.max() < checkpoints.CARD


@pytest.mark.parametrize("piece", [1, 13, 50, 400])
def test_sound_decoded_piece_by_piece_is_the_sound_decoded_at_once(small: Loaded, piece: int) -> None:
    codes = np.random.default_rng(0).integers(0, checkpoints.CARD, (checkpoints.CODEBOOKS, 337))
    stream = small.codec.stream()
    parts = [stream.push(codes[:, at : at + piece]) for at in range(0, codes.shape[1], piece)]
    early = sum(part.shape[1] for part in parts)
    joined = np.concatenate([*parts, stream.finish()], axis=1)
    whole = small.codec.decode(codes).samples
    assert joined.shape == whole.shape
    assert early >= (337 - 32 - 50) * small.codec.hop
    np.testing.assert_allclose(joined, whole, atol=2e-4 * float(np.abs(whole).max()))


def test_long_sound_is_decoded_in_pieces_without_a_seam(small: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(1).integers(0, checkpoints.CARD, (checkpoints.CODEBOOKS, 700))
    whole = small.codec.decode(codes).samples
    monkeypatch.setattr("modules.musicgen.codec.WHOLE_S", 5.0)
    np.testing.assert_allclose(small.codec.decode(codes).samples, whole, atol=2e-4 * float(np.abs(whole).max()))


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 9), np.int64), np.full((4, 9), checkpoints.CARD), np.zeros(9, np.int64)]
)
def test_the_codec_refuses_tokens_of_another_model(small: Loaded, codes: Codes) -> None:
    with pytest.raises(InvalidParameter):
        small.codec.decode(codes)
