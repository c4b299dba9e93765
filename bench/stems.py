"""Our split beside the demucs command line: the same file, the same weights, one run.

    python bench/stems.py [--seconds 30] [--repeat 1] [--model FOLDER] [--stem vocals] [--overlap 0.25]
    python bench/stems.py --memory 60          our split alone on so many minutes: peak memory

Without --model the weights are random, in htdemucs' real shape (42 M parameters): time, memory and the difference
between the two programs are those of the real ones; only the stems mean nothing. With --model it is a folder in
demucs' hub format, for example models/tiny-stems.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RATE_HZ = 44_100
SOURCES = ("drums", "bass", "other", "vocals")


@dataclass
class Run:
    """One program's run over the file."""

    name: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    stems: dict[str, Path]


# ------------------------------------------------------------------------------------------------ material
def band(seconds: float) -> np.ndarray[Any, Any]:
    """Drums, a bass line, chords and a lead, float32 [T, 2]."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(7).standard_normal(len(t))
    drums = noise * np.exp(-((t * 2) % 1) * 12) * 0.3
    bass = np.sin(2 * np.pi * 55 * 2 ** (np.floor(t) % 5 / 12) * t) * 0.25
    chords = sum(np.sin(2 * np.pi * f * 2 ** (np.floor(t / 4) % 3 / 12) * t) for f in (261.6, 329.6, 392.0)) * 0.08
    lead = np.sin(2 * np.pi * 440 * t + 3 * np.sin(2 * np.pi * 5 * t)) * 0.1 * (np.floor(t / 2) % 2)
    return np.stack([drums + bass + chords + lead, drums * 0.6 + bass + chords * 1.2 + lead], axis=1).astype("f4")


def real_shape(folder: Path, small: bool) -> Path:
    """A separator folder with random weights in htdemucs' shape (or a small network with htdemucs' segment)."""
    import torch
    from demucs.htdemucs import HTDemucs

    from tests import separators

    torch.manual_seed(0)
    if small:
        made = HTDemucs(list(SOURCES), channels=8, depth=1, t_layers=0, dconv_mode=0, segment=Fraction(39, 5))
    else:
        made = HTDemucs(list(SOURCES), bottom_channels=512, dconv_mode=3, segment=Fraction(39, 5))
        for key, value in made.named_parameters():
            if key.endswith("scale"):
                value.data.fill_(0.1)  # as after training: at their first values the branches would say nothing
    target = folder / "bench"
    target.mkdir(parents=True)
    separators.save(made.eval(), target / "sig.safetensors")
    (target / "bench.yaml").write_text("models: [sig]\n")
    return target


def as_package(model: Path, folder: Path) -> None:
    """The same weights as the command line's --repo wants them: torch pickles beside a bag file."""
    import torch
    import yaml
    from demucs.hf import load_safetensors_model

    folder.mkdir()
    (bag,) = model.glob("*.yaml")
    said = yaml.safe_load(bag.read_text())
    for signature in said["models"]:
        made: Any = load_safetensors_model(model / f"{signature}.safetensors")
        args, kwargs = made._init_args_kwargs  # noqa: SLF001 - what demucs' own export reads
        package = {"klass": type(made), "args": args, "kwargs": kwargs, "state": made.state_dict()}
        torch.save(package, folder / f"{signature}.th")
    said.pop("studio", None)
    (folder / "bag.yaml").write_text(yaml.safe_dump(said))


# ------------------------------------------------------------------------------------------------ running
def measured(name: str, command: list[str], stems: dict[str, Path]) -> Run:
    """Run a command; its own time and peak memory as the system counted them."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    words = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{name} failed:\n{words[-2000:]}")
    return Run(name, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, stems)


def theirs(source: Path, repo: Path, out: Path, *more: str) -> Run:
    command = [sys.executable, "-m", "demucs", "-n", "bag", "--repo", str(repo), "-o", str(out), "-d", "cpu"]
    command += ["--float32", "--clip-mode", "none", *more, str(source)]
    stems = {stem: out / "bag" / source.stem / f"{stem}.wav" for stem in SOURCES}
    return measured(" ".join(["demucs", *more]) or "demucs", command, stems)


def ours(source: Path, model: Path, out: Path, overlap: float, stem: str) -> Run:
    wanted = list(SOURCES) if stem == "all" else [stem]
    job = {"source": str(source), "model": str(model), "out": str(out), "overlap": overlap, "stems": wanted}
    stems = {name: out / f"{name}.part.wav" for name in wanted}
    name = f"ours, overlap {overlap:g}" + ("" if stem == "all" else f", {stem} alone")
    return measured(name, [sys.executable, __file__, "--job", json.dumps(job)], stems)


def do_job(job: dict[str, Any]) -> None:
    """The child: nothing but our split."""
    from modules import settings, stems

    stems.OVERLAP = job["overlap"]  # type: ignore[misc]
    model = Path(job["model"])
    chosen = settings.parse(["--models-dir", str(model.parent), "--offline", "--device", "cpu"], env={})
    separator = stems.Separator(chosen)
    separator.split(
        Path(job["source"]), Path(job["out"]), job["stems"], separator=model.name,
        progress=lambda *_: None, check=lambda: None,
    )  # fmt: skip


def decibels(run: Run, reference: Run) -> float:
    """How far the loudest difference of a stem is under that stem, over the stems both have."""
    worst = -200.0
    for stem, path in run.stems.items():
        got, _ = soundfile.read(path)
        want, _ = soundfile.read(reference.stems[stem])
        error = np.square(got - want).mean() / max(np.square(want).mean(), 1e-20)
        worst = max(worst, 10 * float(np.log10(error + 1e-20)))
    return worst


def table(runs: list[Run], reference: Run, seconds: float) -> None:
    import torch

    print(f"{seconds:.0f} s of stereo; {platform.processor() or platform.machine()}, {os.cpu_count()} cores,")
    print(f"torch {torch.__version__}; load average before: {os.getloadavg()[0]:.1f}; best of the repetitions\n")
    print(f"{'':34}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'difference dB':>15}")
    for run in runs:
        difference = "-" if run is reference else f"{decibels(run, reference):.0f}"
        print(f"{run.name:34}{run.wall_s:9.1f}{run.cpu_s:9.1f}{run.peak_mb:9.0f}{difference:>15}")


def compare(asked: argparse.Namespace, folder: Path) -> None:
    model = asked.model.resolve() if asked.model else real_shape(folder / "models", small=False)
    as_package(model, folder / "repo")
    source = folder / "song.wav"
    soundfile.write(source, band(asked.seconds), RATE_HZ, subtype="FLOAT")
    best: dict[str, Run] = {}
    for turn in range(asked.repeat):
        out = folder / str(turn)
        tries = [
            theirs(source, folder / "repo", out / "plain", "--shifts", "0"),
            theirs(source, folder / "repo", out / "default"),
            *(ours(source, model, out / f"ours{overlap}", overlap, asked.stem) for overlap in asked.overlap),
        ]
        for run in tries:
            known = best.get(run.name)
            best[run.name] = run if known is None or run.cpu_s < known.cpu_s else known
    runs = list(best.values())
    table(runs, runs[0], asked.seconds)


def memory(minutes: float, folder: Path) -> None:
    model = real_shape(folder / "models", small=True)
    source = folder / "song.wav"
    part = band(60)
    with soundfile.SoundFile(source, "w", RATE_HZ, 2, subtype="PCM_16") as file:
        for _ in range(int(minutes)):
            file.write(part)
    run = ours(source, model, folder / "out", 0.25, "all")
    print(f"{minutes:.0f} minutes through a small network: {run.wall_s:.0f} s, peak {run.peak_mb:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--stem", default="all", choices=("all", *SOURCES))
    parser.add_argument("--overlap", type=float, nargs="+", default=[0.25])
    parser.add_argument("--memory", type=float, metavar="MINUTES")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        do_job(asked.job)
        return
    with tempfile.TemporaryDirectory() as name:
        if asked.memory:
            memory(asked.memory, Path(name))
        else:
            compare(asked, Path(name))


if __name__ == "__main__":
    main()
