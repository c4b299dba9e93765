"""What the words of a prompt settle before the first note: the beat, the key and where it begins, who plays.

The embedded model's codes are notes on a grid of frames, and its corpus keeps rules that a model of its size keeps only
nearly: a beat is a whole number of frames and every note begins on one of its quarters, a piece begins on its home
chord and stays in its scale. What breaks them is taken out of the sampling; what to play inside them is the model's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from modules.musicgen.engine import Codes, Course, Floats
from modules.musicgen.tiny.steering import BASS, CHORDS, DRUMS, LEAD, SILENCE, Codebook
from modules.musicgen.tiny.tonality import MAJOR
from modules.musicgen.tiny.words import INSTRUMENTS, KITS, MODES, NOTE_NAMES, Understanding

FIRM = 32.0
"""Taken from the logits of what is off the beat or in a layer that the prompt leaves out."""
HOME_STRENGTH = 24.0
"""The same of another chord than the home chord, in the first bar."""
SCALE_STRENGTH = 12.0
"""The same of notes outside the key."""
BEGIN_STRENGTH = 20.0
"""The same of silence, in the first frame of what has to begin."""
FIRST_CHORDS, FIRST_LEAD = 7, 17
"""Places in INSTRUMENTS: the basses come first, then what plays chords, then what leads."""
IN_BOTH = ("piano", "acoustic guitar", "distorted guitar")
"""Play chords, and lead too."""
PITCHED = (BASS, CHORDS, LEAD)
BEATS = 4  # in a bar
QUARTER_FRAMES = (17, 50)
"""The shortest and the longest beat that the model knows."""
SWUNG = ("lo-fi hip hop", "jazz")
SLOWEST_SWING = 48  # frames a beat
LEAST_FRAMES = 100
"""Of a context from which a beat is heard."""
ON_THE_BEAT, COVERED = 0.9, 0.8
"""Of the ticks in a context that must fall on a beat's grid, and of its eighths that must have one."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Beat:
    """A steady beat.

    Args:
        quarter: frames.
        swing: the second eighth of each beat comes late.
        offset: frames from a beat to the first new frame.
    """

    quarter: int
    swing: bool = False
    offset: int = 0

    @property
    def bpm(self) -> float:
        """At 50 frames a second."""
        return 3000 / self.quarter

    @property
    def grid(self) -> tuple[int, ...]:
        """The frames of a beat at which notes may begin: its quarters."""
        late = (0, 1 / 12, 1 / 6, 1 / 12) if self.swing else (0, 0, 0, 0)
        return tuple(round(self.quarter * (step / 4 + late[step]) + 1e-6) for step in range(4))

    def same_tempo(self, other: Beat) -> bool:
        """Nearly, half and double time counted as the same."""
        return any(abs(self.quarter * octave / other.quarter - 1) < 0.04 for octave in (0.5, 1, 2))

    def after(self, other: Beat) -> Beat:
        """This beat, setting in where the next beat of the other would fall."""
        return replace(self, offset=(other.offset - other.quarter) % self.quarter if other.offset else 0)

    def phases(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Frames since the last beat, of the new frames from `start` to `stop`."""
        return (np.arange(start, stop) + self.offset) % self.quarter


def asked_beat(said: Understanding) -> Beat | None:
    """The beat of the tempo that a prompt names; one that is out of reach is played in half or double time."""
    if said.tempo_bpm is None:
        return None
    quarter = 3000 / said.tempo_bpm
    while round(quarter) < QUARTER_FRAMES[0]:
        quarter *= 2
    while round(quarter) > QUARTER_FRAMES[1]:
        quarter /= 2
    frames = round(quarter)
    return Beat(frames, frames <= SLOWEST_SWING and any(f"genre:{name}" in said.attributes for name in SWUNG))


def heard_beat(codes: Codebook, context: Codes) -> Beat | None:
    """The beat that the ticks of a context int64 [K, T] keep, as it goes on; None where they keep none."""
    length = context.shape[1]
    if length < LEAST_FRAMES:
        return None
    drums = context[DRUMS]
    ticks = np.flatnonzero(codes.begins[DRUMS, drums] & (drums != SILENCE))
    best: tuple[float, Beat] | None = None
    for quarter in range(QUARTER_FRAMES[0], QUARTER_FRAMES[1] + 1):
        counts = np.bincount(ticks % quarter, minlength=quarter)
        for swing in (False, True) if quarter <= SLOWEST_SWING else (False,):
            grid = Beat(quarter, swing).grid
            on = sum(np.roll(counts, -place) for place in set(grid)) / max(1, len(ticks))
            covered = (counts + np.roll(counts, -grid[2])) / (2 * length / quarter)
            fits = np.where((on >= ON_THE_BEAT) & (covered >= COVERED), on + np.minimum(covered, 1), 0)
            phase = int(fits.argmax())
            # Of beats that fit alike the shortest counts, the others are its multiples.
            if fits[phase] > (best[0] + 0.02 if best else 0):
                best = float(fits[phase]), Beat(quarter, swing, (length - phase) % quarter)
    return best[1] if best else None


@dataclass(frozen=True)
class Key:
    """root: pitch class of the tonic. mode: one of MODES."""

    root: int
    mode: str

    @property
    def scale(self) -> Mask:
        """Which pitch classes are inside: bool [12]."""
        parent = self.root - MODES[self.mode]
        return _classes(parent + step for step in MAJOR)

    @property
    def home(self) -> Mask:
        """The pitch classes of the tonic's chord: bool [12]."""
        return _classes((self.root, self.root + (3 if self.mode in {"minor", "dorian"} else 4), self.root + 7))


def asked_key(said: Understanding) -> Key | None:
    """The key that a prompt names."""
    root, mode = said.first("root"), said.first("mode")
    return Key(NOTE_NAMES.index(root), mode) if root and mode else None


def _classes(pitches: Iterable[int]) -> Mask:
    inside = np.zeros(12, np.bool_)
    inside[[pitch % 12 for pitch in pitches]] = True
    return inside


def layers_of(part: str) -> tuple[int, ...]:
    """The layers that play a part of the words' tables, the usual one first; none for drums."""
    names = {"bass": (BASS,), "chords": (CHORDS,), "melody": (LEAD,), "drums": (), **dict.fromkeys(KITS, ())}
    place = list(INSTRUMENTS).index(part) if part in INSTRUMENTS else -1
    if place < 0:
        return names[part]
    if place >= FIRST_LEAD:
        return (LEAD,)
    return (BASS,) if place < FIRST_CHORDS else (CHORDS, LEAD) if part in IN_BOTH else (CHORDS,)


class Arrangement:
    """What a prompt settles. See engine.Steering.

    Args:
        text: the prompt with its key and tempo, as the model is given it.
        said: what that says.
        beat: None where the model keeps the time by itself.
        beginning: the music goes on from nothing. Who plays and where it begins is not settled again in mid-piece.
    """

    def __init__(self, codes: Codebook, text: str, said: Understanding, beat: Beat | None, *, beginning: bool) -> None:
        books, card = codes.begins.shape
        self.text = text
        self._codes, self._beat, self._key, self._beginning = codes, beat, asked_key(said), beginning
        self._without, self._opener = _left_out(said) if beginning else ((), None)
        self.course = Course(np.zeros((books, card + 1), np.int64), np.zeros((books, card + 1), np.float32))
        self.sounding = np.zeros(12, np.float32)

    def bias(self, start: int, stop: int) -> Floats:
        anywhere, off, eighth = self._frames()
        kinds = np.zeros(stop - start, np.int64)
        if self._beat is not None:
            phases = self._beat.phases(start, stop)
            kinds[~np.isin(phases, self._beat.grid)] = 1
            kinds[np.isin(phases, self._beat.grid[::2])] = 2
        out = np.stack([anywhere, off, eighth])[kinds]
        if self._opener is not None and start <= 0 < stop:
            out[-start, self._opener, SILENCE] = -BEGIN_STRENGTH
        if self._key is not None and self._beginning:
            self._begin_at_home(out, self._key, start)
        return out

    def _frames(self) -> tuple[Floats, Floats, Floats]:
        """What is taken in a frame on the grid, off it and on an eighth: float32 [K, card] each. Notes begin on the
        grid alone, and each eighth has a tick of the drums, be it a silent one."""
        codes = self._codes
        on = np.zeros(codes.begins.shape, np.float32)
        for layer in self._without:
            if layer == DRUMS:
                on[DRUMS] = -FIRM * codes.kits
            else:
                on[layer] = -FIRM
                on[layer, SILENCE] = 0
        if self._key is not None:
            for layer in PITCHED:
                on[layer] -= SCALE_STRENGTH * self._sounds(layer, ~self._key.scale)
        begins = codes.begins.copy()
        begins[PITCHED, SILENCE] = False  # a note may end when it likes
        off = on - FIRM * begins
        begins[DRUMS, SILENCE] = False
        eighth = on.copy()
        eighth[DRUMS] -= FIRM * ~begins[DRUMS]
        return on, off.astype(np.float32), eighth

    def _begin_at_home(self, out: Floats, key: Key, start: int) -> None:
        """The home chord for a bar; in its first beat the bass on the tonic and the lead in the chord."""
        quarter = self._beat.quarter if self._beat else QUARTER_FRAMES[0]
        bar, first = (out[: max(0, beats * quarter - start)] for beats in (BEATS, 1))
        tonic, away = _classes([key.root]), ~key.home
        other = (self._codes.classes[CHORDS] != key.home).any(1) & self._sounds(CHORDS, ~_classes([]))
        bar[:, CHORDS] -= HOME_STRENGTH * other
        bar[:, BASS] -= HOME_STRENGTH * self._sounds(BASS, away)
        first[:, BASS] -= HOME_STRENGTH * self._sounds(BASS, key.home & ~tonic)
        first[:, LEAD] -= HOME_STRENGTH * self._sounds(LEAD, away)

    def _sounds(self, layer: int, classes: Mask) -> Mask:
        """Which codes of a layer sound one of the pitch classes: bool [card]."""
        return np.asarray((self._codes.classes[layer] & classes).any(1))


def _left_out(said: Understanding) -> tuple[tuple[int, ...], int | None]:
    """The layers that a prompt leaves out, and the one that has to begin where no drums do: a piece that is silent for
    a second never begins, because the model knows no such music."""
    groups = {"drums": DRUMS, "bass": BASS, "chords": CHORDS, "melody": LEAD}
    without = {layer for group, layer in groups.items() if group in said.parts("no")}
    # "A guitar solo with drums and bass" has a bass.
    asked = [layers_of(part) for part in (*said.parts("only"), *said.parts("with"))]
    if said.parts("only"):
        without |= {*PITCHED} - {layer for layers in asked for layer in layers}
        without |= {DRUMS} if () not in asked else set()
    openers = [layers[0] for layers in asked if layers and layers[0] not in without]
    return tuple(sorted(without)), openers[0] if openers and DRUMS in without else None
