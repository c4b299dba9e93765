"""The command line: one track without a server, its flags from the contract, and errors of one line."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import webui
from modules import audio, studio
from modules.contract import MAX_SEED, Job, OutOfMemory, Track, parameters
from modules.settings import ROOT, parse
from tests.fakes import FakeEngine, FakeManager, FakeSeparator, model_info

URL_WAIT_S = 30.0


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    """The program with stand-ins for the model and the separator; logging and signals as they were afterwards."""
    made = FakeManager()
    monkeypatch.setattr(studio, "_real_manager", lambda _settings: made)
    monkeypatch.setattr(studio, "_real_separator", lambda _settings: FakeSeparator())
    root = logging.getLogger()
    handlers, level, hook, handler = list(root.handlers), root.level, sys.excepthook, signal.getsignal(signal.SIGTERM)
    yield made
    for opened in root.handlers:
        if opened not in handlers:
            opened.close()
    root.handlers, sys.excepthook = handlers, hook
    root.setLevel(level)
    signal.signal(signal.SIGTERM, handler)
    logging.captureWarnings(capture=False)


def folders(place: Path) -> list[str]:
    return ["--data-dir", str(place / "data"), "--state-dir", str(place / "state")]


def program(place: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "webui.py", *folders(place), *flags], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def the_json(path: Path) -> Track:
    return Track.model_validate_json(path.with_suffix(".json").read_bytes())


# ----------------------------------------------------------------------------------------------- one track
def test_the_path_is_printed_last_and_the_pair_is_there(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert webui.main([*folders(tmp_path), "--prompt", "warm lo-fi piano", "--duration", "3"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert soundfile.info(str(path)).duration == 3.0
    assert np.abs(audio.decode(path).samples).max() > 0.1
    assert the_json(path).prompt == "warm lo-fi piano"
    assert path.parent == tmp_path / "data" / "audio"


def test_a_name_outside_the_terminals_alphabet_is_printed_all_the_same(
    manager: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    assert webui.main([*folders(tmp_path), "--prompt", "x", "--duration", "1", "--artist", "日本語"]) == 0
    sys.stdout.flush()
    assert b"\\u65e5\\u672c\\u8a9e_fake" in printed.getvalue()


def test_words_that_the_model_does_not_read_are_said(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.catalog._models["sketch"] = model_info("sketch", sketch=True)
    assert (
        webui.main([*folders(tmp_path), "--model", "sketch", "--prompt", "piano, xyzzyphone", "--duration", "1"]) == 0
    )
    said = capsys.readouterr()
    assert "the model does not know: xyzzyphone\n" in said.err
    assert Path(said.out.splitlines()[-1]).is_file()


def test_every_parameter_of_the_contract_is_a_flag(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "model": "fake", "duration": "2.5", "top_k": "30", "top_p": "0.25", "temperature": "0.5", "cfg_coef": "4.5",
        "decoder": "diffusion", "seed": "77", "takes": "2", "artist": "Ана", "format": "flac", "sample_rate": "48k",
        "stems": "bass",
    }  # fmt: skip
    assert asked.keys() | {"loop"} == {parameter.name for parameter in parameters()}
    flags = [text for name, value in asked.items() for text in ("--" + name.replace("_", "-"), value)]
    assert webui.main([*folders(tmp_path), "--prompt", "x", *flags, "--loop"]) == 0
    first, second = (the_json(Path(line)) for line in capsys.readouterr().out.splitlines())
    assert {name: str(first.asked[name]) for name in asked} == asked
    assert (first.seed, second.seed) == (77, 78)
    assert first.asked["loop"] is True
    assert first.loop is not None
    assert first.stems.keys() == {"bass"}


def test_a_default_that_is_not_named_is_the_contracts(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    webui.main([*folders(tmp_path), "--prompt", "x"])
    track = the_json(Path(capsys.readouterr().out.splitlines()[-1]))
    for parameter in parameters():
        if parameter.name != "model":
            assert track.asked[parameter.name] == parameter.default
    assert 0 <= track.seed <= MAX_SEED
    assert track.model == "fake", "the best model that is here"


def test_out_is_a_copy_with_its_json_and_picks_the_format(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my song.flac"
    assert webui.main([*folders(tmp_path), "--prompt", "x", "--takes", "2", "--out", str(out)]) == 0
    second = tmp_path / "my song_2.flac"
    assert capsys.readouterr().out.splitlines() == [str(out), str(second)]
    assert soundfile.info(str(out)).format == "FLAC"
    assert the_json(second).take == 2
    assert len(list((tmp_path / "data" / "audio").glob("*.flac"))) == 2


def test_out_never_replaces_a_json_of_the_persons_own(manager: FakeManager, tmp_path: Path) -> None:
    own = tmp_path / "package.json"
    own.write_text('{"name": "mine"}')
    assert webui.main([*folders(tmp_path), "--prompt", "x", "--out", str(tmp_path / "package.wav")]) == 0
    assert own.read_text() == '{"name": "mine"}'


@pytest.mark.parametrize(("flag", "seconds"), [("--continue", 4.0), ("--append", 3.95)])
def test_a_clip_is_continued_or_put_before(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, seconds: float
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, 0.3 * np.sin(np.arange(5 * 16_000) / 9.0), 16_000)
    webui.main([*folders(tmp_path), "--prompt", "x", "--duration", "2", flag, str(clip), "--from", "2"])
    track = the_json(Path(capsys.readouterr().out.splitlines()[-1]))
    assert track.continuation is not None
    assert (track.continuation.name, track.continuation.from_s) == ("clip.wav", 2.0)
    assert track.duration_s == pytest.approx(seconds, abs=0.01)


def test_an_audio_prompt_is_a_file(manager: FakeManager, tmp_path: Path) -> None:
    hum = tmp_path / "hum.wav"
    soundfile.write(hum, 0.3 * np.sin(np.arange(16_000) / 9.0), 16_000)
    flags = ["--prompt", "x", "--model", "fake-melody", "--audio-prompt", str(hum)]
    assert webui.main([*folders(tmp_path), *flags]) == 0
    assert manager.engine.specs[-1].melody is not None


def test_jobs_that_a_server_left_waiting_are_left_to_it(manager: FakeManager, tmp_path: Path) -> None:
    settings = parse(folders(tmp_path))
    served = studio.Studio(settings)
    waiting = served.submit({"kind": "generate", "client_id": "later", "prompt": "x"})
    served.stop()
    assert webui.main([*folders(tmp_path), "--prompt", "y"]) == 0
    again = studio.Studio(settings)
    assert again.job(waiting.id).status == "queued"
    assert again.library.count() == 1
    again.stop()


def test_progress_is_one_line_that_is_gone_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    meter = webui.Meter(drawn=True)
    job = Job(
        id="a", client_id="b", rev=1, kind="generate", status="running", phase="generating", done=45, total=100,
        eta_s=12.4, created_at="", request={},
    )  # fmt: skip
    meter(job)
    meter(job.model_copy(update={"phase": "saving", "total": 0, "eta_s": None}))
    meter.clear()
    shown = capsys.readouterr().err
    assert "generating  45%, 12 s left" in shown
    assert "\n" not in shown
    assert shown.endswith(" \r")


# -------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "x", "--duration", "999"], "duration"),
        (["--prompt", "   "], "prompt"),
        (["--prompt", "x", "--seed", "9999999999"], "seed"),
        (["--prompt", "x", "--model", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert webui.main([*folders(tmp_path), *flags]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert words in shown.err


@pytest.mark.parametrize("error", [OutOfMemory("too large; what would fit: tiny"), ValueError("a defect")])
def test_a_job_that_fails_is_one_line_and_a_status(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    manager.engine = FakeEngine(fail=error)
    assert webui.main([*folders(tmp_path), "--prompt", "x"]) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert ("what would fit: tiny" in shown) == isinstance(error, OutOfMemory)
    log = (tmp_path / "state" / "log" / "studio.log").read_text()
    assert ("ValueError: a defect" in log) == isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--duration", "5"], "--duration needs --prompt"),
        (["--prompt", "x", "--duration", "soon"], "--duration"),
        (["--prompt", "x", "--format", "ogg"], "--format"),
        (["--prompt", "x", "--out", "song.ogg"], ".wav"),
        (["--prompt", "x", "--out", "song.wav", "--format", "mp3"], "--format says mp3"),
        (["--prompt", "x", "--out", "/no/such/folder/song.wav"], "no such folder"),
        (["--prompt", "x", "--continue", "/no/such/file.wav"], "no such file"),
        (["--prompt", "x", "--from", "3"], "--from needs"),
        (["--promt", "x"], "--promt"),
        (["--port", "99999"], "--port 99999"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(
    manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        webui.main([*folders(tmp_path), *flags])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert words in shown


def test_the_real_program_says_in_one_line_what_it_does_not_know(tmp_path: Path) -> None:
    done = program(tmp_path, "--prompt", "x", "--model", "nothing-like-it", "--offline")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "nothing-like-it" in done.stderr


def test_a_clip_that_is_no_audio_is_one_line(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_text("no audio")
    done = program(tmp_path, "--prompt", "x", "--continue", str(clip))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(clip) in done.stderr


@pytest.mark.parametrize("flags", [["--prompt", "x"], ["--no-browser", "--port", "0"]], ids=["headless", "server"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    done = program(tmp_path, *flags)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "data" in done.stderr
    assert "Traceback" in (tmp_path / "state" / "log" / "studio.log").read_text(encoding="utf-8")


def test_a_python_without_the_packages_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "webui.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No module named 'pydantic'; start the program with ./run.sh" in done.stderr


# -------------------------------------------------------------------------------------------------- server
def start(place: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """The server on a free port, and its address."""
    child = subprocess.Popen(
        [sys.executable, "webui.py", *folders(place), "--port", "0", "--no-browser", *flags], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    line = child.stdout.readline()
    assert "http://" in line, child.stderr.read() if child.stderr else ""
    return child, line.split()[-1]


def stop(child: subprocess.Popen[str], number: signal.Signals) -> float:
    began = time.monotonic()
    child.send_signal(number)
    child.communicate(timeout=20)
    return time.monotonic() - began


def test_a_second_program_and_a_port_in_use_are_one_line_each(tmp_path: Path) -> None:
    child, url = start(tmp_path)
    try:
        port = url.rsplit(":", 1)[1].rstrip("/")
        same_folder = program(tmp_path, "--prompt", "x")
        same_port = program(tmp_path / "other", "--port", port, "--no-browser")
    finally:
        stop(child, signal.SIGTERM)
    for done, words, status in ((same_folder, "another running program", 1), (same_port, port, 2)):
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_stops_in_time_whoever_is_connected(tmp_path: Path, number: signal.Signals) -> None:
    child, url = start(tmp_path)
    port = int(url.rsplit(":", 1)[1].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        assert stop(child, number) < 5.0
    assert child.returncode == 0
