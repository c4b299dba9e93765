"""The catalogue: published models, folders, what each lacks, and which one a person gets who chose nothing."""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from modules.contract import ModelBroken, UnknownModel
from modules.musicgen import catalog
from modules.musicgen.catalog import PUBLISHED, Catalog, Part, read_texts
from modules.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
CONFIG: dict[str, Any] = {
    "transformer_lm": {"dim": 64, "num_layers": 3, "n_q": 4, "card": 512, "hidden_scale": 4},
    "fuser": {"cross": ["description"]},
    "conditioners": {"description": {"model": "t5"}},
    "dataset": {"segment_duration": 10},
    "sample_rate": 32_000,
    "channels": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def make(tmp_path: Path, **flags: Any) -> Catalog:
    return Catalog(Settings(models_dir=tmp_path / "models", **flags))


def put(cache: Path, part: Part) -> None:
    """Lay empty files of a part into the hub's cache, named as the client names them."""
    home = cache / ("models--" + part.repo.replace("/", "--"))
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text("0" * 40)
    for names in part.files:
        (snapshot / names[-1]).write_bytes(b"")


def put_model(cache: Path, model_id: str) -> None:
    for part in next(entry for entry in PUBLISHED if entry.id == model_id).parts:
        put(cache, part)


def put_folder(tmp_path: Path, name: str, config: dict[str, Any] | None = None, **studio: Any) -> Path:
    """A model folder of our form whose weights are empty: the catalogue reads the description alone."""
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True)
    for file in ("state_dict.safetensors", "compression_state_dict.safetensors", "compression_config.yaml"):
        (folder / file).write_bytes(b"")
    (folder / "config.yaml").write_text(yaml.safe_dump({**(config or CONFIG), "studio": studio}))
    return folder


def test_every_published_model_is_listed_with_its_abilities(tmp_path: Path) -> None:
    models = {info.id: info for info in make(tmp_path).models()}
    sizes = ["small", "medium", "large", "melody", "melody-large"]
    assert list(models) == [*sizes, *(f"stereo-{size}" for size in sizes)]
    for name, info in models.items():
        assert info.repo == f"facebook/musicgen-{name}"
        assert info.channels == (2 if name.startswith("stereo") else 1)
        assert info.melody == ("melody" in name)
        assert info.licence == "CC-BY-NC 4.0"
        assert info.state == "downloadable"
        assert info.download_bytes > 1e9
        assert any("t5-base" in part for part in info.missing)
        assert any("HTDemucs" in part for part in info.missing) == info.melody


def test_a_model_is_ready_once_its_last_part_is_here_and_lists_the_rest_until_then(tmp_path: Path, cache: Path) -> None:
    models = make(tmp_path)
    parts = models.entry("melody").parts
    for at, part in enumerate(parts):
        assert len(models.info("melody").missing) == len(parts) - at
        assert models.info("melody").state == "downloadable"
        put(cache, part)
    info = models.info("melody")
    assert (info.state, info.missing, info.download_bytes) == ("ready", [], 0)


def test_offline_a_model_that_lacks_a_part_is_missing_not_downloadable(tmp_path: Path, cache: Path) -> None:
    put_model(cache, "small")
    models = {info.id: info.state for info in make(tmp_path, offline=True).models()}
    assert models["small"] == "ready"
    assert models["medium"] == "missing"


def test_a_file_counts_under_either_of_its_names(tmp_path: Path, cache: Path) -> None:
    put(cache, catalog.T5)
    assert [path.name for path in catalog.T5.local()] == ["config.json", "pytorch_model.bin", "spiece.model"]
    assert catalog.T5.here


def test_the_default_is_the_best_model_here_then_the_embedded_one_then_small(tmp_path: Path, cache: Path) -> None:
    models = make(tmp_path)
    assert models.default_id() == "small"
    put_folder(tmp_path, "tiny", loader="tiny", sketch=True)
    assert models.default_id() == "tiny"
    assert models.models()[0].id == "tiny"
    put_model(cache, "small")
    assert models.default_id() == "small"
    assert models.models()[-1].id == "tiny"


def test_of_the_models_here_the_largest_that_fits_the_machine_is_the_default(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    for name in ("small", "medium", "large"):
        put_model(cache, name)
    for gigabytes, best in ((2, "small"), (16, "medium"), (64, "large")):
        size = SimpleNamespace(total=gigabytes * 1_000_000_000)
        monkeypatch.setattr("psutil.virtual_memory", lambda size=size: size)
        assert make(tmp_path).default_id() == best


def test_a_model_named_on_the_command_line_is_the_default(tmp_path: Path, cache: Path) -> None:
    put_model(cache, "small")
    assert make(tmp_path, model="medium").default_id() == "medium"
    assert make(tmp_path, model="nonsense").default_id() == "small"


def test_an_unknown_model_is_refused_with_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="'huge' is not known, choose one of small, medium"):
        make(tmp_path).info("huge")


# -------------------------------------------------------------------------------------------------- folders
def test_a_folder_describes_itself(tmp_path: Path) -> None:
    put_folder(tmp_path, "tiny", loader="tiny", sketch=True, title="Sketch", licence="MIT", params_m=5.3)
    info = make(tmp_path, offline=True).info("tiny")
    assert (info.title, info.licence, info.params_m, info.sketch) == ("Sketch", "MIT", 5.3, True)
    assert (info.max_window_s, info.channels, info.melody, info.repo) == (10.0, 1, False, None)
    assert (info.state, info.missing) == ("ready", [])


def test_a_folder_of_audiocrafts_kind_needs_the_hubs_text_encoder(tmp_path: Path) -> None:
    put_folder(tmp_path, "mine")
    info = make(tmp_path).info("mine")
    assert info.state == "downloadable"
    assert [part.split(":")[0] for part in info.missing] == ["T5"]


def test_a_folder_named_like_a_published_model_gets_a_name_of_its_own(tmp_path: Path) -> None:
    put_folder(tmp_path, "small")
    ids = [info.id for info in make(tmp_path).models()]
    assert ids.count("small") == 1
    assert "local-small" in ids


def test_a_folder_without_its_codec_says_so(tmp_path: Path) -> None:
    folder = put_folder(tmp_path, "tiny", loader="tiny")
    (folder / "compression_config.yaml").unlink()
    assert make(tmp_path).info("tiny").missing == ["EnCodec: compression_config.yaml"]
    (folder / "compression_state_dict.safetensors").unlink()
    info = make(tmp_path).info("tiny")
    assert (info.state, info.missing) == ("missing", ["EnCodec: compression_state_dict.bin"])


@pytest.mark.parametrize(
    "text",
    ["", "]", "a: [", "transformer_lm: 3", "transformer_lm: {dim: x}", "transformer_lm: {}", "!!python/object:os.x {}"],
)
def test_a_folder_with_a_senseless_description_is_broken_and_the_others_stay(tmp_path: Path, text: str) -> None:
    (put_folder(tmp_path, "odd") / "config.yaml").write_text(text)
    models = {info.id: info for info in make(tmp_path).models()}
    assert models["odd"].state == "broken"
    assert models["odd"].problem
    assert models["small"].state == "downloadable"


def test_folders_that_hold_no_model_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "models" / "notes").mkdir(parents=True)
    (tmp_path / "models" / "file.txt").write_text("x")
    assert len(make(tmp_path).models()) == len(PUBLISHED)


# -------------------------------------------------------------------------------- a checkpoint as plain text
def test_a_checkpoints_description_is_read_in_torchs_new_and_old_form(tmp_path: Path) -> None:
    import torch

    package = {"best_state": {"a": torch.zeros(3)}, "xp.cfg": "dim: 4\nname: é", "version": "1"}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.bin"
        torch.save(package, path, _use_new_zipfile_serialization=zipped)
        assert read_texts(path) == {"xp.cfg": "dim: 4\nname: é"}
    torch.save({"pretrained": "facebook/encodec_32khz"}, tmp_path / "pointer.bin")
    assert read_texts(tmp_path / "pointer.bin") == {"pretrained": "facebook/encodec_32khz"}


def test_reading_a_description_executes_nothing(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    path = tmp_path / "state_dict.bin"
    path.write_bytes(b"".join(pickle.dumps(part) for part in (1, 2, 3, {"x": Planted(), "xp.cfg": "text"})))
    assert read_texts(path) == {"xp.cfg": "text"}
    assert not (tmp_path / "executed").exists()


@given(data=st.binary(max_size=400))
@example(data=b"\x96\x00\x00\x00\x00\x00\x00\x00\x01")  # a byte array said to be 2^56 bytes long
@given_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_description_or_a_broken_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.bin"
    path.write_bytes(data)
    try:
        assert isinstance(read_texts(path), dict)
    except ModelBroken as error:
        assert str(tmp_path) not in error.message  # noqa: PT017 - bytes that happen to be readable are right too


def _archive(method: int) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr(
            "lm/data.pkl", pickle.dumps({"xp.cfg": "text", "numbers": list(range(40)), "bytes": b"x" * 60})
        )
    return whole.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_a_description_or_a_broken_model(tmp_path: Path, method: int) -> None:
    whole, path, rng, broken = _archive(method), tmp_path / "state_dict.bin", random.Random(7), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            assert isinstance(read_texts(path), dict)
        except ModelBroken:
            broken += 1
    assert broken > 50


def test_the_catalogue_is_read_without_torch() -> None:
    code = """
import sys
import zipfile
from modules.musicgen.catalog import Catalog
from modules.settings import Settings
assert len(Catalog(Settings()).models()) >= 10
print([name for name in ("torch", "audiocraft", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
