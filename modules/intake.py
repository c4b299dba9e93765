"""Strangers' files are decoded in a child process; the server itself only ever decodes what that child wrote.

Decoders written in C meet hostile bytes here, and some of those crash them. A crash, a runaway or a memory bomb
takes the child along and becomes one clear error. What comes out is a FLAC of our own writing.

The child reads requests from its standard input, one JSON object a line, and answers each with one line.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from modules import audio, contract
from modules.contract import ClipTooLong, DiskFull, UnreadableAudio

CHILD_MEMORY_BYTES: Final = 2 * 2**30
"""Address space of the child, where the system can limit it."""
TIMEOUT_S: Final = 300.0
"""Three hours of sound take about a third of this on a slow machine."""
log = logging.getLogger(__name__)
_ROOT: Final = Path(__file__).resolve().parent.parent
_ANSWERS: Final[dict[str, type[contract.StudioError]]] = {
    error.code: error for error in (UnreadableAudio, ClipTooLong, DiskFull)
}


def admit(
    upload: Path, clean: Path, *, max_s: float = contract.MAX_CLIP_S, timeout_s: float = TIMEOUT_S
) -> audio.Probe:
    """Turn an untrusted file into a FLAC that is safe to decode here.

    Args:
        upload: any bytes at all.
        clean: where the FLAC goes; not there after an error.
        max_s: refuse more than this many seconds.
    Returns:
        what the clean file holds.
    Raises:
        UnreadableAudio, ClipTooLong: as `audio.probe`; also when the file crashes the decoder or takes too long.
        DiskFull: there is no room for the clean file.
    """
    request = {"upload": str(upload.resolve()), "clean": str(clean.resolve()), "max_s": max_s}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module; the paths travel by stdin
            child_command(), input=json.dumps(request).encode() + b"\n", stdout=subprocess.PIPE,
            # Decoders complain there, as much and in whatever bytes the file makes them.
            stderr=subprocess.DEVNULL, timeout=timeout_s, check=False, cwd=_ROOT, env=child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        clean.unlink(missing_ok=True)
        raise UnreadableAudio(f"the file takes longer than {timeout_s:.0f} s to decode", field="file") from None
    answer = _read_answer(done)
    if "held" in answer:
        return audio.Probe(**answer["held"])
    clean.unlink(missing_ok=True)
    raise _ANSWERS.get(answer["code"], UnreadableAudio)(answer["message"], field="file")


def _read_answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        log.warning("an upload ended its decoder with status %d", done.returncode)
        words = "the file is damaged in a way that crashes its decoder"
        return {"code": UnreadableAudio.code, "message": words}
    return answer


def child_command() -> list[str]:
    return [sys.executable, "-m", "modules.intake"]


def child_environment() -> dict[str, str]:
    """One thread: numpy's pools would reserve address space and start slowly."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


# -------------------------------------------------------------------------------------------- in the child
def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        held = audio.probe(Path(request["upload"]), max_s=request["max_s"])
        return {"held": asdict(audio.rewrite(Path(request["upload"]), Path(request["clean"]), held))}
    except contract.StudioError as error:
        return {"code": error.code, "message": error.message}
    except MemoryError:
        return {"code": UnreadableAudio.code, "message": "the file needs more memory to decode than is allowed"}
    except OSError as error:
        if contract.is_disk_full(error):
            return {"code": DiskFull.code, "message": "the disk is full: the upload was not kept"}
        raise


def _limit_child() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The server stops a child that takes too long; this one is for a child whose server is gone.
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIMEOUT_S), int(TIMEOUT_S)))


if __name__ == "__main__":
    _limit_child()
    _serve(sys.stdin, sys.stdout)
