"""Stems as jobs of the real studio, with the real demucs code; their notes; and mixes that become tracks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from modules import audio, stems
from modules.audio import Clip
from modules.contract import (
    ClipTooLong,
    Conflict,
    InvalidParameter,
    Job,
    Mix,
    NotFound,
    StemMix,
    Track,
    TrackQuery,
    UnreadableAudio,
)  # fmt: skip
from modules.library import NOTES_SUFFIX, Library
from modules.settings import ROOT, Settings
from tests import separators
from tests.library_parts import WHEN, draft
from tests.live_server import Live, running
from tests.split_worker import settings_in, studio_in
from tests.test_midi import BASS_LINE, play
from tests.test_stems import band, decibels
from tests.test_web import BOUNDARY, END, form, part

SOON_S = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    separators.make_folder(root)
    return root


def add_song(library: Library, seconds: float, samples: Any = None) -> Track:
    clip = Clip(band(seconds) if samples is None else samples, separators.RATE_HZ)
    facts = {"sample_rate_hz": clip.sample_rate_hz, "channels": clip.channels, "duration_s": clip.seconds}
    name = library.reserve_name("", "small", 7, WHEN)
    return library.save(draft(name, **facts), lambda path: audio.encode(clip, path, "wav"))


class Place:
    """A studio on a folder of its own with one song in it."""

    def __init__(self, folder: Path, models: Path, seconds: float = 2.1) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "models").symlink_to(models)
        self.studio = studio_in(folder)
        self.song = add_song(self.studio.library, seconds)
        self.snapshots: list[Job] = []
        self.clients = 0
        self.studio.subscribe(self.snapshots.append, lambda _change: None)
        self.studio.start()

    @property
    def settings(self) -> Settings:
        return self.studio.settings

    def split(self, **changes: Any) -> Job:
        self.clients += 1
        body = {"kind": "split", "client_id": f"c{self.clients}", "track": self.song.name, **changes}
        return self.studio.submit(body)

    def ended(self, job: Job) -> Job:
        return self.studio.jobs_queue.wait(job.id, SOON_S)

    def leftovers(self) -> list[str]:
        known = {self.song.name}
        return sorted(path.name for path in self.settings.stems_dir.iterdir() if path.name not in known)


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Iterator[Place]:
    made = Place(tmp_path / "place", models)
    yield made
    made.studio.stop()


# ------------------------------------------------------------------------------------------------- splitting
def test_a_split_puts_stems_beside_the_track_and_into_its_json_and_deleting_takes_them(place: Place) -> None:
    job = place.ended(place.split())
    assert job.status == "done", job.error
    track = place.studio.track(place.song.name)
    assert track.stems == {stem: f"{stem}.wav" for stem in separators.SOURCES}
    assert track.stems_info["bass"]["separator"] == "test-stems"
    kept = json.loads((place.settings.audio_dir / f"{track.name}.json").read_text())
    assert kept["stems"] == track.stems
    frames = audio.probe(place.studio.audio_file(track.name)).frames
    for stem in separators.SOURCES:
        about = soundfile.info(place.studio.stem_file(track.name, stem))
        assert (about.frames, about.samplerate, about.channels) == (frames, separators.RATE_HZ, 2)
    done = [snapshot.done for snapshot in place.snapshots if snapshot.phase == "splitting" and snapshot.total]
    assert done == sorted(done)
    assert done[-1] == 5
    place.studio.delete(track.name)
    assert list(place.settings.stems_dir.iterdir()) == []


def test_stems_that_exist_cost_nothing_and_others_are_added(place: Place) -> None:
    place.ended(place.split(stems="vocals"))
    path = place.studio.stem_file(place.song.name, "vocals")
    before = path.stat().st_mtime_ns
    again = place.ended(place.split(stems="vocals"))
    assert again.status == "done"
    assert not [s for s in place.snapshots if s.id == again.id and s.phase == "splitting"]
    place.ended(place.split())
    track = place.studio.track(place.song.name)
    assert sorted(track.stems) == sorted(separators.SOURCES)
    assert sorted(track.stems_info) == sorted(separators.SOURCES)
    assert path.stat().st_mtime_ns == before


def test_a_cancelled_split_leaves_nothing_and_the_queue_goes_on(tmp_path: Path, models: Path) -> None:
    place = Place(tmp_path / "place", models, seconds=20)
    first, second = place.split(), place.split(stems="bass", track=add_song(place.studio.library, 1.0).name)
    while not [s for s in place.snapshots if s.id == first.id and s.phase == "splitting" and s.done > 0.1]:
        assert place.studio.job(first.id).status in ("queued", "running")
        time.sleep(0.02)
    place.studio.cancel(first.id)
    assert place.ended(first).status == "cancelled"
    assert place.ended(second).status == "done"
    assert place.studio.track(place.song.name).stems == {}
    assert [name for name in place.leftovers() if name.startswith(".split")] == []
    place.studio.stop()


def test_a_track_cannot_be_deleted_while_it_is_split_and_says_why(tmp_path: Path, models: Path) -> None:
    place = Place(tmp_path / "place", models, seconds=5)
    job = place.split()
    with pytest.raises(Conflict, match="job"):
        place.studio.delete(place.song.name)
    assert place.ended(job).status == "done"
    place.studio.delete(place.song.name)
    place.studio.stop()


def test_a_file_that_disappears_while_it_is_split_is_one_clear_error(place: Place) -> None:
    place.studio.jobs_queue.stop(1)
    place.studio.audio_file(place.song.name).unlink()
    place.studio.stop()
    studio = studio_in(place.settings.data_dir.parent)
    # The library that is opened now no longer counts what has no sound.
    with pytest.raises(NotFound):
        studio.submit({"kind": "split", "client_id": "late", "track": place.song.name})
    studio.stop()


def test_the_music_model_makes_room_when_both_do_not_fit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.studio.manager.ensure("fake", lambda *_: None)
    real = stems._Network._separate
    tries: list[int] = []

    def tight(self: stems._Network, *args: Any) -> Any:
        tries.append(1)
        if place.studio.manager.status()["model"] is not None:
            raise MemoryError
        return real(self, *args)

    monkeypatch.setattr(stems._Network, "_separate", tight)
    job = place.ended(place.split(stems="bass"))
    assert job.status == "done", job.error
    assert place.studio.manager.status()["model"] is None
    assert len(tries) == 6


def test_memory_that_runs_out_even_so_is_one_clear_error_and_the_next_job_works(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stems._Network._separate

    def tight(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(stems._Network, "_separate", tight)
    job = place.ended(place.split())
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "out_of_memory")
    assert place.leftovers() == []
    monkeypatch.setattr(stems._Network, "_separate", real)
    assert place.ended(place.split(stems="bass")).status == "done"


def test_a_card_that_disappears_is_said_and_the_cpu_takes_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    separator = place.studio.separator
    assert isinstance(separator, stems.Separator)

    def gone(*_: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(stems._Network, "_separate", gone)
        patch.setattr(stems, "device_answers", lambda _: False)
        job = place.ended(place.split())
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "device_lost")
    assert place.leftovers() == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # that is what torch goes on saying
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    assert separator._device() == "cpu"
    assert place.ended(place.split(stems="bass")).status == "done"


@pytest.mark.slow
def test_after_kill_9_in_the_middle_of_a_split_nothing_is_left_and_the_next_job_goes_on(
    tmp_path: Path, models: Path
) -> None:
    (tmp_path / "models").symlink_to(models)
    with Library(settings_in(tmp_path).audio_dir, settings_in(tmp_path).stems_dir) as library:
        song = add_song(library, 10)
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.split_worker", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        for line in worker.stdout:
            _, phase, done = line.split()
            if phase == "splitting" and float(done) > 1.5:
                break
    finally:
        worker.kill()
        worker.wait()
    stems_dir = settings_in(tmp_path).stems_dir
    assert list(stems_dir.glob(".split-*/*.part.wav"))  # it was cut off in the middle of writing
    studio = studio_in(tmp_path)
    assert list(stems_dir.iterdir()) == []
    studio.start()
    found = {job.client_id: job for job in studio.jobs()}
    assert found["first"].status == "interrupted"
    assert studio.jobs_queue.wait(found["second"].id, SOON_S).status == "done"
    assert list(studio.track(song.name).stems) == ["bass"]
    studio.stop()


# ------------------------------------------------------------------------------------------------- notes
def add_bass(place: Place, folder: Path) -> None:
    samples = np.repeat(play(BASS_LINE, 4.6)[None], 2, axis=0)
    path = folder / "bass.wav"
    path.write_bytes(stems.float_wav_header(44_100, 2, samples.shape[1]) + samples.T.astype("<f4").tobytes())
    place.studio.library.add_stems(place.song.name, {"bass": path}, {})


def test_notes_are_found_once_and_kept_beside_the_stem(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_bass(place, tmp_path)
    with pytest.raises(NotFound, match="POST"):
        place.studio.midi(place.song.name, "bass")
    found = place.studio.notes(place.song.name, "bass")
    assert [note[2] for note in found.notes] == [pitch for _, _, pitch in BASS_LINE]
    monkeypatch.setattr("modules.mixing.midi.transcribe", lambda *_: pytest.fail("asked for twice"))
    assert place.studio.notes(place.song.name, "bass") == found
    assert place.studio.midi(place.song.name, "bass").startswith(b"MThd")


def test_a_new_stem_forgets_the_old_ones_notes_and_a_damaged_cache_is_found_again(place: Place, tmp_path: Path) -> None:
    add_bass(place, tmp_path)
    first = place.studio.notes(place.song.name, "bass")
    cache = place.settings.stems_dir / place.song.name / f"bass{NOTES_SUFFIX}"
    cache.write_text("{")
    assert place.studio.notes(place.song.name, "bass") == first
    add_bass(place, tmp_path)
    with pytest.raises(NotFound, match="POST"):
        place.studio.midi(place.song.name, "bass")


def test_notes_of_a_stem_that_is_not_there_or_too_long_are_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        place.studio.notes(place.song.name, "bass")
    add_bass(place, tmp_path)
    monkeypatch.setattr("modules.midi.MAX_MIDI_S", 2.0)
    with pytest.raises(ClipTooLong):
        place.studio.notes(place.song.name, "bass")
    assert not (place.settings.stems_dir / place.song.name / f"bass{NOTES_SUFFIX}").exists()


# ------------------------------------------------------------------------------------------------- mixes
def wav(samples: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples.T, 44_100, subtype="PCM_24", format="WAV")
    return out.getvalue()


def mix(**changes: Any) -> Mix:
    return Mix(stems={"bass": StemMix(**changes)})


def test_a_mix_is_a_track_that_knows_its_parent_and_its_settings(place: Place, tmp_path: Path) -> None:
    add_bass(place, tmp_path)
    samples = band(1.5) * 0.5
    made = place.studio.mixdown(place.song.name, io.BytesIO(wav(samples)), mix(gain_db=-3.5, pan=0.25, solo=True))
    assert made.parent == place.song.name
    assert made.post == ["mixdown"]
    assert made.used["mix"]["stems"] == {"bass": {"gain_db": -3.5, "pan": 0.25, "mute": False, "solo": True}}
    assert made.name.startswith("small-mix_")
    clip = audio.decode(place.studio.audio_file(made.name))
    assert decibels(clip.samples - samples, samples) < -100
    assert place.studio.track(made.name) == made
    assert made.loudness.integrated_lufs is not None


def test_a_mix_of_what_is_not_there_or_no_sound_is_refused_and_leaves_no_track(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="no stem 'bass'"):
        place.studio.mixdown(place.song.name, io.BytesIO(wav(band(1.0))), mix())
    with pytest.raises(NotFound):
        place.studio.mixdown("nothing", io.BytesIO(wav(band(1.0))), mix())
    add_bass(place, tmp_path)
    with pytest.raises(UnreadableAudio):
        place.studio.mixdown(place.song.name, io.BytesIO(b"no sound at all" * 100), mix())
    assert place.studio.tracks(TrackQuery())[2] == 1


# ------------------------------------------------------------------------------------------------- over HTTP
@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    settings = Settings(data_dir=tmp_path / "data", state_dir=tmp_path / "state", max_upload_mb=1)
    with running(settings) as server:
        server.studio.add_track("song", stems=("drums", "bass"))
        yield server


def field(name: str, text: str) -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()


MIX = {"stems": {"bass": {"gain_db": -6, "pan": 0, "mute": False, "solo": False}}}


def test_a_mix_is_sent_as_a_form_with_its_settings_first(live: Live) -> None:
    body = field("mix", json.dumps(MIX)) + part(b"sound" * 1000) + END
    answer = live.ask("POST", "/api/tracks/song/mixdown", **form(body))  # type: ignore[arg-type]
    assert answer.status == 201
    assert answer.json["track"]["name"].startswith("song_mix")
    assert live.studio.mixes[0].stems["bass"].gain_db == -6


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (None, "mix"),
        ("{", "body"),
        ('{"stems": {}}', "stems"),
        ('{"stems": {"flute": {}}}', "stems"),
        ('{"stems": {"bass": {"gain_db": 40}}}', "stems.bass.gain_db"),
        ('{"stems": {"bass": {"pan": NaN}}}', "body"),
        ('{"stems": {"bass": {"colour": 1}}}', "stems.bass.colour"),
    ],
)
def test_a_mix_that_makes_no_sense_is_named_and_nothing_is_kept(live: Live, settings: str | None, named: str) -> None:
    body = (field("mix", settings) if settings is not None else b"") + part(b"sound" * 1000) + END
    answer = live.ask("POST", "/api/tracks/song/mixdown", **form(body))  # type: ignore[arg-type]
    assert answer.status == 400
    assert answer.json["error"]["field"] == named
    assert live.studio.mixes == []


def test_notes_are_made_by_post_alone_and_read_by_get(live: Live) -> None:
    assert live.ask("GET", "/api/tracks/song/stems/bass/midi").status == 404
    found = live.ask("POST", "/api/tracks/song/stems/bass/midi")
    assert found.json["notes"] == {"seconds": 0.5, "notes": [[0.0, 0.4, 60, 90]]}
    answer = live.ask("GET", "/api/tracks/song/stems/bass/midi")
    assert answer.headers["Content-Type"] == "audio/midi"
    assert "filename=song_bass.mid" in str(answer.headers["Content-Disposition"])
    assert live.ask("POST", "/api/tracks/song/stems/flute/midi").status == 404


def test_separators_are_listed(live: Live) -> None:
    assert [one["id"] for one in live.ask("GET", "/api/separators").json["separators"]] == ["fake"]
