"""The whole chain with the embedded model: the real stack from a request to samples on the disk."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules import audio
from modules.audio import Samples
from modules.contract import GenerateRequest, Job, Track
from modules.musicgen.melody import hear
from modules.musicgen.tiny import follower
from modules.musicgen.tiny.tonality import with_key
from modules.musicgen.tiny.words import MODES, NOTE_NAMES
from modules.settings import Settings
from modules.studio import Studio

pytestmark = pytest.mark.slow

PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("real")
    settings = Settings(
        data_dir=folder / "data", state_dir=folder / "state", cache_dir=folder / "cache", offline=True, device="cpu",
        threads=2, model="tiny",
    )  # fmt: skip
    made = Studio(settings)
    made.start()
    yield made
    made.stop()


def run(studio: Studio, client_id: str, **changes: Any) -> Job:
    job = studio.submit({"kind": "generate", "client_id": client_id, "prompt": "calm piano", "duration": 2.0} | changes)
    return studio.jobs_queue.wait(job.id, PATIENCE_S)


def tracks(studio: Studio, job: Job) -> list[Track]:
    assert job.status == "done", job.error
    return [studio.track(name) for name in job.tracks]


def samples(studio: Studio, track: Track) -> Samples:
    return audio.decode(studio.audio_file(track.name)).samples


def test_takes_are_music_and_their_json_makes_them_again(studio: Studio) -> None:
    first, second = tracks(studio, run(studio, "takes", takes=2, seed=5))
    assert np.abs(samples(studio, first)).max() > 0.05
    assert not np.array_equal(samples(studio, first), samples(studio, second))
    again = {key: second.used[key] for key in GenerateRequest.model_fields if key in second.used}
    [copy] = tracks(studio, run(studio, "again", **again))
    assert np.array_equal(samples(studio, copy), samples(studio, second))


def test_an_extension_keeps_the_tracks_samples_and_is_heard_live_as_it_becomes(studio: Studio) -> None:
    [first] = tracks(studio, run(studio, "first", seed=1))
    job = run(studio, "more", continuation={"track": first.name, "mode": "continue"})
    blocks = studio.live_audio(job.id)
    assert blocks is not None
    live = b"".join(blocks)
    [more] = tracks(studio, job)
    old, new = samples(studio, first), samples(studio, more)
    assert np.array_equal(new[:, : old.shape[1]], old)
    assert more.duration_s == pytest.approx(4.0)
    assert more.parent == first.name
    heard = (np.frombuffer(live[44:], dtype="<i2").astype(np.float32) / 2**15).reshape(-1, new.shape[0]).T
    # The bend at the seam and the limit on peaks are the track's alone.
    seam = old.shape[1]
    assert np.abs(heard[:, :seam] - new[:, :seam]).max() < 1e-4
    assert heard.shape == new.shape


def test_a_piece_that_goes_on_is_given_the_key_of_what_was_there(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, bool]] = []

    def noting(prompt: str, sounding: np.ndarray) -> str:
        asked.append((prompt, with_key(prompt, sounding), bool(sounding.any())))
        return asked[-1][1]

    monkeypatch.setattr(follower, "with_key", noting)
    [first] = tracks(studio, run(studio, "keyed", prompt="solo piano in F# minor", seed=4))
    tracks(studio, run(studio, "kept", prompt="piano", continuation={"track": first.name, "mode": "continue"}))
    (_, named, _), (_, heard, known) = asked[0], asked[-1]
    assert named == "solo piano in F# minor"
    assert known
    root, mode = heard.removesuffix(", piano").split()
    scale = (NOTE_NAMES.index(root) - MODES[mode]) % 12
    assert scale in {9, 4, 2}, f"{heard} has hardly the notes of F# minor"


def test_an_uploaded_melody_is_followed_and_named_beside_the_track(studio: Studio, tmp_path: Path) -> None:
    at = np.arange(22_050) / 22_050
    notes = [0.4 * np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * at) for note in (67, 71, 74)]
    path = tmp_path / "hum.wav"
    audio.encode(audio.Clip(np.concatenate(notes)[None].astype(np.float32), 22_050), path, "wav")
    upload = studio.upload(io.BytesIO(path.read_bytes()), "hum.wav")
    asked = {"audio_prompt": {"upload": upload.id}, "prompt": "reggae", "seed": 3, "duration": 3.0}
    [track] = tracks(studio, run(studio, "hum", **asked))
    assert track.audio_prompt is not None
    assert track.audio_prompt.name == "hum.wav"
    [plain] = tracks(studio, run(studio, "no-hum", **{**asked, "audio_prompt": None}))
    found = [hear(audio.decode(studio.audio_file(made.name)), 50).notes[:150] for made in (track, plain)]
    right = [float((notes % 12 == np.repeat((7, 11, 2), 50)).mean()) for notes in found]
    assert right[0] > 0.5 > right[1]


def test_cancel_with_keep_ends_soon_and_leaves_a_track(studio: Studio) -> None:
    job = studio.submit({"kind": "generate", "client_id": "long", "prompt": "techno", "duration": 60})
    end = time.monotonic() + PATIENCE_S
    while studio.job(job.id).live_s < 1.5 and time.monotonic() < end:
        time.sleep(0.01)
    studio.cancel(job.id, keep=True)
    ended = studio.jobs_queue.wait(job.id, 20)
    assert ended.status == "cancelled"
    kept = studio.track(ended.tracks[0])
    assert kept.kept_early
    assert 1.5 <= kept.duration_s < 59


def test_a_loop_goes_on_in_its_beat_over_the_wrap(studio: Studio) -> None:
    """The length is whole beats by a measure that knows nothing of how the seam was found."""
    for seed, prompt in enumerate(("techno at 130 bpm with drums", "house with drums")):
        [track] = tracks(
            studio, run(studio, f"loop {seed}".replace(" ", "-"), prompt=prompt, duration=6.0, loop=True, seed=seed)
        )
        assert track.loop is not None
        sound = samples(studio, track).mean(axis=0, dtype=np.float64)
        rate = track.sample_rate_hz
        # Attacks, in a circle: at the length of a beat they fall on each other over the wrap as well.
        rises = np.maximum(
            np.diff(np.abs(sound[: len(sound) // 64 * 64]).reshape(-1, 64).max(axis=1), prepend=0.0), 0.0
        )
        power = np.abs(np.fft.rfft(rises - rises.mean())) ** 2
        alike = np.fft.irfft(power)[: len(rises) // 2]
        low, high = round(0.33 * rate / 64), round(1.01 * rate / 64)
        period = low + int(np.argmax(alike[low:high]))
        assert alike[period] > 0.2 * alike[0], "attacks recur around the circle"
        beats = len(rises) / period
        assert beats == pytest.approx(round(beats), abs=0.5 * len(rises) / period**2 + 0.05)
        step = np.abs(sound[0] - sound[-1]) / np.abs(np.diff(sound)).max()
        assert step <= 1.0
