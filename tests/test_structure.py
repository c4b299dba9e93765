"""The dependency rules of the design. A module that is not in the table has no place yet, and fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "modules"

BASE = {"contract", "settings", "disk"}
PARTS = {"musicgen", "stems", "library", "audio", "jobs"}
USE_CASES = {"generation", "material", "uploads", "live", "estimate", "mixing", "looping"}
"""What studio is made of."""
MAY_IMPORT: dict[str, set[str]] = {
    "settings": set(),
    "contract": set(),
    "disk": {"contract"},
    "jobs": BASE,
    "audio": BASE,
    "library": BASE | {"audio"},
    "hub": {"contract"},
    "stems": BASE | {"audio", "hub"},
    "midi": BASE | {"audio"},
    "musicgen": BASE | {"audio", "hub"},
    "estimate": BASE,
    "live": BASE | {"audio"},
    "intake": BASE | {"audio"},
    "uploads": BASE | {"intake"},
    "looping": BASE | {"audio"},
    "material": BASE | {"audio", "musicgen"},
    "mixing": BASE | {"audio", "library", "midi"},
    "generation": BASE | PARTS | {"material", "live", "estimate", "looping"},
    "studio": BASE | PARTS | USE_CASES,
    "web": BASE | {"studio"},
}
"""Room -> the other rooms it may import."""

ONLY_IN = {
    "audiocraft": {"musicgen"},
    "demucs": {"stems"},
    "basic_pitch": {"midi"},
    "torch": {"musicgen", "stems", "audio"},
    "torchaudio": {"musicgen"},
    "flask": {"web"},
    "flask_socketio": {"web"},
}
"""Package -> the rooms that may import it."""


def sources() -> list[Path]:
    return sorted(MODULES.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(MODULES).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_place_in_the_design() -> None:
    assert {room(path) for path in sources()} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(MODULES)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    used = {name.split(".")[1] for name in imported(path) if name.startswith("modules.") and name.count(".")}
    assert used - {own} <= MAY_IMPORT[own]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(MODULES)))
def test_a_heavy_package_has_one_importer(path: Path) -> None:
    for name in imported(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or room(path) in allowed, f"{room(path)} must not import {name}"


def test_the_program_never_imports_training_tests_or_benchmarks() -> None:
    for path in [*sources(), ROOT / "webui.py"]:
        assert not {name.split(".")[0] for name in imported(path)} & {"training", "tests", "bench"}, path


def test_the_page_can_be_served_before_the_model_stack_is_imported() -> None:
    code = (
        "import sys, modules.web.app, modules.studio, webui\n"
        "heavy = {'torch', 'torchaudio', 'audiocraft', 'demucs', 'transformers', 'librosa', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_prints_instead_of_logging() -> None:
    for path in sources():
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path
