"""The use cases, with the real library, queue, audio and uploads; only the model and the separator are stand-ins."""

from __future__ import annotations

import io
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from modules import audio
from modules.audio import Clip
from modules.contract import (
    LOOP_SPARE_S,
    MAX_SEED,
    ClipTooShort,
    Conflict,
    DiffusionInfo,
    DiskFull,
    GenerateRequest,
    InvalidParameter,
    InvalidRequest,
    Job,
    LibraryChange,
    ModelBroken,
    ModelMissing,
    NotFound,
    OutOfMemory,
    QueueFull,
    StudioError,
    Track,
    TrackPatch,
    TrackQuery,
    UnknownModel,
    UnreadableAudio,
)
from modules.generation import draw_seeds
from modules.library import Library
from modules.material import MELODY_S
from modules.settings import Settings
from modules.studio import Studio
from tests.fakes import (
    CODEBOOKS,
    FRAME_RATE_HZ,
    SAMPLE_RATE_HZ,
    WINDOW_S,
    FakeManager,
    FakeSeparator,
    model_info,
)
from tests.pace import slowness

SOON_S = 20.0


class Workplace:
    """A studio on a folder of its own, and what a test needs around it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.settings = Settings(data_dir=folder / "data", state_dir=folder / "state", **changes)
        self.manager = FakeManager()
        self.separator = FakeSeparator()
        self.snapshots: list[Job] = []
        self.changes: list[LibraryChange] = []
        self.clients = 0
        self.studio = Studio(self.settings, manager=self.manager, separator=self.separator)
        self.studio.subscribe(self.snapshots.append, self.changes.append)

    def body(self, **changes: Any) -> dict[str, Any]:
        self.clients += 1
        return {"kind": "generate", "client_id": f"c{self.clients}", "prompt": "rain", "duration": 2.0} | changes

    def submit(self, **changes: Any) -> Job:
        return self.studio.submit(self.body(**changes))

    def ended(self, job: Job) -> Job:
        found = self.studio.jobs_queue.wait(job.id, SOON_S)
        assert found.status not in ("queued", "running"), found
        return found

    def make(self, **changes: Any) -> Track:
        """One finished track."""
        return self.tracks(**changes)[0]

    def tracks(self, **changes: Any) -> list[Track]:
        job = self.ended(self.submit(**changes))
        assert job.status == "done", job.error
        return [self.studio.track(name) for name in job.tracks]

    def sound(self, track: Track) -> Clip:
        return audio.decode(self.studio.audio_file(track.name))

    def upload(self, clip: Clip, name: str = "clip.wav", subtype: str = "PCM_16") -> str:
        held = io.BytesIO()
        soundfile.write(held, clip.samples.T, clip.sample_rate_hz, format="WAV", subtype=subtype)
        held.seek(0)
        return self.studio.upload(held, name).id


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    made = Workplace(tmp_path)
    made.studio.start()
    yield made
    made.studio.stop()


def tone(seconds: float, sample_rate_hz: int = 44_100, channels: int = 2, level: float = 0.25) -> Clip:
    at = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    rows = [level * np.sin(2 * np.pi * (220 + 110 * channel) * at) for channel in range(channels)]
    # On the 16-bit grid, so that what is kept bit for bit can be told.
    grid = np.rint(np.stack(rows) * 2**15) / 2**15
    return Clip(grid.astype(np.float32), sample_rate_hz)


class Gate:
    """Holds the fake engine before a step until the test lets it go on."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, step: int) -> None:
        if step == self.at:
            self.reached.set()
            assert self.go.wait(SOON_S)

    def wait(self) -> None:
        assert self.reached.wait(SOON_S)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def samples_of(wav: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    assert wav[:4] == b"RIFF"
    return np.frombuffer(wav[44:], dtype="<i2")


# ---------------------------------------------------------------------------------------------- generation
def test_a_track_says_all_about_itself(place: Workplace) -> None:
    track = place.make(prompt="warm piano", seed=7, artist="Ana", top_p=0.5, duration=3)
    assert track.prompt == "warm piano"
    assert (track.model, track.checkpoint_hash) == ("fake", "f00d")
    assert (track.seed, track.asked["seed"], track.used["seed"]) == (7, 7, 7)
    assert track.asked["top_k"] == 250
    assert track.used["top_k"] == 0, "top_p switches top_k off"
    assert "client_id" not in track.asked
    assert (track.sample_rate_hz, track.channels, track.duration_s) == (SAMPLE_RATE_HZ, 1, 3.0)
    assert track.loudness.integrated_lufs is not None
    assert track.engine is not None
    assert track.engine.backend == "reference"
    assert {"audiocraft-webui", "python", "numpy"} <= track.versions.keys()
    assert {"load", "generate", "decode", "save"} <= track.timings_s.keys()
    assert track.name.startswith("Ana_fake_7_")
    assert track.bytes == place.studio.audio_file(track.name).stat().st_size
    tags = audio.read_tags(place.studio.audio_file(track.name))
    assert tags["title"] == "warm piano"
    assert tags["artist"] == "Ana"
    assert "seed 7" in tags["comment"]


def test_an_auto_seed_is_drawn_recorded_and_left_out_of_the_name(place: Workplace) -> None:
    first, second = place.make(), place.make()
    assert first.seed != second.seed
    assert (first.asked["seed"], first.used["seed"]) == (-1, first.seed)
    assert str(first.seed) not in first.name


def test_takes_get_the_seeds_after_the_first(place: Workplace) -> None:
    tracks = place.tracks(takes=3, seed=40)
    assert [(track.seed, track.take) for track in tracks] == [(40, 1), (41, 2), (42, 3)]
    assert draw_seeds(MAX_SEED, 3) == (MAX_SEED, 0, 1)
    sounds = [place.sound(track).samples for track in tracks]
    assert not np.array_equal(sounds[0], sounds[1])


@pytest.mark.parametrize("take", [0, 1])
def test_the_json_makes_the_same_samples_again(place: Workplace, take: int) -> None:
    original = place.tracks(takes=2, duration=4)[take]
    again = {key: original.used[key] for key in GenerateRequest.model_fields if key in original.used}
    copy = place.make(**again)
    assert np.array_equal(place.sound(original).samples, place.sound(copy).samples)
    assert (copy.seed, copy.used) == (original.seed, original.used)


def test_the_engines_own_rhythm_does_not_change_the_samples(place: Workplace) -> None:
    place.manager.engine.frames_a_push = 1
    first = place.make(seed=3)
    place.manager.engine.frames_a_push = 64
    assert np.array_equal(place.sound(first).samples, place.sound(place.make(seed=3)).samples)


@pytest.mark.parametrize(("audio_format", "rate"), [("wav", "48k"), ("flac", "32k"), ("mp3", "original")])
def test_formats_and_rates(place: Workplace, audio_format: str, rate: str) -> None:
    track = place.make(format=audio_format, sample_rate=rate)
    path = place.studio.audio_file(track.name)
    held = audio.probe(path)
    assert path.suffix == f".{audio_format}"
    assert (held.sample_rate_hz, held.channels) == (track.sample_rate_hz, track.channels)
    assert held.seconds == pytest.approx(track.duration_s, abs=0.1)


def test_a_track_keeps_its_tokens(place: Workplace) -> None:
    track = place.make(duration=2)
    tokens = place.studio.library.tokens(track.name)
    assert tokens is not None
    assert tokens.shape == (CODEBOOKS, 2 * FRAME_RATE_HZ)
    assert track.has_tokens


def test_progress_goes_through_its_phases_to_the_end(place: Workplace) -> None:
    place.manager.engine.step_s = 0.002
    job = place.ended(place.submit(takes=2))
    seen = sorted((snap for snap in place.snapshots if snap.id == job.id), key=lambda snap: snap.rev)
    phases = list(dict.fromkeys(snap.phase for snap in seen))
    assert phases == ["queued", "preparing", "loading", "generating", "decoding", "saving", "finished"]
    steps = [snap for snap in seen if snap.phase == "generating" and snap.total]
    assert steps[-1].done == steps[-1].total == 100
    assert all(snap.done <= snap.total for snap in steps)
    assert any(snap.eta_s is not None for snap in steps)


def test_a_request_without_a_model_gets_the_best_one_that_is_here(place: Workplace) -> None:
    assert place.make().model == "fake"
    assert place.make(model="wide").channels == 2


def test_a_sketch_model_says_which_words_it_does_not_know(place: Workplace) -> None:
    place.manager.catalog._models["sketch"] = model_info("sketch", sketch=True)
    job = place.ended(place.submit(model="sketch", prompt="warm piano with a xyzzyphone"))
    assert job.unknown_words == ["xyzzyphone"]


# ------------------------------------------------------------------------------------- append and continue
def test_a_loop_is_cut_from_more_music_than_asked_and_says_where(place: Workplace) -> None:
    track = place.make(duration=4, seed=3, loop=True)
    assert place.manager.engine.specs[-1].duration_s == 4 + LOOP_SPARE_S
    assert track.loop is not None
    assert track.asked["loop"] is True
    assert track.duration_s == pytest.approx(place.sound(track).seconds, abs=1e-6)
    assert track.duration_s == pytest.approx(4, rel=0.3)
    plain = place.sound(place.make(duration=4 + LOOP_SPARE_S, seed=3)).samples
    looped = place.sound(track).samples
    start, fade = round(track.loop.start_s * SAMPLE_RATE_HZ), round(track.loop.fade_s * SAMPLE_RATE_HZ)
    assert np.array_equal(looped[:, fade:], plain[:, start + fade : start + looped.shape[1]])
    assert np.abs(looped[:, 0] - plain[:, start + looped.shape[1]]).max() < 2**-22, "what followed the last sample"
    again = {key: track.used[key] for key in GenerateRequest.model_fields if key in track.used}
    assert np.array_equal(place.sound(place.make(**again)).samples, looped), "its JSON makes it again"


@pytest.mark.parametrize("changes", [{"model": "wide"}, {"takes": 2}, {"format": "mp3"}, {"sample_rate": "48k"}])
def test_a_loop_goes_with_every_model_format_and_rate(place: Workplace, changes: dict[str, Any]) -> None:
    for track in place.tracks(duration=3, loop=True, **changes):
        assert track.loop is not None
        assert track.duration_s == pytest.approx(3, rel=0.3)
        sound = place.sound(track)
        assert sound.frames == round(track.duration_s * track.sample_rate_hz), "no gap before or after it"


def test_a_loop_is_extended_from_its_own_tokens(place: Workplace) -> None:
    first = place.make(duration=4, loop=True)
    assert first.loop is not None
    codes = place.studio.library.tokens(first.name)
    assert codes is not None
    frames = math.ceil(first.duration_s * FRAME_RATE_HZ)
    assert codes.shape[1] == frames
    assert "tokens_from_s" not in first.used
    second = place.make(duration=2, continuation={"track": first.name, "mode": "continue"})
    assert second.loop is None
    known = place.manager.engine.specs[-1].prompt_codes
    assert known is not None
    kept = min(frames, round(first.duration_s * FRAME_RATE_HZ))
    assert np.array_equal(known, codes[:, :kept][:, -known.shape[1] :])
    old, new = place.sound(first).samples, place.sound(second).samples
    seam = round(second.continuation.seconds * SAMPLE_RATE_HZ) if second.continuation else 0
    assert seam >= old.shape[1] - round(SAMPLE_RATE_HZ / FRAME_RATE_HZ)
    assert np.array_equal(new[:, :seam], old[:, :seam])


def test_what_is_kept_of_a_cancelled_loop_is_a_plain_track(place: Workplace) -> None:
    gate = Gate(at=80)
    place.manager.engine.hold = gate
    job = place.submit(duration=4, loop=True)
    gate.wait()
    place.studio.cancel(job.id, keep=True)
    gate.go.set()
    [name] = place.ended(job).tracks
    track = place.studio.track(name)
    assert (track.kept_early, track.loop, track.asked["loop"]) == (True, None, True)


def test_a_loop_in_another_rate_goes_over_its_seam_all_the_same(place: Workplace) -> None:
    track = place.make(duration=3, loop=True)
    path = place.studio.converted(track.name, "wav", "48k")
    there, back = audio.decode(path), place.sound(track)
    path.unlink()
    assert there.frames == 3 * back.frames
    # Every third sample is the track's own, the first and the last too: what lies beyond the ends is the other end.
    assert np.abs(there.samples[:, ::3][:, [0, 1, -2, -1]] - back.samples[:, [0, 1, -2, -1]]).max() < 0.02


def test_append_puts_the_clip_before_new_music_at_its_loudness(place: Workplace) -> None:
    clip = tone(3.0, level=0.02)
    track = place.make(continuation={"upload": place.upload(clip, "mine.wav"), "mode": "append"})
    assert track.continuation is not None
    assert (track.continuation.mode, track.continuation.kind, track.continuation.name) == (
        "append", "upload", "mine.wav",
    )  # fmt: skip
    assert track.continuation.seconds == pytest.approx(3.0)
    assert track.duration_s == pytest.approx(5.0, abs=0.06)
    assert (track.sample_rate_hz, track.channels) == (SAMPLE_RATE_HZ, 2)
    sound = place.sound(track)
    before, after = (
        audio.loudness(Clip(part, SAMPLE_RATE_HZ)).integrated_lufs
        for part in (sound.samples[:, : int(2.9 * SAMPLE_RATE_HZ)], sound.samples[:, 3 * SAMPLE_RATE_HZ :])
    )
    assert before is not None
    assert after is not None
    assert before == pytest.approx(after, abs=1.0)
    assert place.manager.engine.specs[-1].prompt_codes is None, "append lets the model hear nothing"


def test_continue_keeps_the_clips_own_samples_bit_for_bit(place: Workplace) -> None:
    clip = tone(4.0)
    track = place.make(continuation={"upload": place.upload(clip), "mode": "continue"}, format="flac")
    assert (track.sample_rate_hz, track.channels) == (44_100, 2)
    assert track.duration_s == pytest.approx(6.0, abs=1e-3)
    sound = place.sound(track)
    assert np.array_equal(sound.samples[:, : clip.frames], clip.samples)
    assert np.abs(sound.samples[:, clip.frames + 4410 :]).max() > 0.1
    prompt = place.manager.engine.specs[-1].prompt_codes
    assert prompt is not None
    assert prompt.shape == (CODEBOOKS, 4 * FRAME_RATE_HZ)
    step = np.abs(np.diff(sound.samples[:, clip.frames - 2 : clip.frames + 2], axis=1)).max()
    assert step < 0.1, "a click at the seam"


def test_continue_goes_on_from_the_tracks_own_tokens(place: Workplace) -> None:
    first = place.make(duration=4, seed=1)
    tokens = place.studio.library.tokens(first.name)
    second = place.make(duration=2, continuation={"track": first.name, "mode": "continue"})
    prompt = place.manager.engine.specs[-1].prompt_codes
    assert tokens is not None
    assert prompt is not None
    assert np.array_equal(prompt, tokens)
    assert second.parent == first.name
    assert second.duration_s == 6.0
    old, new = place.sound(first).samples, place.sound(second).samples
    assert np.array_equal(new[:, : old.shape[1]], old)
    together = place.studio.library.tokens(second.name)
    assert together is not None
    assert np.array_equal(together[:, : tokens.shape[1]], tokens)
    assert together.shape[1] == 6 * FRAME_RATE_HZ


def test_extending_from_the_cursor_cuts_tokens_and_samples_together(place: Workplace) -> None:
    first = place.make(duration=4)
    second = place.make(duration=2, continuation={"track": first.name, "mode": "continue", "from": 1.507})
    tokens, prompt = place.studio.library.tokens(first.name), place.manager.engine.specs[-1].prompt_codes
    assert tokens is not None
    assert prompt is not None
    assert np.array_equal(prompt, tokens[:, :75])
    assert second.duration_s == pytest.approx(1.5 + 2)
    cut = round(1.5 * SAMPLE_RATE_HZ)
    assert np.array_equal(place.sound(second).samples[:, :cut], place.sound(first).samples[:, :cut])


def test_a_long_clip_gives_the_model_what_its_window_has_room_for(place: Workplace) -> None:
    first = place.make(duration=9)
    place.make(duration=3, continuation={"track": first.name, "mode": "continue"})
    prompt = place.manager.engine.specs[-1].prompt_codes
    assert prompt is not None
    assert prompt.shape[1] == (WINDOW_S - 3) * FRAME_RATE_HZ
    place.make(duration=20, continuation={"track": first.name, "mode": "continue"})
    prompt = place.manager.engine.specs[-1].prompt_codes
    assert prompt is not None
    assert prompt.shape[1] == 0.4 * WINDOW_S * FRAME_RATE_HZ, "as much context as every later window has"


def test_another_models_tokens_are_not_used(place: Workplace) -> None:
    first = place.make(duration=3)
    second = place.make(model="wide", duration=2, continuation={"track": first.name, "mode": "continue"})
    prompt, tokens = place.manager.engine.specs[-1].prompt_codes, place.studio.library.tokens(first.name)
    assert prompt is not None
    assert tokens is not None
    assert not np.array_equal(prompt, tokens)
    assert second.channels == 2


def test_a_continued_append_finds_its_tokens_after_the_clip(place: Workplace) -> None:
    clip = tone(3.0)
    first = place.make(duration=4, continuation={"upload": place.upload(clip), "mode": "append"})
    assert first.used["tokens_from_s"] == pytest.approx(2.95, abs=0.01)
    place.make(duration=2, continuation={"track": first.name, "mode": "continue"})
    prompt, tokens = place.manager.engine.specs[-1].prompt_codes, place.studio.library.tokens(first.name)
    assert prompt is not None
    assert tokens is not None
    assert np.array_equal(prompt[:, -50:], tokens[:, -50:])


def test_a_cut_past_the_end_or_too_early_is_named(place: Workplace) -> None:
    first = place.make(duration=2)
    with pytest.raises(InvalidParameter, match="past the end") as error:
        place.submit(continuation={"track": first.name, "from": 9.0})
    assert error.value.field == "continuation.from"
    with pytest.raises(ClipTooShort):
        place.submit(continuation={"track": first.name, "from": 0.2})
    with pytest.raises(ClipTooShort):
        place.submit(continuation={"upload": place.upload(tone(0.3)), "mode": "continue"})
    appended = place.submit(continuation={"upload": place.upload(tone(0.3)), "mode": "append"})
    assert place.ended(appended).status == "done"


# --------------------------------------------------------------------------------------------- audio prompt
def test_an_audio_prompt_reaches_a_melody_model_up_to_what_it_hears(place: Workplace) -> None:
    clip = tone(MELODY_S + 5)
    track = place.make(model="fake-melody", audio_prompt={"upload": place.upload(clip, "hum.wav")})
    melody = place.manager.engine.specs[-1].melody
    assert melody is not None
    assert melody.seconds == pytest.approx(MELODY_S)
    assert melody.sample_rate_hz == 44_100
    assert track.audio_prompt is not None
    assert track.audio_prompt.name == "hum.wav"


def test_an_audio_prompt_for_a_model_that_takes_none_is_refused_at_once(place: Workplace) -> None:
    with pytest.raises(InvalidParameter) as error:
        place.submit(audio_prompt={"upload": place.upload(tone(1))})
    assert error.value.field == "audio_prompt"


# ------------------------------------------------------------------------------------------ cancel and keep
def test_keep_what_i_heard_is_a_track_of_it(place: Workplace) -> None:
    gate = Gate(at=80)
    place.manager.engine.hold = gate
    job = place.submit(duration=4)
    gate.wait()
    place.studio.cancel(job.id, keep=True)
    gate.go.set()
    ended = place.ended(job)
    assert ended.status == "cancelled"
    track = place.studio.track(ended.tracks[0])
    assert track.kept_early
    assert 1.0 <= track.duration_s <= 1.6
    assert track.duration_s == pytest.approx(place.sound(track).seconds, abs=1e-4)


# ---------------------------------------------------------------------------------- the other decoder
def test_multi_band_diffusion_makes_the_sound_and_the_json_says_so(place: Workplace) -> None:
    plain, other = place.make(seed=4), place.make(seed=4, decoder="diffusion")
    heard, sound = place.sound(plain).samples, place.sound(other).samples
    assert heard.shape == sound.shape
    assert 0.01 < np.abs(sound - 0.5 * heard).max() < 0.1, "the stand-in halves the codec's sound and adds noise"
    assert (other.asked["decoder"], other.used["decoder"], other.used["decoder_hash"]) == (
        "diffusion",
        "diffusion",
        "d1f5",
    )
    assert (plain.used["decoder"], "decoder_hash" in plain.used) == ("codec", False)
    assert other.timings_s["render"] > 0


def test_takes_are_rendered_with_noise_of_their_own_and_can_be_made_again(place: Workplace) -> None:
    job = place.ended(place.submit(seed=4, takes=2, decoder="diffusion"))
    first, second = (place.studio.track(name) for name in job.tracks)
    assert not np.array_equal(place.sound(first).samples, place.sound(second).samples)
    again = {key: second.used[key] for key in GenerateRequest.model_fields if key in second.used}
    assert again["decoder"] == "diffusion"
    assert np.array_equal(place.sound(place.make(**again)).samples, place.sound(second).samples)
    seen = [snap for snap in place.snapshots if snap.id == job.id and snap.phase == "rendering" and snap.total]
    assert {snap.total for snap in seen} == {16}
    assert [snap.done for snap in seen] == sorted(snap.done for snap in seen)


def test_a_continuation_is_rendered_from_its_lead_on_and_keeps_the_clips_samples(place: Workplace) -> None:
    first = place.make(seed=4)
    more = place.make(seed=5, decoder="diffusion", continuation={"track": first.name, "mode": "continue"})
    old, new = place.sound(first).samples, place.sound(more).samples
    assert more.duration_s == pytest.approx(first.duration_s + 2)
    assert np.array_equal(new[:, : old.shape[1]], old)


@pytest.mark.parametrize("keep", [True, False])
def test_a_cancel_while_rendering_keeps_the_codecs_sound_or_nothing(place: Workplace, keep: bool) -> None:
    plain = place.make(seed=4)
    gate = Gate(at=3)
    place.manager.hold_render = gate
    job = place.submit(seed=4, decoder="diffusion")
    gate.wait()
    assert place.studio.job(job.id).live_s == pytest.approx(2.0), "all of it was heard before"
    place.studio.cancel(job.id, keep=keep)
    gate.go.set()
    ended = place.ended(job)
    assert ended.status == "cancelled"
    assert len(ended.tracks) == keep
    for name in ended.tracks:
        track = place.studio.track(name)
        assert (track.kept_early, track.used["decoder"]) == (True, "codec")
        assert np.array_equal(place.sound(track).samples, place.sound(plain).samples)


def test_the_estimate_reckons_with_the_rendering(place: Workplace) -> None:
    plain = place.studio.estimate({"duration": 10})
    guess = place.studio.estimate({"duration": 10, "decoder": "diffusion"})
    assert guess["seconds"] > plain["seconds"] + 60, "slow on a CPU, and said so before anyone has waited"
    assert guess["needs_bytes"] > plain["needs_bytes"]
    place.make(decoder="diffusion")
    assert place.studio.estimate({"duration": 10, "decoder": "diffusion"})["seconds"] < guess["seconds"]
    with pytest.raises(InvalidParameter, match="mono models") as error:
        place.studio.estimate({"duration": 10, "decoder": "diffusion", "model": "wide"})
    assert error.value.field == "decoder"


def test_less_than_a_second_is_not_kept(place: Workplace) -> None:
    gate = Gate(at=30)
    place.manager.engine.hold = gate
    job = place.submit(duration=4)
    gate.wait()
    place.studio.cancel(job.id, keep=True)
    gate.go.set()
    assert place.ended(job).tracks == []
    assert place.studio.library.count() == 0


def test_a_cancelled_job_leaves_nothing_and_ends_within_a_step(place: Workplace) -> None:
    taken: list[int] = []
    gate = Gate(at=100)

    def counted(step: int) -> None:
        taken.append(step)
        gate(step)

    place.manager.engine.hold = counted
    job = place.submit(duration=60)
    gate.wait()
    place.studio.cancel(job.id)
    gate.go.set()
    assert place.ended(job).status == "cancelled"
    assert taken[-1] == gate.at, "the step that was on its way when the cancel came is the last"
    assert place.studio.library.count() == 0
    place.manager.engine.hold = None
    assert place.make().duration_s == 2.0


def test_what_is_kept_of_a_continuation_begins_with_the_clip(place: Workplace) -> None:
    first = place.make(duration=3)
    gate = Gate(at=90)
    place.manager.engine.hold = gate
    job = place.submit(duration=4, continuation={"track": first.name, "mode": "continue"})
    gate.wait()
    place.studio.cancel(job.id, keep=True)
    gate.go.set()
    kept = place.studio.track(place.ended(job).tracks[0])
    old = place.sound(first).samples
    assert np.array_equal(place.sound(kept).samples[:, : old.shape[1]], old)
    assert kept.duration_s > 4.0


# ------------------------------------------------------------------------------------------------ live audio
def listen(place: Workplace, job: Job) -> Iterator[bytes]:
    blocks = place.studio.live_audio(job.id)
    assert blocks is not None
    return blocks


def test_listeners_early_and_late_hear_the_finished_track(place: Workplace) -> None:
    gate = Gate(at=120)
    place.manager.engine.hold = gate
    job = place.submit(duration=4)
    gate.wait()
    until(lambda: place.studio.job(job.id).live)
    heard: list[bytes] = []

    def hear() -> None:
        heard.append(b"".join(listen(place, job)))

    early = [threading.Thread(target=hear) for _ in range(20)]
    for listener in early:
        listener.start()
    time.sleep(0.05)
    assert not heard, "a listener ended before the job"
    gate.go.set()
    ended = place.ended(job)
    for listener in early:
        listener.join(SOON_S)
    hear()
    track = place.studio.track(str(ended.track))
    expected = samples_of(_wav(place.sound(track)))
    assert len(heard) == 21
    for wav in heard:
        assert np.abs(samples_of(wav).astype(int) - expected).max() <= 1
    assert place.studio.job(job.id).live_s == pytest.approx(4.0)


def _wav(clip: Clip) -> bytes:
    return audio.wav_header(clip.sample_rate_hz, clip.channels, None) + audio.to_pcm16(clip.samples)


def test_sound_can_be_heard_while_it_is_made(place: Workplace) -> None:
    gate = Gate(at=60)
    place.manager.engine.hold = gate
    job = place.submit(duration=4)
    gate.wait()
    until(lambda: place.studio.job(job.id).live)
    stream = listen(place, job)
    header, first = next(stream), next(stream)
    assert header == audio.wav_header(SAMPLE_RATE_HZ, 1, None)
    assert len(first) // 2 >= 0.3 * SAMPLE_RATE_HZ
    gate.go.set()
    place.ended(job)
    stream.close()  # type: ignore[attr-defined]


def test_a_listener_that_does_not_read_holds_up_nobody(place: Workplace) -> None:
    gate = Gate(at=60)
    place.manager.engine.hold = gate
    job = place.submit(duration=60)
    gate.wait()
    until(lambda: place.studio.job(job.id).live)
    sleepy = listen(place, job)
    next(sleepy)
    gate.go.set()
    assert place.ended(job).status == "done"
    assert sum(len(block) for block in sleepy) == 60 * SAMPLE_RATE_HZ * 2


def test_the_live_audio_of_a_continuation_begins_with_the_clip(place: Workplace) -> None:
    first = place.make(duration=3)
    job = place.ended(place.submit(duration=2, continuation={"track": first.name, "mode": "continue"}))
    live = samples_of(b"".join(listen(place, job)))
    old = samples_of(_wav(place.sound(first)))
    assert np.array_equal(live[: len(old)], old)
    assert len(live) == 5 * SAMPLE_RATE_HZ


def test_a_job_without_sound_says_so(place: Workplace) -> None:
    gate = Gate(at=1)
    place.manager.engine.hold = gate
    job = place.submit()
    gate.wait()
    with pytest.raises(Conflict):
        place.studio.live_audio(job.id)
    with pytest.raises(NotFound):
        place.studio.live_audio("nothing")
    gate.go.set()
    place.ended(job)


def test_the_sound_of_a_job_that_ended_gives_way_to_the_next_one(place: Workplace) -> None:
    first = place.ended(place.submit(duration=1))
    late = listen(place, first)
    place.ended(place.submit(duration=1))
    assert place.studio.live_audio(first.id) is None
    assert len(samples_of(b"".join(late))) == SAMPLE_RATE_HZ, "it was there when it was asked for"


# ----------------------------------------------------------------------------------------------------- stems
def test_stems_asked_with_the_music_are_made_after_it(place: Workplace) -> None:
    track = place.make(stems="all")
    assert track.stems.keys() == {"vocals", "drums", "bass", "other"}
    assert place.studio.stem_file(track.name, "drums").is_file()
    assert len(place.studio.peaks(track.name, 10, "drums")) == 10
    assert not list(place.settings.stems_dir.glob(".split-*"))


def test_stems_that_exist_cost_nothing_and_others_are_added(place: Workplace) -> None:
    track = place.make(stems="bass")

    def split(stems: str) -> Job:
        place.clients += 1
        body = {"kind": "split", "client_id": f"c{place.clients}", "track": track.name, "stems": stems}
        return place.ended(place.studio.submit(body))

    assert split("bass").track == track.name
    split("all")
    assert place.separator.splits == [("bass",), ("vocals", "drums", "other")]
    assert len(place.studio.track(track.name).stems) == 4


def test_an_upload_becomes_a_track_to_be_split(place: Workplace) -> None:
    clip = tone(2.0)
    body = {"kind": "split", "client_id": "up", "upload": place.upload(clip, "Мой трек.wav"), "stems": "all"}
    job = place.ended(place.studio.submit(body))
    track = place.studio.track(str(job.track))
    assert (track.model, track.prompt, track.format) == ("upload", "Мой трек.wav", "flac")
    assert np.array_equal(place.sound(track).samples, clip.samples)
    assert len(track.stems) == 4
    again = place.ended(place.studio.submit({**body, "client_id": "again"}))
    assert again.tracks == [track.name], "no second track of the same upload"
    assert place.studio.library.count() == 1


def test_an_upload_that_cannot_be_split_leaves_no_track_and_can_be_tried_again(place: Workplace) -> None:
    body = {"kind": "split", "upload": place.upload(tone(2.0), "mine.wav"), "stems": "all"}
    place.separator.fails = UnreadableAudio("the file is silent: there is nothing to split")
    job = place.ended(place.studio.submit({**body, "client_id": "first"}))
    assert (job.status, job.track, job.tracks) == ("failed", None, [])
    assert place.studio.library.count() == 0
    assert not [path for path in place.settings.audio_dir.iterdir() if path.is_file()]
    place.separator.fails = None
    again = place.ended(place.studio.submit({**body, "client_id": "again"}))
    assert again.status == "done"
    assert place.studio.library.count() == 1


def test_an_upload_of_many_channels_is_refused_at_once_where_stems_are_asked_of_it(place: Workplace) -> None:
    body = {"kind": "split", "client_id": "many", "upload": place.upload(tone(0.5, channels=4)), "stems": "all"}
    with pytest.raises(UnreadableAudio, match="4 channels; mono and stereo can be split") as caught:
        place.studio.submit(body)
    assert caught.value.field == "upload"
    assert place.studio.jobs() == []


def test_music_stays_when_its_stems_fail(place: Workplace) -> None:
    place.separator.fails = ModelMissing("the separator is not here")
    job = place.ended(place.submit(stems="all"))
    assert (job.status, len(job.tracks)) == ("failed", 1)
    assert job.error is not None
    assert job.error.code == "model_missing"
    assert not list(place.settings.stems_dir.iterdir())


def test_a_cancelled_split_leaves_the_track_and_no_files(place: Workplace) -> None:
    track = place.make()
    place.separator.held.clear()
    job = place.studio.submit({"kind": "split", "client_id": "s", "track": track.name})
    until(lambda: place.studio.job(job.id).phase == "splitting")
    with pytest.raises(Conflict):
        place.studio.delete(track.name)
    place.studio.cancel(job.id)
    place.separator.held.set()
    assert place.ended(job).status == "cancelled"
    assert place.studio.track(track.name).stems == {}
    assert not list(place.settings.stems_dir.iterdir())
    place.studio.delete(track.name)


# ------------------------------------------------------------------------------------- tracks and clean-up
def test_a_track_that_a_waiting_job_needs_is_not_deleted(place: Workplace) -> None:
    needed, other = place.make(), place.make()
    gate = Gate(at=1)
    place.manager.engine.hold = gate
    running = place.submit()
    gate.wait()
    waiting = place.submit(continuation={"track": needed.name})
    with pytest.raises(Conflict):
        place.studio.delete(needed.name)
    assert place.studio.clear() == (1, 1)
    assert [track.name for track in place.studio.tracks(TrackQuery())[0]] == [needed.name]
    gate.go.set()
    place.ended(running)
    assert place.ended(waiting).status == "done"
    assert any(other.name in change.removed for change in place.changes)


def test_locked_tracks_survive_the_clean_up(place: Workplace) -> None:
    kept, _ = place.make(), place.make()
    place.studio.patch(kept.name, TrackPatch(locked=True))
    assert place.studio.clear() == (1, 1)
    with pytest.raises(Conflict):
        place.studio.delete(kept.name)


def test_a_track_in_another_format_is_a_temporary_file(place: Workplace) -> None:
    track = place.make()
    path = place.studio.converted(track.name, "mp3", "48k")
    assert audio.probe(path).sample_rate_hz == 48_000
    path.unlink()


# --------------------------------------------------------------------------------------------------- uploads
def test_an_upload_is_probed_and_its_name_is_data_only(place: Workplace) -> None:
    held = io.BytesIO()
    soundfile.write(held, tone(1.5).samples.T, 44_100, format="WAV")
    held.seek(0)
    upload = place.studio.upload(held, "..\\..\\evil\u202egpj.<b>.wav\r\nX: y")
    assert (upload.seconds, upload.sample_rate_hz, upload.channels) == (1.5, 44_100, 2)
    assert upload.name == "evilgpj.<b>.wav X: y"
    assert sorted(path.name for path in place.settings.uploads_dir.iterdir()) == [
        f"{upload.id}.flac", f"{upload.id}.json",
    ]  # fmt: skip


@pytest.mark.parametrize("field", ["track", "upload"])
def test_a_split_of_what_is_not_there_names_the_field(place: Workplace, field: str) -> None:
    with pytest.raises(NotFound) as error:
        place.studio.submit({"kind": "split", "client_id": "s", field: "nothing"})
    assert error.value.field == field


@pytest.mark.parametrize("data", [b"", b"not audio at all", b"RIFF\xff\xff\xff\x7fWAVEfmt "])
def test_what_is_no_audio_is_refused_and_leaves_nothing(place: Workplace, data: bytes) -> None:
    with pytest.raises((UnreadableAudio, InvalidRequest)) as error:
        place.studio.upload(io.BytesIO(data), "x.wav")
    assert error.value.field == "file"
    assert list(place.settings.uploads_dir.iterdir()) == []


def test_too_large_an_upload_stops_while_it_arrives(tmp_path: Path) -> None:
    place = Workplace(tmp_path, max_upload_mb=1)

    class Endless:
        given = 0

        def read(self, size: int, /) -> bytes:
            self.given += size
            return b"\0" * size

    endless = Endless()
    with pytest.raises(StudioError) as error:
        place.studio.upload(endless, "x.wav")
    place.studio.stop()
    assert error.value.code == "too_large"
    assert endless.given < 2_000_000
    assert list(place.settings.uploads_dir.iterdir()) == []


def test_uploads_go_after_a_day_unless_a_job_needs_them(place: Workplace) -> None:
    now = time.time()
    place.studio.uploads._now = lambda: now
    needed, forgotten = place.upload(tone(1)), place.upload(tone(1))
    gate = Gate(at=1)
    place.manager.engine.hold = gate
    first = place.submit()
    gate.wait()
    waiting = place.submit(continuation={"upload": needed, "mode": "append"})
    now += 25 * 3600
    later = place.upload(tone(1))
    with pytest.raises(NotFound):
        place.studio.uploads.get(forgotten)
    gate.go.set()
    place.ended(first)
    assert place.ended(waiting).status == "done"
    assert place.studio.uploads.get(later)


def test_the_longest_unused_uploads_make_room(place: Workplace) -> None:
    first, second = place.upload(tone(1)), place.upload(tone(1))
    place.studio.uploads._total_bytes = place.studio.uploads.path(second).stat().st_size + 10
    assert place.studio.uploads.sweep() == [first]
    with pytest.raises(NotFound):
        place.submit(continuation={"upload": first, "mode": "append"})


def test_uploads_survive_a_restart_and_leftovers_do_not(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    kept = place.upload(tone(1))
    place.studio.stop()
    folder = place.settings.uploads_dir
    (folder / f".{'a' * 32}.part").write_bytes(b"half")
    (folder / f"{'b' * 32}.flac").write_bytes(b"no facts")
    (folder / f"{'c' * 32}.json").write_text("{}")
    again = Workplace(tmp_path)
    assert again.studio.uploads.get(kept).seconds == 1.0
    assert len(list(folder.iterdir())) == 2
    again.studio.stop()


# ---------------------------------------------------------------------------------- refusals before a job
@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"model": "nothing"}, UnknownModel, "model"),
        ({"model": "gone"}, ModelMissing, "model"),
        ({"model": "bad"}, ModelBroken, "model"),
        ({"prompt": "  "}, InvalidParameter, "prompt"),
        ({"duration": 301}, InvalidParameter, "duration"),
        ({"duration": 1.5, "loop": True}, InvalidParameter, "loop"),
        ({"loop": True, "continuation": {"track": "no", "mode": "append"}}, InvalidParameter, "continuation"),
        ({"continuation": {"track": "nothing"}}, NotFound, "continuation"),
        ({"audio_prompt": {"upload": "nothing"}, "model": "fake-melody"}, NotFound, "audio_prompt"),
        ({"continuation": {"track": "a", "upload": "b"}}, InvalidParameter, "continuation"),
        ({"colour": "red"}, InvalidParameter, "colour"),
        ({"decoder": "diffusion", "model": "wide"}, InvalidParameter, "decoder"),
        ({"decoder": "diffusion", "model": "far"}, ModelMissing, "decoder"),
        ({"decoder": "diffusion", "model": "spoilt"}, ModelBroken, "decoder"),
        ({"decoder": "waves"}, InvalidParameter, "decoder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_queued(
    tmp_path: Path, body: dict[str, Any], kind: type[StudioError], field: str
) -> None:
    place = Workplace(tmp_path)
    place.manager.catalog._models |= {
        "gone": model_info("gone", state="missing", missing=["state_dict.bin"]),
        "bad": model_info("bad", state="broken", problem="a layer is missing"),
        "far": model_info("far", diffusion=DiffusionInfo(state="missing", licence="none", missing=["weights"])),
        "spoilt": model_info("spoilt", diffusion=DiffusionInfo(state="broken", licence="none")),
    }
    with pytest.raises(kind) as error:
        place.submit(**body)
    place.studio.stop()
    assert error.value.field == field
    assert place.studio.jobs() == []


def test_a_disk_without_room_is_said_before_anything_is_made(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.settings.state_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(DiskFull) as error:
        place.submit()
    assert error.value.details["free_bytes"] == 1_000_000
    monkeypatch.undo()
    place.make()


def test_a_disk_that_fills_while_saving_fails_the_job_and_the_next_one_works(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audio, "encode", full)
        job = place.ended(place.submit())
    assert job.error is not None
    assert job.error.code == "disk_full"
    assert list(place.settings.audio_dir.glob("[!.]*")) == []
    place.make()


@pytest.mark.parametrize("error", [OutOfMemory("no memory", details={"fits": []}), ValueError("a defect")])
def test_a_generation_that_fails_keeps_its_parameters_and_the_next_one_works(
    place: Workplace, error: Exception
) -> None:
    place.manager.engine.fail = error
    failed = place.ended(place.submit(top_k=99))
    assert failed.status == "failed"
    assert failed.request["top_k"] == 99
    assert failed.error is not None
    assert failed.error.code == ("out_of_memory" if isinstance(error, OutOfMemory) else "internal")
    place.manager.engine.fail = None
    place.make()


def test_an_error_in_the_decoding_thread_is_the_jobs_error(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import fakes

    def broken(_self: object, _codes: object) -> None:
        raise OutOfMemory("no memory for the codec")

    monkeypatch.setattr(fakes.FakeStream, "push", broken)
    job = place.ended(place.submit())
    assert job.error is not None
    assert job.error.code == "out_of_memory"


def test_a_full_queue_is_refused(tmp_path: Path) -> None:
    place = Workplace(tmp_path, max_queue=2)
    for _ in range(2):
        place.submit()
    with pytest.raises(QueueFull):
        place.submit()
    place.studio.stop()


# ------------------------------------------------------------------------------------------- models, health
def test_loading_is_a_job_and_unloading_waits_for_no_one_elses_job(place: Workplace) -> None:
    job = place.ended(place.studio.load_model("wide"))
    assert (job.kind, job.status, place.manager.loaded) == ("load", "done", "wide")
    with pytest.raises(UnknownModel):
        place.studio.load_model("nothing")
    gate = Gate(at=1)
    place.manager.engine.hold = gate
    running = place.submit(model="wide")
    gate.wait()
    with pytest.raises(Conflict):
        place.studio.unload_model("wide")
    place.studio.unload_model("fake")
    gate.go.set()
    place.ended(running)
    place.studio.unload_model("wide")
    assert place.manager.loaded is None


def test_a_model_that_cannot_be_loaded_is_the_jobs_error(place: Workplace) -> None:
    place.manager.load_fails = OutOfMemory("too large", details={"fits": [{"model": "small", "precision": "int8"}]})
    job = place.ended(place.submit())
    assert job.error is not None
    assert job.error.details["fits"][0]["model"] == "small"


def test_health_counts_the_queue(place: Workplace) -> None:
    gate = Gate(at=1)
    place.manager.engine.hold = gate
    first = place.submit()
    gate.wait()
    place.submit()
    health = place.studio.health()
    assert health.queue["running"] == 1
    assert health.queue["queued"] == 1
    assert health.model == "fake"
    gate.go.set()
    place.ended(first)
    hello = place.studio.hello()
    assert hello.jobs[0].id == first.id
    assert [model.id for model in hello.models] == ["fake", "fake-melody", "wide"]


def test_the_estimate_learns_from_what_was_made(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.studio.start()
    place.manager.engine.step_s = 0.004
    before = place.studio.estimate({"duration": 10})
    assert not before["measured"]
    place.make(duration=3)
    began = time.monotonic()
    place.make(duration=3)
    took = time.monotonic() - began
    after = place.studio.estimate({"prompt": "", "duration": 6})
    assert after["measured"]
    assert after["seconds"] == pytest.approx(2 * took, rel=0.5)
    assert after["fits"]
    place.studio.stop()
    again = Workplace(tmp_path)
    assert again.studio.estimate({"duration": 6})["measured"], "kept over a restart"
    with pytest.raises(InvalidParameter):
        again.studio.estimate({"duration": -1})
    again.studio.stop()


# ----------------------------------------------------------------------------------------------- lifetime
def test_a_second_program_on_the_same_folder_is_refused(place: Workplace, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="data-dir"):
        Workplace(tmp_path)


def test_a_second_program_with_tracks_of_its_own_may_not_have_the_first_ones_queue(
    place: Workplace, tmp_path: Path
) -> None:
    settings = replace(place.settings, data_dir=tmp_path / "other")
    with pytest.raises(Conflict, match="state-dir"):
        Studio(settings, manager=FakeManager(), separator=FakeSeparator())
    Library(settings.audio_dir, settings.stems_dir).close()  # let go of again


def test_a_stop_is_quick_and_a_start_goes_on(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.studio.start()
    place.manager.engine.step_s = 0.01
    running, waiting = place.submit(duration=300), place.submit()
    until(lambda: place.studio.job(running.id).phase == "generating")
    began = time.monotonic()
    place.studio.stop()
    assert time.monotonic() - began < 5.0 * slowness()
    again = Workplace(tmp_path)
    assert again.studio.job(running.id).status == "interrupted"
    again.studio.start()
    assert again.ended(waiting).status == "done"
    retry = again.studio.submit({**running.request, "client_id": "again", "duration": 2.0})
    assert again.ended(retry).status == "done"
    assert again.studio.library.count() == 2
    assert not (again.settings.state_dir / "live").exists() or len(list(again.settings.state_dir.glob("live/*"))) <= 1
    again.studio.stop()


def test_after_each_job_the_model_may_be_given_back(place: Workplace) -> None:
    place.make()
    until(lambda: "after_job" in place.manager.calls)


def test_a_model_that_was_asked_for_by_name_is_not_given_back_at_once(place: Workplace) -> None:
    place.ended(place.studio.load_model("wide"))
    until(lambda: "after_job keep" in place.manager.calls)
