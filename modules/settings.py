"""Every flag, its environment mirror and its default, in one frozen Settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent
ENV_PREFIX = "AUDIOCRAFT_WEBUI_"

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8", "int4")
BACKENDS = ("auto", "reference", "torch", "onnx", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _flag(default: Any, help_text: str, *, choices: tuple[str, ...] = (), metavar: str = "") -> Any:
    """A Settings field with what its command-line flag needs."""
    return field(default=default, metadata={"help": help_text, "choices": choices, "metavar": metavar})


@dataclass(frozen=True)
class Settings:
    """How one run of the program behaves. A field is a flag `--its-name` and a variable ENV_PREFIX + ITS_NAME."""

    host: str = _flag("127.0.0.1", "address to listen on", metavar="ADDRESS")
    port: int = _flag(7860, "port to listen on; 0 takes a free one", metavar="PORT")
    listen: bool = _flag(False, "listen on every address of this machine; then a token is needed")
    token: str = _flag("", "token that --listen asks of every visitor; made and printed when not given", metavar="TEXT")
    no_browser: bool = _flag(False, "do not open the browser")
    data_dir: Path = _flag(ROOT / "static", "folder that keeps audio/ (the tracks) and stems/", metavar="DIR")
    state_dir: Path = _flag(ROOT / ".state", "folder for the queue, uploads, logs and measurements", metavar="DIR")
    cache_dir: Path = _flag(ROOT / ".cache", "folder for converted models; safe to delete", metavar="DIR")
    models_dir: Path = _flag(ROOT / "models", "folder with model folders of your own", metavar="DIR")
    model: str = _flag("", "model that the page starts with; empty picks the best one that is here", metavar="ID")
    device: str = _flag("auto", "where the model runs", choices=DEVICES)
    precision: str = _flag("auto", "arithmetic of the decoder; auto picks by device and memory", choices=PRECISIONS)
    backend: str = _flag("auto", "how the decoder runs; auto picks the fastest that works", choices=BACKENDS)
    threads: int = _flag(0, "threads for the model; 0 picks", metavar="N")
    unload_after_gen: bool = _flag(False, "give the model's memory back after each job")
    keep_alive_min: float = _flag(30.0, "unload a model that was idle for this many minutes; 0 keeps it", metavar="MIN")
    offline: bool = _flag(False, "never touch the network")
    max_queue: int = _flag(32, "jobs that may wait", metavar="N")
    max_upload_mb: int = _flag(512, "largest upload, in MB", metavar="MB")
    log_level: str = _flag("info", "how much the log says", choices=LOG_LEVELS)

    @property
    def audio_dir(self) -> Path:
        return self.data_dir / "audio"

    @property
    def stems_dir(self) -> Path:
        return self.data_dir / "stems"

    @property
    def uploads_dir(self) -> Path:
        return self.state_dir / "uploads"

    @property
    def jobs_dir(self) -> Path:
        return self.state_dir / "jobs"

    @property
    def bind_host(self) -> str:
        return "0.0.0.0" if self.listen else self.host  # noqa: S104 - asked for with --listen, which demands a token


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def env_name(name: str) -> str:
    return ENV_PREFIX + name.upper()


def add_flags(parser: argparse.ArgumentParser, env: Mapping[str, str] | None = None) -> None:
    """Add every Settings flag; a variable of the environment becomes the flag's default."""
    env = os.environ if env is None else env
    for spec in fields(Settings):
        kind = type(spec.default)
        text, choices = spec.metadata["help"], spec.metadata["choices"] or None
        default = _from_env(parser, spec.name, kind, choices, env, spec.default)
        if kind is bool:
            parser.add_argument(flag_name(spec.name), action=argparse.BooleanOptionalAction, default=default, help=text)
        elif choices:
            parser.add_argument(flag_name(spec.name), choices=choices, default=default, help=text)
        else:
            parser.add_argument(
                flag_name(spec.name), type=_path if issubclass(kind, Path) else kind, default=default,
                metavar=spec.metadata["metavar"], help=text,
            )  # fmt: skip


def from_namespace(namespace: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    """Settings from parsed flags; a value that cannot be is a parser error (one line, exit status 2)."""
    values = {spec.name: getattr(namespace, spec.name) for spec in fields(Settings)}
    if not 0 <= values["port"] <= 65535:
        parser.error(f"--port {values['port']}: must be 0 to 65535")
    for name, least in (("threads", 0), ("keep_alive_min", 0), ("max_queue", 1), ("max_upload_mb", 1)):
        if not values[name] >= least:
            parser.error(f"{flag_name(name)} {values[name]}: must be at least {least}")
    return Settings(**values)


def parse(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags alone, for tools and tests."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, env)
    return from_namespace(parser.parse_args(argv), parser)


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _from_env(
    parser: argparse.ArgumentParser, name: str, kind: type[Any], choices: tuple[str, ...] | None,
    env: Mapping[str, str], default: Any,
) -> Any:  # fmt: skip
    text = env.get(env_name(name))
    if text is None or text == "":
        return default
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        parser.error(f"{env_name(name)}={text}: must be 1 or 0")
    if choices and text not in choices:
        parser.error(f"{env_name(name)}={text}: must be one of {', '.join(choices)}")
    try:
        return _path(text) if issubclass(kind, Path) else kind(text)
    except ValueError:
        words = {int: "a whole number", float: "a number"}.get(kind, "a path")
        parser.error(f"{env_name(name)}={text}: must be {words}")
