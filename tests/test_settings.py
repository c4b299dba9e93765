"""Flags, their environment mirrors and what they refuse."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from modules.settings import Settings, env_name, flag_name, parse


def test_every_flag_has_a_default_and_a_line_of_help() -> None:
    for spec in fields(Settings):
        assert spec.metadata["help"]
    assert parse([], {}) == Settings()


def test_the_environment_mirrors_a_flag_and_the_flag_wins() -> None:
    environment = {"AUDIOCRAFT_WEBUI_PORT": "9000", "AUDIOCRAFT_WEBUI_UNLOAD_AFTER_GEN": "yes"}
    assert parse([], environment).port == 9000
    assert parse([], environment).unload_after_gen is True
    assert parse(["--port", "9001", "--no-unload-after-gen"], environment).port == 9001
    assert parse(["--no-unload-after-gen"], environment).unload_after_gen is False


def test_a_path_flag_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["--models-dir", "mine"], {}).models_dir == tmp_path / "mine"


@pytest.mark.parametrize(
    ("argv", "environment", "named"),
    [
        (["--port", "70000"], {}, "--port 70000"),
        (["--port", "x"], {}, "--port"),
        (["--device", "tpu"], {}, "--device"),
        (["--keep-alive-min", "-1"], {}, "--keep-alive-min -1.0"),
        (["--keep-alive-min", "nan"], {}, "--keep-alive-min nan"),
        (["--max-queue", "0"], {}, "--max-queue 0"),
        (["--no-such-flag"], {}, "--no-such-flag"),
        ([], {"AUDIOCRAFT_WEBUI_PORT": "abc"}, "AUDIOCRAFT_WEBUI_PORT=abc"),
        ([], {"AUDIOCRAFT_WEBUI_OFFLINE": "perhaps"}, "AUDIOCRAFT_WEBUI_OFFLINE=perhaps"),
        ([], {"AUDIOCRAFT_WEBUI_PRECISION": "int3"}, "AUDIOCRAFT_WEBUI_PRECISION=int3"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_it(
    argv: list[str], environment: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(argv, environment)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_names_follow_the_field() -> None:
    assert flag_name("keep_alive_min") == "--keep-alive-min"
    assert env_name("keep_alive_min") == "AUDIOCRAFT_WEBUI_KEEP_ALIVE_MIN"
