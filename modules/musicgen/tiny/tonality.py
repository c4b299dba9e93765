"""The key and the tempo of a piece that is asked for without.

The embedded model keeps to what its prompt names and wanders without, from bar to bar and from window to window. So a
prompt that leaves the key or the tempo open is given one: of the music it goes on from or whose melody it follows, else
one of its own, the same for the same words in every seed and length, so that takes and continuations agree.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from modules.musicgen.tiny.words import (
    KITS,
    MODES,
    NOTE_NAMES,
    SPEED_BPM,
    Understanding,
    bpm_in,
    modes_in,
    understand,
)

MAJOR = (0, 2, 4, 5, 7, 9, 11)
HOME = 0.2
"""What the share of the tonic among the notes counts beside the share of notes inside the key."""


def with_key(prompt: str, sounding: npt.NDArray[np.float32]) -> str:
    """The prompt, and before it the key that it leaves open.

    Args:
        sounding: [12], how much each pitch class sounds in what the music goes on from; zeros where nothing does.
    """
    said = understand(prompt)
    if said.first("root") or _drums_alone(said):
        return prompt
    mode = said.first("mode")
    modes = [mode] if mode else modes_in(said.first("genre"), said.first("mood"))
    root, mode = _heard(sounding, modes) if sounding.sum() > 0 else _own(said, modes)
    key = f"{NOTE_NAMES[root]} {mode}"
    return f"{key}, {prompt}" if prompt.strip() else key


def _drums_alone(said: Understanding) -> bool:
    only = said.parts("only")
    return bool(only) and {*only} <= {"drums", *KITS}


def with_tempo(prompt: str, heard_bpm: float | None, *, beginning: bool) -> str:
    """The prompt, and before it the tempo that it leaves open.

    Args:
        heard_bpm: of what the music goes on from; None where none is heard.
        beginning: the music goes on from nothing, so that it needs a tempo of its own.
    """
    said = understand(prompt)
    if said.tempo_bpm is not None or (heard_bpm is None and not beginning):
        return prompt
    bpm = heard_bpm if heard_bpm is not None else _own_bpm(said)
    return f"{bpm:.0f} bpm, {prompt}" if prompt.strip() else f"{bpm:.0f} bpm"


def _own_bpm(said: Understanding) -> float:
    low, high = bpm_in(said.first("genre"), said.first("mood"))
    if speed := said.first("speed"):
        # The part of the genre's tempi that is as fast as asked, else any that is.
        slowest, fastest = SPEED_BPM[speed]
        both = max(low, slowest), min(high, fastest)
        low, high = both if both[0] <= both[1] else (slowest, fastest)
    return low + _drawn(said) / 2**32 * (high - low)


def _drawn(said: Understanding) -> int:
    """32 bits drawn by what the prompt says, in whatever language."""
    words = "/".join((*said.attributes, f"{said.tempo_bpm:g}" if said.tempo_bpm else ""))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big")


def _own(said: Understanding, modes: list[str]) -> tuple[int, str]:
    drawn = _drawn(said)
    return drawn % 12, modes[drawn // 12 % len(modes)]


def _heard(sounding: npt.NDArray[np.float32], modes: list[str]) -> tuple[int, str]:
    """The root and mode that hold most of what sounds, the likelier tonic where several do."""
    share = sounding / sounding.sum()

    def fit(root: int, mode: str) -> float:
        scale = (root - MODES[mode]) % 12
        return float(sum(share[(scale + step) % 12] for step in MAJOR) + HOME * share[root])

    return max(((root, mode) for root in range(12) for mode in modes), key=lambda key: fit(*key))
