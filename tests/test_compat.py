"""audiocraft on today's torch, each thing tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, *args: str, timeout_s: float = 120) -> str:
    """Run code in a fresh interpreter with the repository on its path; what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *args],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process with the whole stack says to many questions: its import is the dear part."""
    folder = tmp_path_factory.mktemp("compat")
    said = run(
        """
        import pickle, sys
        from pathlib import Path
        from modules.musicgen import compat

        compat.prepare()
        early = [name for name in ("torchaudio", "audiocraft", "demucs") if name in sys.modules]
        compat.import_stack()
        import torch, torchaudio
        before = torch.load, len(sys.meta_path)
        compat.import_stack()
        from audiocraft.models import builders, loaders
        from audiocraft.modules.conditioners import ConditioningAttributes
        from demucs import hf, pretrained
        from safetensors.torch import save_file

        folder = Path(sys.argv[1])
        print("early", early)
        print("idempotent", before == (torch.load, len(sys.meta_path)))
        print("xformers", getattr(sys.modules["xformers"], "__file__", "stand-in"))
        print("spectrogram", tuple(torchaudio.transforms.Spectrogram(64)(torch.zeros(1, 640)).shape))

        class Planted:
            def __reduce__(self):
                return open, (str(folder / "executed"), "w")

        planted = {"best_state": Planted(), "xp.cfg": "a: 1"}
        for name in ("state_dict.bin", "compression_state_dict.bin"):
            torch.save(planted, folder / name)
            (folder / ("raw_" + name)).write_bytes(pickle.dumps(planted))
        attempts = {
            "lm": lambda: loaders.load_lm_model(folder),
            "codec": lambda: loaders.load_compression_model(folder),
            "file": lambda: loaders.load_lm_model(folder / "raw_state_dict.bin"),
            "careless": lambda: torch.load(folder / "state_dict.bin", weights_only=False),
        }
        for name, attempt in attempts.items():
            try:
                attempt()
                print(name, "loaded")
            except Exception as error:
                print(name, type(error).__name__)
        print("executed", (folder / "executed").exists())

        asked = []
        hf.get_hf_model = lambda name: asked.append(name) or torch.nn.Identity()
        pretrained.get_model("htdemucs")
        print("demucs", asked)
        hf.get_hf_model = lambda name: 1 / 0
        try:
            pretrained.get_model("htdemucs")
            print("fallback", "taken")
        except ZeroDivisionError:
            print("fallback", "none")
        evil = {"klass": "os.mkdir", "args": f'["{folder}/made"]', "kwargs": "{}"}
        save_file({"a": torch.zeros(1)}, folder / "evil.safetensors", evil)
        try:
            hf.load_safetensors_model(folder / "evil.safetensors")
        except ValueError as error:
            print("class", error)
        print("made", (folder / "made").exists())

        from tests import checkpoints
        # The melody kind has no cross-attention, so it also runs on no condition at all.
        lm = checkpoints.build_lm(checkpoints.lm_config(melody=True)).eval()
        print("tokens", tuple(lm.generate(None, [], num_samples=2, max_gen_len=5, top_k=10).shape))
        codec = builders.get_debug_compression_model()
        print("sound", tuple(codec.decode(torch.zeros(1, 4, 25, dtype=torch.long)).shape))
        """,
        str(folder),
    )
    return dict(line.split(" ", 1) for line in said.splitlines())


def test_preparing_imports_none_of_the_heavy_packages(stack: dict[str, str]) -> None:
    assert stack["early"] == "[]"


def test_preparing_twice_changes_nothing(stack: dict[str, str]) -> None:
    assert stack["idempotent"] == "True"


def test_audiocraft_generates_tokens_and_sound_without_xformers(stack: dict[str, str]) -> None:
    assert stack["xformers"] == "stand-in"
    assert stack["tokens"] == "(2, 4, 5)"
    assert stack["sound"] == "(1, 1, 32000)"


def test_torchaudios_python_parts_work(stack: dict[str, str]) -> None:
    assert stack["spectrogram"] == "(1, 33, 21)"


@pytest.mark.parametrize("door", ["lm", "codec", "file", "careless"])
def test_a_pickle_planted_as_a_checkpoint_is_not_executed(stack: dict[str, str], door: str) -> None:
    assert stack[door] == "UnpicklingError"
    assert stack["executed"] == "False"


def test_demucs_bare_name_means_the_hubs_safetensors_and_never_falls_back(stack: dict[str, str]) -> None:
    assert stack["demucs"] == "['htdemucs']"
    assert stack["fallback"] == "none"


def test_a_separator_file_cannot_name_any_class_to_be_called(stack: dict[str, str]) -> None:
    assert "'os.mkdir' is no demucs model" in stack["class"]
    assert stack["made"] == "False"


def test_a_native_torchaudio_library_that_fails_to_load_counts_as_absent() -> None:
    said = run(
        """
        import torch

        def refuse(path):
            raise OSError(f"libcudart.so.99: cannot open shared object file ({path})")

        torch.ops.load_library = refuse
        from modules.musicgen import compat

        compat.prepare()
        import torchaudio
        print(torchaudio.transforms.Spectrogram(64)(torch.zeros(1, 640)).shape[-1])
        """
    )
    assert said == "21"


def test_a_torchaudio_for_another_cuda_is_accepted() -> None:
    said = run(
        """
        from modules.musicgen import compat

        compat.prepare()
        import torchaudio._extension.utils as utils
        print(utils._check_cuda_version())
        """
    )
    assert said == "None"


def test_the_musicgen_package_is_imported_without_torch() -> None:
    said = run(
        """
        import sys
        from modules.musicgen import backends, codec, compat, engine
        print("torch" in sys.modules)
        """
    )
    assert said == "False"
