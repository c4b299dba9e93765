"""What leads the embedded model besides its text: a melody, a beat, a key."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modules.audio import Clip
from modules.contract import InvalidParameter
from modules.musicgen.engine import Codes, Steering
from modules.musicgen.melody import hear
from modules.musicgen.tiny.arrangement import Arrangement, Beat, asked_beat, heard_beat
from modules.musicgen.tiny.steering import BASS, CHORDS, LEAD, Codebook, MelodySteering
from modules.musicgen.tiny.tonality import with_key, with_tempo
from modules.musicgen.tiny.words import understand

LEAST_S = 0.3
"""Of a melody; less is none."""


class Follower:
    """Knows which notes the codes are: makes a generation's steering, and gives a prompt what it leaves open."""

    def __init__(self, codes: Codebook, frame_rate_hz: float) -> None:
        self._codes, self._frame_rate_hz = codes, frame_rate_hz

    @property
    def classes(self) -> npt.NDArray[np.bool_]:
        """The pitch classes each code sounds, bool [K, card, 12]."""
        return self._codes.classes

    def guide(self, prompt: str, context: Codes) -> Arrangement:
        """See ModelFacts.guide."""
        heard = heard_beat(self._codes, context)
        text = self._given(prompt, context, heard)
        said, beginning = understand(text), context.shape[1] == 0
        asked = asked_beat(said)
        beat = asked if beginning else heard
        if heard and asked and not asked.same_tempo(heard):
            beat = asked.after(heard)
        return Arrangement(self._codes, text, said, beat, beginning=beginning)

    def complete(self, prompt: str, context: Codes, steered: Steering | None) -> str:
        """See ModelFacts.complete: the key and the tempo, where the prompt names none."""
        if isinstance(steered, MelodySteering):
            return with_key(prompt, steered.sounding)
        if isinstance(steered, Arrangement):
            return steered.text
        return self._given(prompt, context, heard_beat(self._codes, context))

    def _given(self, prompt: str, context: Codes, beat: Beat | None) -> str:
        """The prompt with a key and a tempo: its own, else those of the context and its beat, else drawn ones."""
        notes = sum(self._codes.classes[layer][context[layer]].sum(0) for layer in (BASS, CHORDS, LEAD))
        keyed = with_key(prompt, np.asarray(notes, np.float32))
        return with_tempo(keyed, beat.bpm if beat else None, beginning=context.shape[1] == 0)

    def follow(self, clip: Clip) -> MelodySteering:
        """See ModelFacts.follow. Raises InvalidParameter: no melody is heard in the clip."""
        melody = hear(clip, self._frame_rate_hz)
        if (melody.notes >= 0).sum() < LEAST_S * self._frame_rate_hz:
            raise InvalidParameter(
                "audio_prompt: no melody is heard in this clip, it is silent, noise or drums alone; choose another",
                field="audio_prompt",
            )
        return MelodySteering(melody, self._codes)
