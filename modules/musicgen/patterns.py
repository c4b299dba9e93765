"""The delay pattern: codebook k of frame t is predicted `delays[k]` steps after codebook 0 of the same frame.

Source: MusicGen (Copet et al. 2023), section 2.2. Step 0 holds special tokens alone; at step s codebook k holds
frame s - 1 - delays[k], or the special token where there is no such frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modules.musicgen.backends.weights import Unsupported
from modules.musicgen.engine import Codes, Floats

UNKNOWN = -1
"""Stands where a token is still to be sampled."""


@dataclass(frozen=True)
class DelayPattern:
    """Where each token of a window of frames stands in the decoder's sequence of steps.

    Args:
        delays: steps each codebook lags, ascending.
        special: the token that stands where there is no frame.
    """

    delays: tuple[int, ...]
    special: int

    @property
    def longest(self) -> int:
        return max(self.delays)

    def steps(self, frames: int) -> int:
        """Positions of the sequence of `frames` frames, the first one of special tokens included."""
        return frames + self.longest + 1

    def first_step(self, context: int) -> int:
        """The first position that holds a token of frame number `context`."""
        return context + 1 + self.delays[0]

    def spread(self, known: Codes, frames: int) -> Codes:
        """Lay out known frames and room for new ones.

        Args:
            known: int64 [takes, K, T], T <= frames.
            frames: of the whole window.
        Returns:
            int64 [takes, K, steps(frames)]: the known tokens, `special` where there is no frame, UNKNOWN elsewhere.
        """
        takes, codebooks, context = known.shape
        sequence = np.full((takes, codebooks, self.steps(frames)), self.special, np.int64)
        for k, delay in enumerate(self.delays):
            sequence[:, k, 1 + delay : 1 + delay + frames] = UNKNOWN
            sequence[:, k, 1 + delay : 1 + delay + context] = known[:, k]
        return sequence

    def steps_of(self, frames: Floats, known: int, length: int) -> Floats:
        """Lay out values of a window's new frames over its steps: [new, K, ...] -> [steps(length), K, ...], else 0.

        Args:
            known: frames before the new ones.
        """
        laid = np.zeros((self.steps(length), *frames.shape[1:]), frames.dtype)
        for k, delay in enumerate(self.delays):
            laid[1 + delay + known : 1 + delay + length, k] = frames[:, k]
        return laid

    def finished(self, done: int) -> int:
        """Frames whose every codebook is known once `done` positions are."""
        return max(0, done - 1 - self.longest)

    def gather(self, sequence: Codes, start: int, stop: int) -> Codes:
        """Frames [start, stop) of a sequence, int64 [takes, K, stop - start]."""
        rows = [sequence[:, k, 1 + delay + start : 1 + delay + stop] for k, delay in enumerate(self.delays)]
        return np.stack(rows, axis=1)


def delay_pattern(provider: Any, special: int) -> DelayPattern:
    """audiocraft's pattern provider as a DelayPattern.

    Raises:
        Unsupported: a pattern of another kind.
    """
    known = vars(provider)
    if "delays" not in known or known.get("flatten_first") or known.get("empty_initial"):
        raise Unsupported(f"its codebooks lie in a pattern of kind {type(provider).__name__}")
    return DelayPattern(tuple(int(delay) for delay in known["delays"]), special)
