"""Notes from sound through basic-pitch's real weights, and the MIDI file they become."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import mido
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from modules import midi
from modules.contract import Cancelled, ClipTooLong, ModelMissing, UnreadableAudio
from modules.midi import Note

RATE_HZ = 44_100


def play(score: list[tuple[float, float, int]], seconds: float, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    """Plucked tones with four harmonics, float32 [T], from (start_s, end_s, pitch)."""
    out = np.zeros(int(seconds * rate_hz), dtype=np.float32)
    for start_s, end_s, pitch in score:
        t = np.arange(int((end_s - start_s) * rate_hz)) / rate_hz
        hz = 440 * 2 ** ((pitch - 69) / 12)
        tone = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 5)) * np.exp(-t * 5) * 0.3
        tone *= np.minimum(1, t / 0.005) * np.minimum(1, t[::-1] / 0.02)
        at = int(start_s * rate_hz)
        out[at : at + len(tone)] += tone.astype(np.float32)
    return out


def write(path: Path, samples: npt.NDArray[Any], rate_hz: int = RATE_HZ) -> Path:
    soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    return path


BASS_LINE = [(0.25 + 0.5 * i, 0.25 + 0.5 * i + 0.42, pitch) for i, pitch in enumerate([40, 43, 45, 40, 47, 45, 43, 40])]


def test_a_bass_line_comes_back_note_for_note(tmp_path: Path) -> None:
    stereo = np.repeat(play(BASS_LINE, 4.6)[:, None], 2, axis=1)
    notes = midi.transcribe(write(tmp_path / "bass.wav", stereo))
    assert [note.pitch for note in notes] == [pitch for _, _, pitch in BASS_LINE]
    for note, (start_s, end_s, _) in zip(notes, BASS_LINE, strict=True):
        assert note.start_s == pytest.approx(start_s, abs=0.04)
        assert note.end_s == pytest.approx(end_s, abs=0.15)
        assert 20 < note.velocity <= 127


def test_a_chord_is_all_of_its_notes(tmp_path: Path) -> None:
    notes = midi.transcribe(write(tmp_path / "chord.wav", play([(0.3, 1.8, p) for p in (60, 64, 67)], 2.2)))
    assert [note.pitch for note in notes] == [60, 64, 67]


def test_time_does_not_drift_over_many_windows(tmp_path: Path) -> None:
    score = [(t, t + 0.4, 57) for t in (1.0, 9.0, 17.0, 24.0)]
    notes = midi.transcribe(write(tmp_path / "long.wav", play(score, 25.0, 22_050), 22_050))
    starts = [note.start_s for note in notes if note.pitch == 57]
    assert starts == pytest.approx([start for start, _, _ in score], abs=0.03)


def test_silence_has_no_notes(tmp_path: Path) -> None:
    path = write(tmp_path / "silence.wav", np.zeros(RATE_HZ))
    assert midi.transcribe(path) == []
    assert mido.MidiFile(file=io.BytesIO(midi.to_midi([], "silence"))).length == 0


def test_a_cancel_ends_the_work(tmp_path: Path) -> None:
    def stop() -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        midi.transcribe(write(tmp_path / "bass.wav", play(BASS_LINE, 4.6)), stop)


def test_a_file_that_is_no_audio_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_bytes(b"no sound" * 100)
    with pytest.raises(UnreadableAudio):
        midi.transcribe(tmp_path / "letter.wav")


def test_a_stem_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midi, "MAX_MIDI_S", 2.0)
    with pytest.raises(ClipTooLong):
        midi.transcribe(write(tmp_path / "long.wav", play(BASS_LINE, 4.6)))


def test_without_basic_pitch_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.midi.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelMissing, match="installer"):
        midi.weights_path()


def test_the_package_itself_is_not_imported() -> None:
    assert midi.weights_path().is_file()
    assert "basic_pitch" not in sys.modules
    assert "tensorflow" not in sys.modules


# ------------------------------------------------------------------------------------------- the MIDI file
NOTES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.floats(0, 3000), st.floats(0.001, 60), st.integers(21, 108), st.integers(1, 127),
    ),
    max_size=40,
)  # fmt: skip


@given(notes=NOTES)
def test_every_note_is_in_the_file_at_its_time(notes: list[Note]) -> None:
    track = mido.MidiFile(file=io.BytesIO(midi.to_midi(notes, "bass")))
    now = 0.0
    starts = []
    for message in track:
        now += message.time
        if message.type == "note_on":
            starts.append((now, message.note, message.velocity))
    expected = sorted((note.start_s, note.pitch, note.velocity) for note in notes)
    assert len(starts) == len(expected)
    for got, want in zip(sorted(starts), expected, strict=True):
        assert got[0] == pytest.approx(want[0], abs=0.002)
    assert sorted(got[1:] for got in starts) == sorted(want[1:] for want in expected)


def test_a_title_of_any_kind_is_kept_or_cut_never_an_error() -> None:
    content = midi.to_midi([Note(0, 1, 60, 100)], "Ночь — " * 40)
    assert mido.MidiFile(file=io.BytesIO(content)).tracks[0][0].type == "track_name"


# ------------------------------------------------------------------------------------------- finding notes
def test_a_repeated_note_is_two_notes() -> None:
    sounding = np.zeros((200, 88), dtype=np.float32)
    beginning = np.zeros_like(sounding)
    sounding[20:120, 30] = 0.8
    beginning[20, 30] = beginning[70, 30] = 0.9
    notes = midi.find_notes(sounding, beginning, np.arange(200) / 100)
    assert [(note.start_s, note.end_s, note.pitch) for note in notes] == [(0.2, 0.7, 51), (0.7, 1.2, 51)]


def test_a_short_gap_does_not_cut_a_note_and_a_long_one_does() -> None:
    sounding = np.zeros((200, 88), dtype=np.float32)
    beginning = np.zeros_like(sounding)
    beginning[20, 30] = 0.9
    sounding[20:180, 30] = 0.8
    sounding[60:68, 30] = sounding[100:140, 30] = 0.0
    sounding[68:73, 30] = sounding[140:145, 30] = np.linspace(0.3, 0.7, 5)  # no rise so sudden that it is an onset
    notes = midi.find_notes(sounding, beginning, np.arange(200) / 100)
    assert [(note.start_s, note.end_s) for note in notes] == [(0.2, 1.0), (1.4, 1.8)]


def test_a_weaker_overtone_is_no_note_of_its_own_but_a_strong_one_is() -> None:
    sounding = np.zeros((100, 88), dtype=np.float32)
    beginning = np.zeros_like(sounding)
    sounding[10:80, 20], sounding[15:70, 32], sounding[15:70, 44] = 0.9, 0.5, 0.8
    beginning[10, 20] = beginning[15, 32] = beginning[15, 44] = 0.9
    notes = midi.find_notes(sounding, beginning, np.arange(100) / 100)
    assert [note.pitch for note in notes] == [41, 65]


def test_a_note_without_an_onset_is_still_a_note_but_a_blip_is_none() -> None:
    sounding = np.zeros((100, 88), dtype=np.float32)
    sounding[30:70, 40] = 0.6
    sounding[80:83, 50] = 0.6
    notes = midi.find_notes(sounding, np.zeros_like(sounding), np.arange(100) / 100)
    assert [(note.start_s, note.end_s, note.pitch) for note in notes] == [(0.3, 0.7, 61)]
