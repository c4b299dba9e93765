"""How the embedded model follows a melody: its codes are notes, so the sampling is moved towards those that fit.

The lead takes the melody's notes, chords and bass lean towards what sounds in the clip. The language model goes on
choosing the instrument, the octave, the rhythm of what accompanies, and everything else that the prompt says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modules.musicgen.engine import Codes, Course, Floats
from modules.musicgen.melody import Melody

DRUMS, BASS, CHORDS, LEAD = range(4)
SILENCE = 0
LEAD_STRENGTH = 32.0
"""Taken from the logits of a lead that has another note than the melody, or none."""
REST_STRENGTH = 8.0
"""The same of a lead that plays where the melody rests."""
CHORD_STRENGTH, BASS_STRENGTH = 36.0, 12.0
"""Between a chord or bass note of what sounds in the clip and one of what does not."""
GAIN = 0.5
"""What the best fitting chord or bass note gains by that, about, in parts of the strength."""
EARLY = 2
"""Frames by which a note may begin before the melody's does: the music's own beat decides."""
ENTRY_STRENGTH = 30.0
"""Taken from a code that would go on with a sound that has not begun."""


@dataclass(frozen=True)
class Codebook:
    """What the codes are.

    Args:
        classes: bool [K, card, 12], the pitch classes each code sounds.
        begins: bool [K, card], a sound begins with it, or silence.
        following: int64 [K, card], the code that comes next while the sound lasts.
        kits: bool [card], codes of the first codebook that belong to a drum kit; the others tick in silence.
    """

    classes: npt.NDArray[np.bool_]
    begins: npt.NDArray[np.bool_]
    following: Codes
    kits: npt.NDArray[np.bool_]

    def course(self) -> Course:
        """A pitched sound is entered by its attack: what is taken from the codes after it, a held one gets back."""
        books, card = self.begins.shape
        following = np.zeros((books, card + 1), np.int64)
        following[:, :card] = self.following
        held = np.zeros((books, card + 1), np.float32)
        for layer in (BASS, CHORDS, LEAD):
            goes_on = ~self.begins[layer, self.following[layer]]
            held[layer, :card] = np.where(goes_on, ENTRY_STRENGTH, 0)
        # What the best of them gains would bring in layers that the prompt left out.
        held[CHORDS, SILENCE], held[BASS, SILENCE] = GAIN * CHORD_STRENGTH, GAIN * BASS_STRENGTH
        return Course(following, held)

    def entry(self) -> Floats:
        """What the codes after an attack lose: float32 [K, card]."""
        lost = np.where(self.begins, 0, -ENTRY_STRENGTH).astype(np.float32)
        lost[DRUMS] = 0
        return np.asarray(lost, np.float32)


class MelodySteering:
    """See engine.Steering. A melody shorter than the music goes round, as with audiocraft's melody models."""

    def __init__(self, melody: Melody, codes: Codebook) -> None:
        self._melody, self._codes = melody, codes
        self._entry = codes.entry()
        self.course = codes.course()

    @property
    def sounding(self) -> Floats:
        return np.asarray(self._melody.harmony.sum(0), np.float32)

    def bias(self, start: int, stop: int) -> Floats:
        at = np.arange(start, stop) % len(self._melody.notes)
        out = np.repeat(self._entry[None], len(at), axis=0)
        out[:, LEAD] += self._lead(at)
        for layer, strength in ((CHORDS, CHORD_STRENGTH), (BASS, BASS_STRENGTH)):
            out[:, layer] += strength * self._fit(at, layer)
        return out

    def _lead(self, at: npt.NDArray[np.int64]) -> Floats:
        """Nothing for what fits, the strengths taken from what does not: [n, card]."""
        notes = self._melody.notes
        now, soon = notes[at], notes[(at + EARLY) % len(notes)]
        fits = self._has(now) | self._has(soon)
        rests = (now < 0) | (soon < 0)
        taken = np.where((now < 0) & (soon < 0), REST_STRENGTH, LEAD_STRENGTH)[:, None] * ~fits
        taken[:, SILENCE] = np.where(rests, 0, LEAD_STRENGTH)
        return np.asarray(-taken, np.float32)

    def _has(self, notes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which codes of the lead sound each note's pitch class: bool [n, card]."""
        return np.asarray(self._codes.classes[LEAD].T[notes % 12] & (notes >= 0)[:, None])

    def _fit(self, at: npt.NDArray[np.int64], layer: int) -> Floats:
        """How well each code's notes fit what sounds, about 0 over all notes and 0 for silence: [n, card]."""
        notes = self._codes.classes[layer].astype(np.float32)
        playing = notes.any(1)
        fit = self._melody.harmony[at] @ (notes / np.maximum(notes.sum(1, keepdims=True), 1)).T
        middle = fit[:, playing].mean(1, keepdims=True)
        return np.asarray(np.where(playing, fit - middle, 0), np.float32)
