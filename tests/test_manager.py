"""The model manager on small real checkpoints, with the real hub client against a hub on loopback."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modules.contract import (
    Cancelled,
    DeviceLost,
    DownloadFailed,
    Health,
    Internal,
    InvalidParameter,
    ModelBroken,
    ModelMissing,
    OutOfMemory,
    UnknownModel,
)
from modules.musicgen import backends, compat, memory
from modules.musicgen.engine import Codes, GenerationSpec
from modules.musicgen.manager import LoadedModel, ModelManager, checkpoint_hash
from modules.settings import Settings
from tests import checkpoints, loopback_hub
from tests.checkpoints import DEMUCS_REPO, ENCODEC_REPO, MEDIUM, MELODY, SMALL, STEREO, T5_REPO

ROOT = Path(__file__).resolve().parent.parent
SPEC = GenerationSpec(prompt="warm piano", duration_s=0.2, seeds=(1,), top_k=50)
ALL = (SMALL, MEDIUM, MELODY, STEREO, T5_REPO, ENCODEC_REPO, DEMUCS_REPO)


class Silent:
    """A sink that wants nothing."""

    def progress(self, done_steps: int, total_steps: int) -> None: ...
    def frames(self, codes: Codes) -> None: ...


class Progress:
    """What a job would be told, and a cancel at a chosen moment."""

    def __init__(self, cancel_in: str = "", after: float = 0) -> None:
        self.said: list[tuple[str, float, float, float | None]] = []
        self.cancel_in, self.after = cancel_in, after

    def __call__(self, phase: str, done: float, total: float, rate: float | None) -> None:
        self.said.append((phase, done, total, rate))
        if phase == self.cancel_in and done > self.after:
            raise Cancelled("enough")

    def phases(self) -> list[str]:
        return list(dict.fromkeys(phase for phase, *_ in self.said))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compat.import_stack()
    return checkpoints.make_hub(tmp_path_factory.mktemp("made"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of this test's own, and no network but loopback's."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def hub(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback_hub.Hub]:
    from huggingface_hub import constants

    with loopback_hub.serve() as server:
        server.add_folder(made, *ALL)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Any]:
    """Makes managers with settings of this test's own folders."""
    made_here: list[ModelManager] = []

    def make(**flags: Any) -> ModelManager:
        flags = {
            "models_dir": tmp_path / "models",
            "cache_dir": tmp_path / "converted",
            "threads": 1,
            "backend": "reference",
            **flags,
        }
        made_here.append(ModelManager(Settings(**flags)))
        return made_here[-1]

    yield make
    for manager in made_here:
        manager.close()


@pytest.fixture
def full_cache(made: Path, cache: Path) -> Path:
    checkpoints.put_in_cache(cache, made, *ALL)
    return cache


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look at the network fails the test, loopback included."""

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"the network was touched: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def generate(model: LoadedModel, spec: GenerationSpec = SPEC) -> Codes:
    return model.engine.generate(spec, Silent())


# ------------------------------------------------------------------------------------------------ first use
@pytest.mark.parametrize(
    ("model_id", "codebooks", "channels"), [("small", 4, 1), ("medium", 4, 1), ("melody", 4, 1), ("stereo-small", 8, 2)]
)
def test_first_use_fetches_every_part_from_the_hub_and_makes_music(
    hub: loopback_hub.Hub, managers: Any, model_id: str, codebooks: int, channels: int
) -> None:
    manager, progress = managers(), Progress()
    assert manager.catalog.info(model_id).state == "downloadable"
    model = manager.ensure(model_id, progress)
    assert progress.phases() == ["downloading", "loading"]
    downloads = [entry for entry in progress.said if entry[0] == "downloading"]
    assert downloads[-1][1] == downloads[-1][2] > 100_000
    codes = generate(model)
    assert codes.shape == (1, codebooks, 10)
    sound = model.codec.decode(codes[0])
    assert sound.channels == channels == model.channels
    assert np.abs(sound.samples).max() > 0.001
    info = manager.catalog.info(model_id)
    assert (info.state, info.download_bytes, info.missing) == ("ready", 0, [])
    asked = len(hub.requests)
    manager.after_job()
    manager.unload()
    assert manager.ensure(model_id, Progress()) is not model
    assert len(hub.requests) == asked


def test_a_pointer_brings_the_codec_it_points_at(hub: loopback_hub.Hub, managers: Any) -> None:
    manager = managers()
    assert ENCODEC_REPO not in [part.repo for part in manager.catalog.parts("medium")]
    manager.ensure("medium", Progress())
    assert ENCODEC_REPO in [part.repo for part in manager.catalog.parts("medium")]
    assert f"{ENCODEC_REPO}/resolve/main/model.safetensors" in [path for path, _ in hub.gets()]


def test_where_a_repository_has_older_weights_those_are_taken(hub: loopback_hub.Hub, managers: Any) -> None:
    import io

    import torch
    from safetensors.torch import load

    weights = io.BytesIO()
    torch.save(load(hub.files.pop((T5_REPO, "model.safetensors"))), weights)
    hub.add(T5_REPO, "pytorch_model.bin", weights.getvalue())
    assert generate(managers().ensure("small", Progress())).shape == (1, 4, 10)


def test_a_cancelled_download_goes_on_from_where_it_was(hub: loopback_hub.Hub, managers: Any) -> None:
    manager = managers()
    hub.pause_s = 0.02
    hub.files[SMALL, "state_dict.bin"] += bytes(3_000_000)  # a zip's reader finds its index from the end: read past it
    content = hub.files[SMALL, "state_dict.bin"]
    with pytest.raises(Cancelled):
        manager.ensure("small", Progress("downloading", after=1_000_000))
    manager.after_job()
    assert manager.status()["model_state"] == "none"
    hub.pause_s = 0.0
    with pytest.raises(ModelBroken):
        manager.ensure("small", Progress())
    spans = [span for path, span in hub.gets() if path == f"{SMALL}/resolve/main/state_dict.bin"]
    assert spans[0] is None
    resumed = re.fullmatch(r"bytes=(\d+)-", spans[-1] or "")
    assert resumed is not None
    assert 0 < int(resumed[1]) < len(content)


def test_a_connection_that_breaks_mid_file_is_taken_up_again(hub: loopback_hub.Hub, managers: Any) -> None:
    hub.breaks = [200, 50_000]
    assert generate(managers().ensure("small", Progress())).shape == (1, 4, 10)


def test_a_hub_that_refuses_for_a_moment_is_one_clear_error_and_the_next_try_works(
    hub: loopback_hub.Hub, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client waits longer after each refusal, 20 s in all.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
    manager = managers()
    hub.statuses = [503] * 40
    with pytest.raises(DownloadFailed) as caught:
        manager.ensure("small", Progress())
    assert "\n" not in caught.value.message
    manager.after_job()
    hub.statuses = []
    assert generate(manager.ensure("small", Progress())).shape == (1, 4, 10)


def test_a_repository_that_is_gone_is_a_failed_download(hub: loopback_hub.Hub, managers: Any) -> None:
    for key in [key for key in hub.files if key[0] == T5_REPO]:
        del hub.files[key]
    with pytest.raises(DownloadFailed, match=T5_REPO):
        managers().ensure("small", Progress())


def test_bytes_that_do_not_match_their_checksum_are_refused(hub: loopback_hub.Hub, managers: Any) -> None:
    hub.corrupt = True
    with pytest.raises(DownloadFailed, match="checksum"):
        managers().ensure("small", Progress())


# -------------------------------------------------------------------------------------------------- offline
def test_offline_lists_exactly_what_is_missing_and_touches_no_network(
    made: Path, cache: Path, managers: Any, no_network: None
) -> None:
    checkpoints.put_in_cache(cache, made, MELODY)
    manager = managers(offline=True)
    info = manager.catalog.info("melody")
    assert info.state == "missing"
    with pytest.raises(ModelMissing, match="--offline forbids the network") as caught:
        manager.ensure("melody", Progress())
    assert (
        caught.value.details["missing"]
        == info.missing
        == [
            f"T5: {T5_REPO} (config.json, model.safetensors, tokenizer.json)",
            f"htdemucs: {DEMUCS_REPO} (htdemucs.yaml, 955717e8.safetensors)",
        ]
    )
    assert caught.value.details["download_bytes"] == info.download_bytes > 0


def test_offline_with_every_part_here_makes_music_without_the_network(
    full_cache: Path, managers: Any, no_network: None
) -> None:
    manager = managers(offline=True)
    for model_id in ("small", "medium", "melody"):
        assert generate(manager.ensure(model_id, Progress())).shape == (1, 4, 10)


def test_a_model_that_is_here_loads_without_the_network_even_when_not_offline(
    full_cache: Path, managers: Any, no_network: None
) -> None:
    assert generate(managers().ensure("small", Progress())).shape == (1, 4, 10)


# -------------------------------------------------------------------------------------------------- folders
def test_a_local_folder_in_either_form_loads(full_cache: Path, tmp_path: Path, managers: Any, no_network: None) -> None:
    checkpoints.make_model(tmp_path / "models" / "mine")
    checkpoints.make_safetensors_model(tmp_path / "models" / "safe")
    manager = managers()
    first = generate(manager.ensure("mine", Progress()))
    np.testing.assert_array_equal(generate(manager.ensure("safe", Progress())), first)


def test_a_checkpoints_hash_is_its_files_sha256_reckoned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    folder, store = tmp_path / "model", tmp_path / "converted"
    folder.mkdir()
    (folder / "state_dict.bin").write_bytes(b"weights")
    first = checkpoint_hash(folder, store)
    assert first == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr("modules.hub.sha256_of", lambda _: pytest.fail("reckoned twice"))
    assert checkpoint_hash(folder, store) == first


def test_the_hubs_own_name_of_a_file_is_its_hash(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    file = next(full_cache.glob("models--facebook--musicgen-small/snapshots/*/state_dict.bin"))
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr("modules.hub.sha256_of", lambda _: pytest.fail("reckoned"))
    assert managers().ensure("small", Progress()).checkpoint_hash == expected


def plant(folder: Path, name: str, content: object) -> None:
    import torch

    torch.save(content, folder / name)


def _without_a_layer(folder: Path) -> None:
    import torch

    package = torch.load(folder / "state_dict.bin")
    del package["best_state"]["transformer.layers.1.linear1.weight"]
    plant(folder, "state_dict.bin", package)


def _other_shapes(folder: Path) -> None:
    import torch

    package = torch.load(folder / "state_dict.bin")
    package["best_state"]["emb.0.weight"] = torch.zeros(3, 3)
    plant(folder, "state_dict.bin", package)


def _no_checkpoint(folder: Path) -> None:
    (folder / "state_dict.bin").write_bytes(b"<html>sign in to continue</html>" * 100)


def _cut_short(folder: Path) -> None:
    data = (folder / "state_dict.bin").read_bytes()
    (folder / "state_dict.bin").write_bytes(data[: len(data) // 2])


def _codec_of_other_size(folder: Path) -> None:
    import torch

    package = torch.load(folder / "compression_state_dict.bin")
    package["xp.cfg"] = package["xp.cfg"].replace("n_q: 4", "n_q: 3")
    package["best_state"] = {k: v for k, v in package["best_state"].items() if "layers.3" not in k}
    plant(folder, "compression_state_dict.bin", package)


def _codec_is_a_list(folder: Path) -> None:
    plant(folder, "compression_state_dict.bin", [1, 2])


def _empty(folder: Path) -> None:
    (folder / "state_dict.bin").write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [_without_a_layer, _other_shapes, _no_checkpoint, _cut_short, _codec_of_other_size, _codec_is_a_list, _empty],
)
def test_a_spoilt_checkpoint_is_called_broken_and_the_next_model_works(
    full_cache: Path, tmp_path: Path, managers: Any, spoil: Any
) -> None:
    folder = checkpoints.make_model(tmp_path / "models" / "spoilt")
    spoil(folder)
    manager = managers()
    with pytest.raises(ModelBroken) as caught:
        manager.ensure("spoilt", Progress())
    assert str(tmp_path) not in caught.value.message
    manager.after_job()
    info = manager.catalog.info("spoilt")
    assert info.state == "broken"
    assert info.problem == caught.value.message
    assert generate(manager.ensure("small", Progress())).shape == (1, 4, 10)


@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
def test_a_pickle_planted_as_a_checkpoint_is_not_executed(
    full_cache: Path, tmp_path: Path, managers: Any, name: str
) -> None:
    import torch

    folder = checkpoints.make_model(tmp_path / "models" / "trap")
    package = torch.load(folder / name)

    class Planted:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    plant(folder, name, {**package, "extra": Planted()})
    with pytest.raises(ModelBroken):
        managers().ensure("trap", Progress())
    assert not (tmp_path / "executed").exists()


def test_a_mended_checkpoint_loads(full_cache: Path, tmp_path: Path, managers: Any) -> None:
    folder = checkpoints.make_model(tmp_path / "models" / "mine")
    whole = (folder / "state_dict.bin").read_bytes()
    _without_a_layer(folder)
    manager = managers()
    with pytest.raises(ModelBroken):
        manager.ensure("mine", Progress())
    assert manager.catalog.info("mine").state == "broken"
    (folder / "state_dict.bin").write_bytes(whole)
    assert manager.catalog.info("mine").state == "ready", "it may be asked for again: a broken one is refused"
    manager.ensure("mine", Progress())
    assert manager.catalog.info("mine").state == "ready"


def test_a_damaged_download_that_is_deleted_can_be_fetched_again(hub: loopback_hub.Hub, managers: Any) -> None:
    manager = managers()
    manager.ensure("small", Progress())
    manager.close()
    manager.after_job()
    (state,) = (path for path in manager.catalog.parts("small")[0].local())
    data = state.read_bytes()
    state.resolve().write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelBroken) as caught:
        manager.ensure("small", Progress())
    assert manager.catalog.info("small").state == "broken"
    assert manager.catalog.info("small").problem == caught.value.message
    named = re.search(
        r"delete the folder (\S+) in the Hugging Face cache .*fetch the model again$", caught.value.message
    )
    assert named
    where = Path(manager.catalog.info("small").where)
    assert where.name == named[1]
    shutil.rmtree(where)
    assert manager.catalog.info("small").state == "downloadable"
    assert generate(manager.ensure("small", Progress())).shape == (1, 4, 10)


def test_an_unknown_model_is_named(managers: Any, cache: Path) -> None:
    with pytest.raises(UnknownModel, match="'huge' is not known, choose one of small") as caught:
        managers().ensure("huge", Progress())
    assert caught.value.field == "model"


# -------------------------------------------------------------------------------------- one model at a time
def test_a_model_that_is_loaded_is_given_at_once(full_cache: Path, managers: Any) -> None:
    manager = managers()
    model = manager.ensure("small", Progress())
    progress = Progress()
    assert manager.ensure("small", progress) is model
    assert progress.said == []


def test_another_model_takes_the_place_of_the_first(full_cache: Path, managers: Any) -> None:
    import weakref

    manager = managers()
    model = manager.ensure("small", Progress())
    lm = weakref.ref(model.engine._engine._lm)
    manager.after_job()
    manager.ensure("medium", Progress())
    assert lm() is None
    assert manager.status()["model"] == "medium"
    assert [info.id for info in manager.catalog.models(loaded="medium") if info.loaded] == ["medium"]


def test_status_is_what_health_needs_before_and_after(full_cache: Path, managers: Any) -> None:
    manager = managers()
    health = Health(version="1", queue={}, **manager.status())
    assert (health.stack, health.model, health.model_state) == ("cold", None, "none")
    manager.ensure("small", Progress())
    health = Health(version="1", queue={}, **manager.status())
    assert (health.stack, health.model, health.model_state) == ("ready", "small", "loaded")
    assert health.engine is not None
    assert (health.engine.backend, health.engine.device) == ("reference", "cpu")
    assert health.engine.why
    assert health.device_name


def test_an_unload_waits_for_the_job_that_uses_the_model(full_cache: Path, managers: Any) -> None:
    manager = managers()
    model = manager.ensure("small", Progress())
    manager.unload()
    assert generate(model).shape == (1, 4, 10)
    manager.after_job()
    assert manager.status()["model"] is None


def test_unload_after_gen_lets_go_after_each_job(full_cache: Path, managers: Any) -> None:
    manager = managers(unload_after_gen=True)
    manager.ensure("small", Progress())
    manager.after_job(keep=True)
    assert manager.status()["model"] == "small"
    manager.ensure("small", Progress())
    manager.after_job()
    assert manager.status()["model"] is None


def test_an_idle_model_is_unloaded_and_one_in_use_is_not(full_cache: Path, managers: Any) -> None:
    manager = managers(keep_alive_min=0.2 / 60)
    manager.ensure("small", Progress())
    time.sleep(0.5)
    assert manager.status()["model"] == "small"
    manager.after_job()
    deadline = time.monotonic() + 5
    while manager.status()["model"] is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert manager.status()["model"] is None


def test_keep_alive_zero_keeps_the_model(full_cache: Path, managers: Any) -> None:
    manager = managers(keep_alive_min=0.0)
    manager.ensure("small", Progress())
    manager.after_job()
    assert manager._timer is None
    assert manager.status()["model"] == "small"


def test_a_stack_that_cannot_be_imported_is_shown_and_tried_again(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ImportError("No module named 'spacy'")

    manager = managers()
    with monkeypatch.context() as patch:
        patch.setattr(compat, "import_stack", fail)
        with pytest.raises(Internal, match="spacy"):
            manager.ensure("small", Progress())
        assert manager.status()["stack"] == "failed"
        assert "spacy" in manager.status()["stack_problem"]
    assert generate(manager.ensure("small", Progress())).shape == (1, 4, 10)


def test_a_cancel_is_honoured_while_the_stack_is_being_imported(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(compat, "import_stack", lambda: release.wait(60))
    started = time.monotonic()
    with pytest.raises(Cancelled):
        managers().ensure("small", Progress("loading", after=-1))
    assert time.monotonic() - started < 30
    release.set()


def test_a_device_that_is_not_there_is_refused_in_words(full_cache: Path, managers: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    manager = managers(device="cuda")
    with pytest.raises(InvalidParameter, match=r"^--device cuda"):
        manager.ensure("small", Progress())


# ------------------------------------------------------------------------------------- a card that disappears
@pytest.mark.parametrize("moment", ["while loading", "at a step", "between two jobs"])
def test_a_card_that_disappears_is_said_and_the_cpu_takes_over(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    manager = managers()
    model = manager.ensure("small", Progress())
    there = moment == "while loading"

    def answers(device: str) -> bool:
        nonlocal there
        there, was = False, there
        return was or device == "cpu"

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("modules.musicgen.manager.device_answers", answers)
    manager._device, manager._device_name = "mps", "Some Card"  # what the manager believes it computes on
    if moment == "while loading":
        manager._let_go()
        with monkeypatch.context() as patch:
            patch.setattr("audiocraft.models.loaders.load_lm_model", fail)
            with pytest.raises(DeviceLost, match="Some Card stopped answering"):
                manager.ensure("small", Progress())
    elif moment == "at a step":
        with monkeypatch.context() as patch:
            patch.setattr("audiocraft.models.lm.LMModel._sample_next_token", fail)
            with pytest.raises(DeviceLost, match="the CPU takes over"):
                generate(model)
    if moment != "between two jobs":
        assert manager.status()["model"] is None
    manager.after_job()
    again = manager.ensure("small", Progress())
    assert generate(again).shape == (1, 4, 10)
    assert manager.status()["device"] == again.engine_info.device == "cpu"
    assert "mps stopped answering" in again.engine_info.why
    assert manager.catalog.info("small").state == "ready"


# -------------------------------------------------------------------------------------------- out of memory
STAGES = {
    "the language model": "audiocraft.models.loaders.load_lm_model",
    "the codec": "audiocraft.models.loaders.load_compression_model",
    "the engine": "modules.musicgen.backends.choose",
    "the text encoder": "audiocraft.modules.conditioners.T5Conditioner.forward",
    "a step": "audiocraft.models.lm.LMModel._sample_next_token",
    "decoding": "modules.musicgen.seanet.SeanetStream.push",
    "encoding": "audiocraft.models.encodec.EncodecModel.encode",
}


def lack(kind: str) -> Exception:
    import torch

    return {
        "torch": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "cpu": RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        "python": MemoryError(),
    }[kind]


def use(manager: ModelManager) -> None:
    from modules.audio import Clip

    model = manager.ensure("small", Progress())
    codes = generate(model)
    model.codec.encode(model.codec.decode(codes[0]))
    model.codec.encode(Clip(np.zeros((1, 3200), np.float32), 3200))


@pytest.mark.parametrize(
    ("stage", "kind"), [*((stage, "torch") for stage in STAGES), ("the language model", "cpu"), ("a step", "python")]
)
def test_a_lack_of_memory_at_any_stage_lets_go_says_what_fits_and_the_next_job_works(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch, stage: str, kind: str
) -> None:
    manager = managers()

    def fail(*_: Any, **__: Any) -> None:
        raise lack(kind)

    with monkeypatch.context() as patch:
        patch.setattr(STAGES[stage], fail)
        with pytest.raises(OutOfMemory) as caught:
            use(manager)
    assert manager.status()["model"] is None
    assert isinstance(caught.value.details["fits"], list)
    manager.after_job()
    use(manager)


def test_a_model_too_large_for_the_free_memory_is_not_even_tried_and_what_fits_is_named(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = managers()
    monkeypatch.setattr(memory, "available_bytes", lambda _: 4_000_000_000)
    monkeypatch.setattr("audiocraft.models.loaders.load_lm_model", lambda *_, **__: pytest.fail("tried"))
    with pytest.raises(OutOfMemory, match="small in float32") as caught:
        manager.ensure("medium", Progress())
    assert {"model": "small", "precision": "float32"} in caught.value.details["fits"]
    assert "medium" not in [fit["model"] for fit in caught.value.details["fits"]]


def test_the_ladder_is_gone_down_until_something_fits(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiocraft.models import loaders

    tried = []
    load = loaders.load_lm_model

    def load_once_out_of_memory(*args: Any, **kwargs: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise MemoryError
        return load(*args, **kwargs)

    monkeypatch.setattr(loaders, "load_lm_model", load_once_out_of_memory)
    monkeypatch.setattr(backends, "ladder", lambda *_: [("float32", "first"), ("bfloat16", "smaller")])
    model = managers().ensure("small", Progress())
    assert model.engine_info.precision == "bfloat16"
    assert "smaller" in model.engine_info.why


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = managers()
    model = manager.ensure("small", Progress())
    with monkeypatch.context() as patch:
        patch.setattr("audiocraft.models.lm.LMModel._sample_next_token", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(model)
    assert manager.status()["model"] == "small"
    assert generate(model).shape == (1, 4, 10)


@pytest.mark.parametrize(
    ("backend", "stage"),
    [
        ("torch", "modules.musicgen.sampling.Sampler.draw"),
        ("torch", "modules.musicgen.backends.weights.DecoderWeights.__init__"),
        ("onnx", "modules.musicgen.sampling.Sampler.draw"),
    ],
)
def test_the_faster_backends_lack_of_memory_is_handled_alike(
    full_cache: Path, managers: Any, monkeypatch: pytest.MonkeyPatch, backend: str, stage: str
) -> None:
    manager = managers(backend=backend)

    def fail(*_: Any, **__: Any) -> None:
        raise lack("cpu")

    with monkeypatch.context() as patch:
        patch.setattr(stage, fail)
        with pytest.raises(OutOfMemory):
            use(manager)
    assert manager.status()["model"] is None
    manager.after_job()
    use(manager)


@pytest.mark.parametrize(("model_id", "weights"), [("small", 841e6), ("medium", 3.68e9), ("large", 6.51e9)])
def test_the_estimate_knows_the_published_sizes(managers: Any, model_id: str, weights: float) -> None:
    entry = managers().catalog.entry(model_id)
    assert entry.shape.parameters * 2 == pytest.approx(weights, rel=0.02)
    sizes = [memory.estimate_bytes(entry, precision) for precision in ("int4", "int8", "float16", "float32")]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * weights


def test_a_step_reads_the_weights_and_half_of_the_keys_and_values(managers: Any) -> None:
    manager = managers(backend="onnx")
    entry = manager.catalog.entry("small")
    half = memory.cache_bytes(entry.shape, 1500, "int8") / 2
    assert manager.step_bytes("small", 30) == int(entry.shape.parameters * memory.WEIGHT_BYTES["int8"] + half)
    assert manager.step_bytes("small", 90) == manager.step_bytes("small", 30) > manager.step_bytes("small", 10)


# ----------------------------------------------------------------------------------------- memory for real
@pytest.mark.slow
@pytest.mark.parametrize(("backend", "share"), [("reference", 0.9), ("onnx", 0.25)])
def test_an_unloaded_models_memory_really_goes_back(made: Path, tmp_path: Path, backend: str, share: float) -> None:
    code = """
        import sys
        from pathlib import Path
        from modules.musicgen import compat, memory
        from modules.musicgen.engine import GenerationSpec
        from modules.musicgen.manager import ModelManager
        from modules.settings import Settings
        from tests import checkpoints
        from tests.test_manager import Progress, Silent

        compat.import_stack()
        models = Path(sys.argv[1])
        checkpoints.make_model(models / "sizeable", dim=384, layers=8)
        manager = ModelManager(Settings(models_dir=models, cache_dir=models.parent / "c", threads=1, offline=True,
                                        backend=sys.argv[2]))
        spec = GenerationSpec(prompt="warm piano", duration_s=0.2, seeds=(1,), top_k=50)
        for _ in range(3):
            model = manager.ensure("sizeable", Progress())
            codes = model.engine.generate(spec, Silent())
            model.codec.decode(codes[0])
            loaded = memory.resident_bytes()
            manager.unload()
            manager.after_job()
            del model
            print(loaded, memory.resident_bytes(), manager.catalog.entry("sizeable").shape.parameters * 4)
    """
    cache = tmp_path / "hub"
    checkpoints.put_in_cache(cache, made, T5_REPO)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path / "models"), backend],
        cwd=ROOT, check=False,
        env={**os.environ, "HF_HUB_CACHE": str(cache)}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rounds = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(rounds) == 3
    for loaded, after, weights in rounds:
        assert loaded - after > share * weights
    # What is left must not grow from one load to the next either.
    assert rounds[2][1] - rounds[1][1] < 0.1 * rounds[0][2]
