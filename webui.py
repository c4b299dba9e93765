"""The program: flags to Settings, then the server; or, with --prompt, one track without a server."""

from __future__ import annotations

import argparse
import io
import logging
import logging.handlers
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

try:
    from modules.contract import AUTO_SEED, Internal, Job, Parameter, StudioError, Track, parameters
    from modules.settings import VERSION, Settings, add_flags, flag_name, from_namespace
    from modules.studio import Studio
except ImportError as error:
    # Another Python than the environment's, or an environment that lost a package.
    sys.exit(f"webui.py: {error}; start the program with ./run.sh (run.bat), which installs what is missing")

log = logging.getLogger("webui")

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
WARM_AFTER_S = 1.0
"""Importing the model stack holds Python's lock for long stretches; the first page goes before it."""
FOR_THE_FILE = {"for_the_file": True}
"""Marks what the log file has in full and the screen in one line."""
FORMATS = {".wav": "wav", ".flac": "flac", ".mp3": "mp3"}


class OneLineParser(argparse.ArgumentParser):
    """A mistake on the command line is one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (--help lists the flags)\n")


def build_parser() -> argparse.ArgumentParser:
    """Every flag: the settings', and for --prompt every parameter of a generation."""
    parser = OneLineParser(prog="webui.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=VERSION)
    add_flags(parser)
    group = parser.add_argument_group("one track without a server")
    group.add_argument("--prompt", metavar="TEXT", help="make one track of this text, print its path last, and exit")
    for parameter in headless_parameters():
        group.add_argument(flag_name(parameter.name), dest=f"p_{parameter.name}", **_flag_of(parameter))
    group.add_argument("--audio-prompt", type=Path, metavar="FILE", help="clip whose melody the music follows")
    clip = group.add_mutually_exclusive_group()
    clip.add_argument("--continue", dest="continue_file", type=Path, metavar="FILE", help="clip the model goes on from")
    clip.add_argument("--append", dest="append_file", type=Path, metavar="FILE", help="clip put before the new music")
    group.add_argument("--from", dest="from_s", type=float, metavar="SECONDS", help="where that clip is cut")
    group.add_argument("--out", type=Path, metavar="FILE", help="also put the track and its JSON here")
    return parser


def headless_parameters() -> list[Parameter]:
    """The parameters that are flags of their own; --model is the settings' flag already."""
    return [parameter for parameter in parameters() if parameter.name != "model"]


def _flag_of(parameter: Parameter) -> dict[str, Any]:
    words = f"default {parameter.default}" if parameter.default != "" else "default: none"
    if parameter.type == "boolean":
        return {"action": "store_const", "const": True, "help": "default: off"}
    if parameter.choices:
        return {"choices": parameter.choices, "help": words}
    if parameter.type == "string":
        return {"metavar": "TEXT", "help": words}
    kind = int if parameter.type == "integer" else float
    bounds = ""
    if parameter.minimum is not None and parameter.maximum is not None:
        bounds = f"{kind(parameter.minimum)} to {kind(parameter.maximum)}, "
    if parameter.name == "seed":
        words = f"default {AUTO_SEED}: a new one each time"
    return {"type": kind, "metavar": "N" if kind is int else "X", "help": bounds + words}


# ------------------------------------------------------------------------------------------------ headless
def run_headless(arguments: argparse.Namespace, settings: Settings) -> list[Path]:
    """Make the tracks of one request; returns where they are.

    Raises:
        StudioError: with one line that says what is wrong.
    """
    body = _body(arguments, settings)
    # A journal of its own: jobs that a server left waiting are the server's.
    with tempfile.TemporaryDirectory(prefix="audiocraft-webui-") as journal:
        studio = Studio(settings, jobs_dir=Path(journal))
        try:
            _add_clips(body, arguments, studio)
            meter = Meter(drawn=sys.stderr.isatty())
            try:
                tracks = studio.run_once(body, meter)
            finally:
                meter.clear()
            paths = [studio.audio_file(track.name) for track in tracks]
            return paths if arguments.out is None else _put_out(tracks, paths, arguments.out)
        finally:
            studio.stop()


def _body(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    body = {"kind": "generate", "client_id": secrets.token_hex(12), "prompt": arguments.prompt}
    if settings.model:
        body["model"] = settings.model
    for parameter in headless_parameters():
        value = getattr(arguments, f"p_{parameter.name}")
        if value is not None:
            body[parameter.name] = value
    if arguments.out is not None and "format" not in body:
        body["format"] = FORMATS[arguments.out.suffix.lower()]
    return body


def _add_clips(body: dict[str, Any], arguments: argparse.Namespace, studio: Studio) -> None:
    """Upload the clips that are named on the command line."""
    if arguments.audio_prompt is not None:
        body["audio_prompt"] = {"upload": _upload(studio, arguments.audio_prompt)}
    clip = arguments.continue_file or arguments.append_file
    if clip is not None:
        mode = "continue" if arguments.continue_file else "append"
        body["continuation"] = {"upload": _upload(studio, clip), "mode": mode, "from": arguments.from_s}


def _upload(studio: Studio, path: Path) -> str:
    with path.open("rb") as file:
        try:
            return studio.upload(file, path.name).id
        except StudioError as error:
            error.message = f"{path}: {error.message}"
            raise


def _put_out(tracks: Sequence[Track], paths: Sequence[Path], out: Path) -> list[Path]:
    """Copy each track and its JSON to where the person wants them; takes after the first get _2, _3 ..."""
    placed = []
    for number, (track, path) in enumerate(zip(tracks, paths, strict=True), start=1):
        target = out if number == 1 else out.with_name(f"{out.stem}_{number}{out.suffix}")
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(path, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        beside = target.with_suffix(".json")
        if not beside.exists() or _is_a_track(beside):
            beside.write_text(track.model_dump_json(indent=2) + "\n", encoding="utf-8")
        placed.append(target)
    return placed


def _is_a_track(path: Path) -> bool:
    """A JSON that this program wrote may be replaced; another one is the person's own."""
    try:
        Track.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


class Meter:
    """What a job says on stderr: which words were not read, and on a terminal one line of progress."""

    def __init__(self, *, drawn: bool) -> None:
        self._drawn = drawn
        self._shown = ""
        self._unknown: list[str] = []

    def __call__(self, job: Job) -> None:
        if job.unknown_words != self._unknown:
            self._unknown = job.unknown_words
            self.clear()
            sys.stderr.write(f"the model does not know: {', '.join(self._unknown)}\n")
        share = f" {min(job.done / job.total, 1.0):4.0%}" if job.total else ""
        left = f", {job.eta_s:.0f} s left" if job.eta_s is not None else ""
        self._show(f"{job.phase}{share}{left}")

    def clear(self) -> None:
        """Leave the line empty."""
        if self._drawn:
            self._show("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _show(self, words: str) -> None:
        if not self._drawn:
            return
        sys.stderr.write("\r" + words.ljust(len(self._shown)))
        sys.stderr.flush()
        self._shown = words


def check_headless(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What can be known to be wrong before anything is loaded is a parser error."""
    named = [p.name for p in headless_parameters() if getattr(arguments, f"p_{p.name}") is not None]
    files = {
        "--audio-prompt": arguments.audio_prompt, "--continue": arguments.continue_file,
        "--append": arguments.append_file,
    }  # fmt: skip
    given = [flag_name(name) for name in named] + [flag for flag, path in files.items() if path is not None]
    given += ["--out"] if arguments.out is not None else []
    if arguments.prompt is None:
        if given:
            parser.error(f"{given[0]} needs --prompt; in the page it is a setting")
        return
    for flag, path in files.items():
        if path is not None and not path.is_file():
            parser.error(f"{flag} {path}: there is no such file")
    if arguments.from_s is not None and arguments.continue_file is None and arguments.append_file is None:
        parser.error("--from needs --continue or --append")
    if arguments.out is not None:
        _check_out(arguments, parser)


def _check_out(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    out: Path = arguments.out
    found = FORMATS.get(out.suffix.lower())
    if found is None:
        parser.error(f"--out {out}: the name must end in {', '.join(FORMATS)}")
    if arguments.p_format not in (None, found):
        parser.error(f"--out {out}: the name says {found}, --format says {arguments.p_format}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        parser.error(f"--out {out}: there is no such folder, or it is one")


# -------------------------------------------------------------------------------------------------- server
def run_server(settings: Settings) -> None:
    """Serve until interrupted; the model stack loads behind the page.

    Raises:
        StudioError: the port or the data folder is in use.
    """
    from modules.web.app import create_app, serve

    studio = Studio(settings)
    warming = threading.Timer(WARM_AFTER_S, studio.start)
    warming.daemon = True
    try:
        app = create_app(studio, settings)
        warming.start()
        serve(app, settings)
    finally:
        warming.cancel()
        studio.stop()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def set_up_logging(settings: Settings, *, headless: bool) -> None:
    """Everything to a file in the state folder; to stderr what the person asked for.

    Headless, stderr is for the progress and the one line of an error.
    """
    folder = settings.state_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.handlers.RotatingFileHandler(
        folder / "studio.log", maxBytes=2_000_000, backupCount=2, encoding="utf-8", delay=True
    )
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    to_screen.addFilter(lambda record: not getattr(record, "for_the_file", False))
    level = getattr(logging, settings.log_level.upper())
    to_screen.setLevel(logging.CRITICAL if headless and level > logging.DEBUG else level)
    logging.basicConfig(level=min(level, logging.INFO), handlers=[to_file, to_screen], force=True)
    logging.captureWarnings(capture=True)
    # One line a request would drown the rest.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    settings = from_namespace(arguments, parser)
    check_headless(arguments, parser)
    signal.signal(signal.SIGTERM, _interrupt)
    headless = arguments.prompt is not None
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe on Windows has the system's old alphabet; a name outside it must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        set_up_logging(settings, headless=headless)
        sys.excepthook = _surprise
        if not headless:
            run_server(settings)
            return 0
        paths = run_headless(arguments, replace(settings, keep_alive_min=0))
        sys.stdout.write("".join(f"{path}\n" for path in paths))
    except StudioError as error:
        status = _failed(error.message, settings if isinstance(error, Internal) else None)
        # An address that cannot be had is a mistake on the command line, as an unknown flag is.
        return EXIT_USAGE if error.field in ("host", "port") else status
    except ImportError as error:
        log.exception("the program ends", extra=FOR_THE_FILE)
        return _failed(f"{error}; start the program with ./run.sh (run.bat), which installs what is missing", None)
    except OSError as error:
        log.exception("the program ends", extra=FOR_THE_FILE)
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", None)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def _surprise(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A defect of ours: the stack goes to the log, one line to the person."""
    log.critical("the program ends", exc_info=(kind, error, trace), extra=FOR_THE_FILE)
    sys.stderr.write(f"webui.py: something went wrong inside the program: {kind.__name__}; the log says what\n")


def _failed(message: str, settings: Settings | None) -> int:
    words = " ".join(message.split())
    where = f" ({settings.state_dir / 'log' / 'studio.log'})" if settings else ""
    sys.stderr.write(f"webui.py: {words}{where}\n")
    return EXIT_FAILED


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # A thread may be deep in the model stack's native code, where Python's own clean-up would abort or hang. All
    # that must last is on the disk by now.
    os._exit(status)
