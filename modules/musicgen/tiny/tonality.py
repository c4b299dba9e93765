"""The key of a piece that is asked for without one.

The embedded model keeps to a key that its prompt names and wanders without one, from bar to bar and from window to
window. So a prompt that leaves the key open is given one: of the music it goes on from or whose melody it follows, else
one of its own, the same for the same words in every seed and length, so that takes and continuations agree.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from modules.musicgen.tiny.words import KITS, MODES, NOTE_NAMES, Understanding, modes_in, understand

MAJOR = (0, 2, 4, 5, 7, 9, 11)
HOME = 0.2
"""What the share of the tonic among the notes counts beside the share of notes inside the key."""


def with_key(prompt: str, sounding: npt.NDArray[np.float32]) -> str:
    """The prompt, and before it the key that it leaves open.

    Args:
        sounding: [12], how much each pitch class sounds in what the music goes on from; zeros where nothing does.
    """
    said = understand(prompt)
    if _named(said, "root") or _drums_alone(said):
        return prompt
    mode = _named(said, "mode")
    modes = [mode] if mode else modes_in(_named(said, "genre"), _named(said, "mood"))
    root, mode = _heard(sounding, modes) if sounding.sum() > 0 else _own(said, modes)
    key = f"{NOTE_NAMES[root]} {mode}"
    return f"{key}, {prompt}" if prompt.strip() else key


def _named(said: Understanding, what: str) -> str:
    """The first of such attributes, "" where the prompt has none."""
    return next((name.partition(":")[2] for name in said.attributes if name.startswith(f"{what}:")), "")


def _drums_alone(said: Understanding) -> bool:
    only = said.parts("only")
    return bool(only) and {*only} <= {"drums", *KITS}


def _own(said: Understanding, modes: list[str]) -> tuple[int, str]:
    """A root and a mode drawn by what the prompt says, in whatever language."""
    words = "/".join((*said.attributes, f"{said.tempo_bpm:g}" if said.tempo_bpm else ""))
    drawn = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big")
    return drawn % 12, modes[drawn // 12 % len(modes)]


def _heard(sounding: npt.NDArray[np.float32], modes: list[str]) -> tuple[int, str]:
    """The root and mode that hold most of what sounds, the likelier tonic where several do."""
    share = sounding / sounding.sum()

    def fit(root: int, mode: str) -> float:
        scale = (root - MODES[mode]) % 12
        return float(sum(share[(scale + step) % 12] for step in MAJOR) + HOME * share[root])

    return max(((root, mode) for root in range(12) for mode in modes), key=lambda key: fit(*key))
