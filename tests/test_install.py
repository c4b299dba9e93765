"""The two commands' first half: the environment. Real scripts, copied into a folder of the test's own."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.pace import assert_within

ROOT = Path(__file__).resolve().parent.parent
FILES = ("install.sh", "run.sh", "requirements.txt", "requirements-audiocraft.txt", "requirements-dev.txt")


def steps(script: str) -> list[str]:
    text = (ROOT / script).read_text(encoding="utf-8")
    return re.findall(r"^(?:#|rem) step: (.+?)\r?$", text, flags=re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The installation's own files in an empty folder: a fresh clone, as far as the scripts can tell."""
    for name in (*FILES, "package.json", "package-lock.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def installer(clone: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("installer", clone / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend_installed(installer: ModuleType, clone: Path) -> None:
    interpreter = clone / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    # An environment of its own with the packages of the one that runs the tests.
    (clone / ".venv" / "pyvenv.cfg").write_text(f"home = {Path(sys._base_executable).parent}\n")  # type: ignore[attr-defined]
    library = clone / ".venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library.mkdir(parents=True)
    (library / "site-packages").symlink_to(sysconfig.get_path("purelib"))
    installer._write_stamp(dev=True)
    installer.VENDOR_STAMP.parent.mkdir(parents=True)
    installer.VENDOR_STAMP.write_text("{}")


@pytest.mark.parametrize("pair", [("install.sh", "install.bat"), ("run.sh", "run.bat")])
def test_the_windows_scripts_take_the_same_steps(pair: tuple[str, str]) -> None:
    unix, windows = pair
    assert steps(unix)
    assert steps(unix) == steps(windows)


def test_both_systems_accept_the_same_pythons_and_run_the_same_installer() -> None:
    versions = r"\(3, \d+\) <= sys\.version_info\[:2\] < \(3, \d+\)"
    unix, windows = ((ROOT / name).read_text(encoding="utf-8") for name in ("install.sh", "install.bat"))
    assert re.findall(versions, unix) == re.findall(versions, windows) == ["(3, 10) <= sys.version_info[:2] < (3, 13)"]
    assert "scripts/install.py" in unix
    assert "scripts\\install.py" in windows


def test_a_fresh_clone_is_not_current_and_an_installed_one_is(installer: ModuleType, clone: Path) -> None:
    assert not installer.is_current(dev=False)
    pretend_installed(installer, clone)
    assert installer.is_current(dev=False)
    assert installer.is_current(dev=True)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-audiocraft.txt", "package-lock.json"])
def test_a_changed_requirement_asks_for_another_installation(installer: ModuleType, clone: Path, name: str) -> None:
    pretend_installed(installer, clone)
    (clone / name).write_text((clone / name).read_text() + "\n")
    assert not installer.is_current(dev=False)


def test_a_package_that_is_gone_is_installed_again(installer: ModuleType, clone: Path) -> None:
    pretend_installed(installer, clone)
    (clone / "requirements.txt").write_text("no-such-package-at-all>=1,<2\n")
    installer._write_stamp(dev=False)
    assert not installer.is_current(dev=False)


def test_every_package_of_the_requirement_files_is_looked_for(installer: ModuleType) -> None:
    names = installer.packages(dev=True)
    assert {"torch", "audiocraft", "flask-socketio", "basic-pitch", "types-PyYAML", "pytest"} <= set(names)
    assert not any(re.search(r"[<>=#\s]", name) for name in names)
    assert "pytest" not in installer.packages(dev=False)


def test_an_installation_that_stopped_half_way_is_not_current(installer: ModuleType, clone: Path) -> None:
    pretend_installed(installer, clone)
    installer.STAMP.write_text('{"runtime": "')
    assert not installer.is_current(dev=False)


def test_the_check_of_a_second_start_takes_less_than_a_second(installer: ModuleType, clone: Path) -> None:
    pretend_installed(installer, clone)
    command = [str(clone / ".venv" / "bin" / "python"), str(clone / "scripts" / "install.py"), "--check"]

    def checked() -> float:
        began = time.perf_counter()
        assert subprocess.run(command, check=False).returncode == 0
        return time.perf_counter() - began

    assert_within(1.0, checked)


def test_without_a_python_it_says_which_one_to_install(clone: Path) -> None:
    tools = clone / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "env"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    done = subprocess.run(
        [str(clone / "install.sh")], env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Python 3.11" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_python_may_be_named_by_a_path_with_spaces(clone: Path) -> None:
    named = clone / "my tools" / "python"
    named.parent.mkdir()
    named.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    named.chmod(0o755)
    done = subprocess.run(
        [str(clone / "install.sh"), "--check"], env={**os.environ, "AUDIOCRAFT_WEBUI_PYTHON": str(named)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, ""), "the installer itself answered: nothing is installed yet"


def test_conda_needs_no_python_of_the_right_version(clone: Path) -> None:
    tools = clone / "tools"
    tools.mkdir()
    # As a Miniforge of today has it: too new to make the environment, good enough to run the installer.
    newer = tools / "python3"
    newer.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    newer.chmod(0o755)
    for name in ("bash", "dirname", "env", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    shown = [
        subprocess.run(
            [str(clone / "install.sh"), *flags], env={"PATH": str(tools)}, capture_output=True, text=True, check=False
        ).stderr
        for flags in ([], ["--conda"])
    ]
    assert "no Python 3.10" in shown[0]
    assert "conda is not on the PATH" in shown[1]


@pytest.mark.parametrize(("said", "new"), [("v22.3.0\n", True), ("v12.22.9\n", False), ("", False)])
def test_a_node_of_long_ago_is_not_used(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, new: bool
) -> None:
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    node.chmod(0o755)
    monkeypatch.setattr(installer.shutil, "which", lambda _name: str(node))
    assert installer._node_is_new() == new


def test_a_full_disk_is_said_before_anything_is_made(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1_000_000))
    assert installer.main([]) == 1
    assert "make room" in capsys.readouterr().err
    assert not installer.ENVIRONMENT.exists()


def test_without_a_network_it_says_so_and_can_be_run_again(clone: Path) -> None:
    environment = {
        **os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1",
        "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "AUDIOCRAFT_WEBUI_PYTHON": sys.executable,
    }  # fmt: skip
    done = subprocess.run(
        [str(clone / "install.sh")], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "could not install torch" in done.stderr
    assert "Is the network there" in done.stderr
    assert not (clone / ".venv" / "audiocraft-webui.json").exists()


def test_an_environment_that_does_not_start_is_made_anew(installer: ModuleType, clone: Path) -> None:
    interpreter = clone / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(clone / "no-such-python")
    (clone / ".venv" / "pyvenv.cfg").write_text("home = /nowhere\n")
    installer.make_environment(conda=False)
    assert installer._interpreter_runs()


def test_an_error_of_the_system_is_one_line_too(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(installer.ENVIRONMENT))

    monkeypatch.setattr(installer, "install", refuse)
    assert installer.main([]) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "Read-only file system" in shown


def test_a_folder_of_somebody_else_is_never_removed(installer: ModuleType, clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "diary.txt").write_text("mine")
    with pytest.raises(installer.InstallProblem, match="not an environment of this program"):
        installer.make_environment(conda=False)
    assert (clone / ".venv" / "diary.txt").read_text() == "mine"


def test_torch_that_is_there_stays(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(installer, "pip", lambda arguments, purpose: asked.append(list(arguments)))
    monkeypatch.setattr(installer, "_has", lambda module: True)
    installer.install_torch()
    assert asked == []


@pytest.mark.parametrize(
    ("system", "nvidia", "variable", "expected"),
    [
        ("posix", True, "", []),
        ("posix", False, "", []),
        ("nt", False, "", []),
        ("nt", True, "", "cuda"),
        ("posix", False, "https://mirror.example/simple", ["--index-url", "https://mirror.example/simple"]),
    ],
)
def test_the_build_of_torch_follows_the_system_and_the_driver(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, nvidia: bool, variable: str, expected: object
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(installer, "pip", lambda arguments, purpose: asked.append(list(arguments)))
    monkeypatch.setattr(installer, "_has", lambda module: False)
    monkeypatch.setattr(installer, "has_nvidia", lambda: nvidia)
    monkeypatch.setenv(installer.TORCH_INDEX_VARIABLE, variable)
    monkeypatch.setattr(installer.os, "name", system)
    try:
        installer.install_torch()
    finally:
        monkeypatch.undo()
    wanted = ["--index-url", installer.TORCH_CUDA_INDEX] if expected == "cuda" else expected
    assert asked == [[installer.TORCH, *wanted]]  # type: ignore[misc]


def test_conda_is_used_when_asked_for_and_said_to_be_missing_when_it_is(
    installer: ModuleType, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer.shutil, "which", lambda name, path=None: None)
    with pytest.raises(installer.InstallProblem, match="conda is not on the PATH"):
        installer.make_environment(conda=True)
    asked: list[list[str]] = []
    monkeypatch.setattr(installer.shutil, "which", lambda name, path=None: "/opt/conda" if name == "conda" else None)
    monkeypatch.setattr(installer, "run", lambda command, purpose: asked.append(list(command)))
    installer.make_environment(conda=True)
    assert asked == [["/opt/conda", "create", "--yes", "--prefix", str(clone / ".venv"), "python=3.11", "pip"]]


def test_the_lock_file_names_no_place_to_download_from() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["packages"]
    assert [name for name, entry in lock["packages"].items() if "resolved" in entry] == []
