"""Multi-Band Diffusion on a small real checkpoint, against audiocraft's own way of using it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.contract import Cancelled, Decoder, InvalidParameter, ModelBroken, ModelMissing, OutOfMemory
from modules.hub import folder_name
from modules.musicgen import compat, memory
from modules.musicgen.catalog import DIFFUSION, Catalog
from modules.musicgen.engine import Codes
from modules.musicgen.manager import LoadedModel, ModelManager
from modules.settings import Settings
from tests import checkpoints, loopback_hub
from tests.checkpoints import CARD, CODEBOOKS, DIFFUSION_REPO, SMALL, STEREO, T5_REPO

FILE = compat.DIFFUSION_FILE
STEPS = 2 * 20
"""Of the checkpoint's two bands."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compat.import_stack()
    root = tmp_path_factory.mktemp("made")
    checkpoints.make_model(root / SMALL)
    checkpoints.make_model(root / STEREO, seed=7, stereo=True)
    checkpoints.make_t5(root / T5_REPO)
    checkpoints.make_diffusion(root / DIFFUSION_REPO)
    return root


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with the models and without the diffusion's file."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    checkpoints.put_in_cache(folder, made, SMALL, STEREO, T5_REPO)
    return folder


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Any]:
    managers: list[ModelManager] = []

    def make(**flags: Any) -> ModelManager:
        folders: dict[str, Any] = {"models_dir": tmp_path / "models", "cache_dir": tmp_path / "converted"}
        managers.append(ModelManager(Settings(**folders, threads=1, backend="reference", **flags)))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


@pytest.fixture
def model(made: Path, cache: Path, managers: Any) -> LoadedModel:
    checkpoints.put_in_cache(cache, made, DIFFUSION_REPO)
    loaded: LoadedModel = managers(offline=True).ensure("small", quiet, "diffusion")
    return loaded


def quiet(*_: object) -> None:
    return


def codes(frames: int) -> Codes:
    return np.random.default_rng(frames).integers(0, CARD, (CODEBOOKS, frames))


def rendered(model: LoadedModel, frames: int = 20, seed: int = 1, progress: Any = quiet) -> Any:
    assert model.diffusion is not None
    return model.diffusion.render(codes(frames), seed, progress).samples


# ------------------------------------------------------------------------------------------------ the sound
def test_the_sound_is_audiocrafts_own_with_the_same_noise(made: Path, model: LoadedModel) -> None:
    import torch
    from audiocraft.models import loaders
    from audiocraft.models.multibanddiffusion import DiffusionProcess, MultiBandDiffusion
    from audiocraft.modules.diffusion_schedule import NoiseSchedule

    networks, processors, configs = loaders.load_diffusion_models(made / DIFFUSION_REPO, filename=FILE)
    bands = [
        DiffusionProcess(network.eval(), NoiseSchedule(**config.schedule, sample_processor=processor, device="cpu"))
        for network, processor, config in zip(networks, processors, configs, strict=True)
    ]
    theirs = MultiBandDiffusion(bands, loaders.load_compression_model(made / SMALL))
    torch.manual_seed(7)
    with torch.no_grad():
        expected = theirs.tokens_to_wav(torch.from_numpy(codes(40))[None])[0].numpy()
    ours = rendered(model, 40, seed=7)
    assert ours.shape == expected.shape == (1, 40 * 64)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_the_seed_alone_decides_the_noise_and_nobody_elses_is_touched(model: LoadedModel) -> None:
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = rendered(model, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    np.testing.assert_array_equal(rendered(model, seed=5), first)
    assert np.abs(rendered(model, seed=6) - first).max() > 0.01 * np.abs(first).max()


def test_the_codecs_balance_of_frequencies_is_kept(model: LoadedModel) -> None:
    heard = model.codec.decode(codes(40)).samples
    powers = [np.abs(np.fft.rfft(samples[0])) ** 2 for samples in (heard, rendered(model, 40))]
    # Without what is constant: the balance is one of deviations.
    heard_parts, parts = ([float(half.sum()) for half in (power[4:640], power[640:])] for power in powers)
    np.testing.assert_allclose(parts, heard_parts, rtol=0.25)


def test_long_music_is_rendered_in_windows_whose_shared_parts_tell_the_same(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules.musicgen import diffusion

    assert model.diffusion is not None
    monkeypatch.setattr(diffusion, "OVERLAP_S", 0.2)
    monkeypatch.setattr(model.diffusion, "_frames", 30)
    pieces: list[Any] = []
    window = model.diffusion._window

    def kept(*args: Any) -> Any:
        pieces.append(window(*args))
        return pieces[-1]

    monkeypatch.setattr(model.diffusion, "_window", kept)
    told: list[tuple[int, int]] = []
    joined = rendered(model, 50, progress=lambda *steps: told.append(steps))
    first, second = pieces
    shared = 10 * 64
    assert joined.shape == (1, 50 * 64)
    assert told[-1] == (2 * STEPS, 2 * STEPS)
    np.testing.assert_array_equal(joined[:, : 20 * 64], first[:, :-shared])
    np.testing.assert_array_equal(joined[:, 30 * 64 :], second[:, shared:])
    # The same noise, the same tokens, other neighbours.
    assert likeness(first[0, -shared:], second[0, :shared]) > 0.98
    assert likeness(joined[0, 20 * 64 : 30 * 64], first[0, -shared:]) > 0.98
    other = rendered(model, 50, seed=2)
    assert likeness(joined[0], other[0]) < 0.95, "other noise is told apart by this"


def likeness(one: Any, two: Any) -> float:
    return float(np.corrcoef(one, two)[0, 1])


@given(frames=st.integers(1, 5000), longest=st.integers(20, 400), overlap=st.integers(1, 9))
def test_windows_cover_everything_once_but_for_what_two_share(frames: int, longest: int, overlap: int) -> None:
    from modules.musicgen.diffusion import plan

    windows = plan(frames, longest, overlap)
    assert (windows[0].start, windows[0].before) == (0, 0)
    assert (windows[-1].end, windows[-1].after) == (frames, 0)
    assert len({window.end - window.start for window in windows}) == 1
    for window in windows:
        assert window.end - window.start <= longest
        assert window.before + window.after <= window.end - window.start
    for first, second in itertools.pairwise(windows):
        assert first.after == second.before == first.end - second.start >= overlap


# ------------------------------------------------------------------------------------- progress and cancel
def test_progress_counts_the_steps_and_a_cancel_is_heard_inside_one(model: LoadedModel) -> None:
    told: list[tuple[int, int]] = []
    rendered(model, progress=lambda *steps: told.append(steps))
    assert told[0] == (0, STEPS)
    assert told[-1] == (STEPS, STEPS)
    done = [step for step, _ in told]
    assert done == sorted(done)
    assert done.count(3) > 2, "asked several times within a step"
    calls = 0

    def cancel(step: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if step == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        rendered(model, progress=cancel)
    assert calls == done.index(3) + 1


# -------------------------------------------------------------------------------------- fetching and loading
@pytest.fixture
def hub(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback_hub.Hub]:
    from huggingface_hub import constants

    with loopback_hub.serve() as server:
        server.add_folder(made, SMALL, T5_REPO, DIFFUSION_REPO)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


def test_the_file_is_fetched_when_a_job_first_asks_for_it_and_goes_on_after_a_cancel(
    hub: loopback_hub.Hub, managers: Any
) -> None:
    manager: ModelManager = managers()
    plain = manager.ensure("small", quiet)
    assert hub.gets() == []
    told: list[tuple[str, float, float]] = []

    def stop(phase: str, done: float, total: float, _rate: float | None) -> None:
        told.append((phase, done, total))
        if done > 100_000:
            raise Cancelled("enough")

    hub.pause_s = 0.05
    size = len(hub.files[DIFFUSION_REPO, FILE])
    with pytest.raises(Cancelled):
        manager.ensure("small", stop, "diffusion")
    assert told[-1][0] == "downloading"
    assert told[-1][2] == size
    hub.pause_s = 0.0
    model = manager.ensure("small", quiet, "diffusion")
    spans = [span for path, span in hub.gets() if path == f"{DIFFUSION_REPO}/resolve/main/{FILE}"]
    assert spans[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d*-", spans[-1] or "")
    # The model stayed as it was: the other decoder came beside it.
    assert model.engine is plain.engine
    assert model.diffusion is not None
    assert re.fullmatch(r"[0-9a-f]{64}", model.diffusion.file_hash)
    assert manager.ensure("small", quiet) is manager.ensure("small", quiet, "diffusion") is model
    assert np.abs(rendered(model)).max() > 0


def test_offline_the_missing_file_is_named(cache: Path, managers: Any) -> None:
    manager: ModelManager = managers(offline=True)
    info = manager.catalog.info("small")
    assert info.state == "ready"
    assert info.diffusion is not None
    assert (info.diffusion.state, info.diffusion.licence) == ("missing", "CC-BY-NC 4.0")
    assert manager.ensure("small", quiet).diffusion is None
    with pytest.raises(ModelMissing, match="--offline") as caught:
        manager.ensure("small", quiet, "diffusion")
    assert caught.value.field == "decoder"
    label = f"Multi-Band Diffusion: {DIFFUSION_REPO} ({FILE})"
    assert caught.value.details["missing"] == info.diffusion.missing == [label]
    assert manager.status()["model"] == "small"


def test_models_of_other_codecs_have_no_such_decoder(cache: Path, tmp_path: Path, managers: Any) -> None:
    checkpoints.make_model(tmp_path / "models" / "pointing", pointer=checkpoints.ENCODEC_REPO)
    checkpoints.make_model(tmp_path / "models" / "own-codec")
    manager: ModelManager = managers()
    able = {info.id for info in manager.catalog.models() if info.diffusion is not None}
    assert able == {"small", "medium", "large", "melody", "melody-large", "pointing"}
    for model_id in ("stereo-small", "own-codec"):
        with pytest.raises(InvalidParameter, match=f"not of '{model_id}'") as caught:
            manager.ensure(model_id, quiet, "diffusion")
        assert caught.value.field == "decoder"
    assert manager.status()["model"] is None
    assert Catalog(Settings()).info("tiny").diffusion is None


def test_another_codecs_weights_are_refused_and_the_model_goes_on_without_them(
    made: Path, cache: Path, tmp_path: Path, managers: Any
) -> None:
    root = tmp_path / "other"
    checkpoints.make_diffusion(root / DIFFUSION_REPO, sample_rate_hz=24_000)
    checkpoints.put_in_cache(cache, root, DIFFUSION_REPO)
    manager: ModelManager = managers()
    plain = manager.ensure("small", quiet)
    with pytest.raises(ModelBroken, match="24000 Hz") as caught:
        manager.ensure("small", quiet, "diffusion")
    assert caught.value.field == "decoder"
    info = manager.catalog.info("small")
    assert info.state == "ready"
    assert info.diffusion is not None
    assert info.diffusion.state == "broken"
    assert manager.ensure("small", quiet) is plain


@pytest.mark.parametrize("spoil", ["planted", "cut short", "another thing"])
def test_a_spoilt_or_hostile_file_is_refused_and_executes_nothing(
    made: Path, cache: Path, tmp_path: Path, managers: Any, spoil: str
) -> None:
    import torch

    class Planted:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    folder = tmp_path / "other" / DIFFUSION_REPO
    folder.mkdir(parents=True)
    whole = made / DIFFUSION_REPO / FILE
    if spoil == "planted":
        torch.save({**compat.read_diffusion(whole), "extra": Planted()}, folder / FILE)
    elif spoil == "cut short":
        (folder / FILE).write_bytes(whole.read_bytes()[:20_000])
    else:
        torch.save([1, 2], folder / FILE)
    checkpoints.put_in_cache(cache, tmp_path / "other", DIFFUSION_REPO)
    with pytest.raises(ModelBroken) as caught:
        managers().ensure("small", quiet, "diffusion")
    assert caught.value.field == "decoder"
    assert f"delete the folder {folder_name(DIFFUSION_REPO)} in the Hugging Face cache" in caught.value.message
    assert not (tmp_path / "executed").exists()


def test_the_configurations_say_what_the_pickled_ones_said_and_no_object_is_made(made: Path) -> None:
    from omegaconf import DictConfig, OmegaConf

    package = compat.read_diffusion(made / DIFFUSION_REPO / FILE)
    for band in range(2):
        expected = OmegaConf.create(checkpoints.diffusion_config(processor=band == 1))
        assert isinstance(package[band]["cfg"], DictConfig)
        assert package[band]["cfg"] == expected
        assert package[band]["cfg"].segment == 1


# --------------------------------------------------------------------------------------------------- memory
def test_its_memory_is_reckoned_with_the_models_and_goes_with_it(model: LoadedModel, managers: Any) -> None:
    manager: ModelManager = managers()
    entry = manager.catalog.entry("small")
    sizes: list[int] = [memory.estimate_bytes(entry, "float32", decoder) for decoder in _decoders()]
    assert sizes[1] - sizes[0] > DIFFUSION.local()[0].stat().st_size
    needs = [manager.preflight("small", decoder)["needs_bytes"] for decoder in _decoders()]
    assert needs[1] - needs[0] == sizes[1] - sizes[0]


def _decoders() -> list[Decoder]:
    return ["codec", "diffusion"]


def test_a_lack_of_memory_while_rendering_lets_go_of_all_and_the_next_job_works(
    made: Path, cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    checkpoints.put_in_cache(cache, made, DIFFUSION_REPO)
    manager: ModelManager = managers()
    model = manager.ensure("small", quiet, "diffusion")
    assert model.diffusion is not None
    network = weakref.ref(model.diffusion._bands.DPs[0].model)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("audiocraft.models.multibanddiffusion.MultiBandDiffusion.generate", fail)
        with pytest.raises(OutOfMemory, match="the decoder 'codec' takes less"):
            rendered(model)
    assert manager.status()["model"] is None
    assert network() is None
    manager.after_job()
    assert np.abs(rendered(manager.ensure("small", quiet, "diffusion"))).max() > 0


def test_where_both_do_not_fit_the_ladder_is_gone_down_with_both(
    made: Path, cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiocraft.models import loaders

    checkpoints.put_in_cache(cache, made, DIFFUSION_REPO)
    load, tried = loaders.load_diffusion_models, []

    def load_at_the_third_try(*args: Any, **kwargs: Any) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise MemoryError
        return load(*args, **kwargs)

    monkeypatch.setattr(loaders, "load_diffusion_models", load_at_the_third_try)
    ladder = [("float32", "first"), ("bfloat16", "smaller")]
    monkeypatch.setattr("modules.musicgen.backends.ladder", lambda *_: ladder)
    manager: ModelManager = managers()
    plain = manager.ensure("small", quiet)
    model = manager.ensure("small", quiet, "diffusion")
    assert model.engine is not plain.engine
    assert model.engine_info.precision == "bfloat16"
    assert model.diffusion is not None
    monkeypatch.setattr(memory, "available_bytes", lambda _: 500_000_000)
    manager.unload()
    manager.after_job()
    with pytest.raises(OutOfMemory, match="Multi-Band Diffusion"):
        manager.ensure("small", quiet, "diffusion")
