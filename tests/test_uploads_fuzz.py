"""Strangers' files through the child that decodes them: whatever the bytes, one clear answer and a living server."""

from __future__ import annotations

import json
import queue
import random
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
import soundfile

from modules import audio, intake
from modules.contract import ClipTooLong, DiskFull, UnreadableAudio
from tests.test_audio import HOSTILE, noise, write_with_av

ANSWER_S = 20.0
"""Longest that one small mutated file may take."""
CHILD_RSS_MB = 700
ALLOWED = {UnreadableAudio.code, ClipTooLong.code}


class Child:
    """The real child of `intake`, kept for many files and started again when one crashes it."""

    def __init__(self) -> None:
        self.crashes = 0
        self.peak_mb = 0.0
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            intake.child_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=intake.child_environment(),
        )
        assert self._process.stdin is not None
        self._requests: IO[str] = self._process.stdin
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True).start()

    @staticmethod
    def _read(process, answers) -> None:
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def ask(self, upload: Path, clean: Path, *, max_s: float = 600.0) -> dict[str, Any] | None:
        """The child's answer, None when the file crashed it."""
        request = {"upload": str(upload), "clean": str(clean), "max_s": max_s}
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        line = self._answers.get(timeout=ANSWER_S)
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.crashes += 1
        self._process.wait()
        self._start()
        return None

    def measure(self) -> None:
        self.peak_mb = max(self.peak_mb, psutil.Process(self._process.pid).memory_info().rss / 2**20)

    def close(self) -> None:
        self._requests.close()
        self._process.wait(timeout=10)


@pytest.fixture(scope="module")
def child():
    one = Child()
    yield one
    one.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    """One small valid file of every format that people send."""
    folder = tmp_path_factory.mktemp("seeds")
    clip = noise(0.3, 32_000)
    for audio_format in ("wav", "flac", "mp3"):
        audio.encode(clip, folder / audio_format, audio_format, tags={"title": "seed"})
    audio.encode(clip, folder / "float", "wav", subtype="FLOAT")
    for container, subtype in (("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("CAF", "ALAC_16"), ("WAV", "MS_ADPCM")):
        soundfile.write(folder / subtype, clip.samples.T, 32_000, format=container, subtype=subtype)
    for container, codec in (("ipod", "aac"), ("webm", "libopus"), ("ogg", "libopus"), ("mp4", "aac")):
        write_with_av(folder / container, container, codec, video=container == "mp4")
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def mutate(seeds: list[bytes], chance: random.Random) -> bytes:
    """One to four wounds: flipped bits, random header fields, cuts, repeats, foreign parts."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        size = max(len(data), 1)
        place = chance.randrange(size)
        wound = chance.randrange(7)
        if wound == 0:
            for _ in range(chance.randint(1, 30)):
                data[chance.randrange(size) % size] ^= 1 << chance.randrange(8)
        elif wound == 1:
            field = min(place, 120)
            data[field : field + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        elif wound == 2:
            data = data[:place] or bytearray(b"\0")
        elif wound == 3:
            data[place:place] = data[place : place + 2000] * chance.randint(1, 5)
        elif wound == 4:
            other = chance.choice(seeds)
            cut = chance.randrange(len(other))
            data[place : place + 500] = other[cut : cut + 500]
        elif wound == 5:
            data[place : place + 50] = chance.randbytes(50)
        else:
            data[min(place, 60)] = chance.randrange(256)
    return bytes(data)


def throw(child: Child, seeds: list[bytes], folder: Path, first: int, count: int) -> dict[str, int]:
    """Send `count` mutated files and tally the answers. Every crash must become an UnreadableAudio in the server."""
    tally: dict[str, int] = {"held": 0, "crash": 0}
    upload, clean = folder / "upload", folder / "clean"
    for number in range(first, first + count):
        upload.write_bytes(mutate(seeds, random.Random(number)))
        answer = child.ask(upload, clean)
        if answer is None:
            tally["crash"] += 1
            with pytest.raises(UnreadableAudio):
                intake.admit(upload, folder / "again")
        elif "held" in answer:
            tally["held"] += 1
            assert 0 < answer["held"]["seconds"] <= 600
        else:
            assert answer["code"] in ALLOWED, (number, answer)
            assert answer["message"]
            tally[answer["code"]] = tally.get(answer["code"], 0) + 1
        if number % 50 == 0:
            child.measure()
    return tally


def test_hundreds_of_mutated_uploads_each_get_one_clear_answer(child, seeds, tmp_path):
    tally = throw(child, seeds, tmp_path, 0, 500)
    # Both outcomes must occur, or the mutations are too weak or too strong to say anything.
    assert tally["held"] > 50
    assert tally[UnreadableAudio.code] > 50
    assert child.peak_mb < CHILD_RSS_MB


@pytest.mark.slow
def test_ten_thousand_mutated_uploads_leave_the_server_whole_and_small(seeds, tmp_path):
    children = [Child(), Child()]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        tallies = list(pool.map(throw, children, [seeds] * 2, folders, [500, 5_500], [5_000, 5_000]))
    for child in children:
        child.close()
        assert child.peak_mb < CHILD_RSS_MB
    assert sum(sum(tally.values()) for tally in tallies) == 10_000


def test_an_upload_becomes_a_clean_copy_with_the_same_sound(tmp_path):
    clip = noise(0.5, 44_100)
    audio.encode(clip, tmp_path / "upload", "wav")
    held = intake.admit(tmp_path / "upload", tmp_path / "clean")
    assert (held.seconds, held.sample_rate_hz, held.channels) == (0.5, 44_100, 2)
    back = audio.decode(tmp_path / "clean").samples
    assert np.abs(back - clip.samples).max() < 2**-23
    assert (tmp_path / "clean").read_bytes()[:4] == b"fLaC"


def test_the_clean_copy_of_a_loud_upload_is_turned_down(tmp_path):
    soundfile.write(tmp_path / "upload", noise(0.5, 32_000).samples.T * 9, 32_000, format="WAV", subtype="FLOAT")
    held = intake.admit(tmp_path / "upload", tmp_path / "clean")
    assert held.peak == 1.0
    assert audio.probe(tmp_path / "clean").peak == pytest.approx(1.0, abs=1e-6)


def test_a_rate_that_flac_has_not_is_brought_to_the_nearest(tmp_path):
    soundfile.write(tmp_path / "upload", np.zeros(96_001), 96_001, format="WAV")
    held = intake.admit(tmp_path / "upload", tmp_path / "clean")
    assert (held.sample_rate_hz, held.frames) == (96_000, 96_000)
    assert audio.probe(tmp_path / "clean").frames == 96_000


@pytest.mark.parametrize("kind", ["nothing at all", "NaN", "a picture without sound", "a FLAC that claims weeks"])
def test_a_refusal_keeps_its_words_on_the_way_out_of_the_child(tmp_path, kind):
    make, words = HOSTILE[kind]
    make(tmp_path / "upload.wav")
    with pytest.raises(UnreadableAudio, match=words):
        intake.admit(tmp_path / "upload.wav", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_a_clip_over_the_limit_is_too_long(tmp_path):
    audio.encode(noise(2, 32_000), tmp_path / "upload", "wav")
    with pytest.raises(ClipTooLong, match="longer than 1 s"):
        intake.admit(tmp_path / "upload", tmp_path / "clean", max_s=1.0)


def test_a_decoder_that_crashes_is_an_unreadable_file_and_nothing_more(tmp_path, monkeypatch):
    audio.encode(noise(1, 32_000), tmp_path / "upload", "wav")
    (tmp_path / "clean").write_bytes(b"half")
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(intake, "child_command", lambda: crash)
    with pytest.raises(UnreadableAudio, match="crashes its decoder"):
        intake.admit(tmp_path / "upload", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize("said", [b"", b'{"held": {"sec', b"\xff\xfe noise", b"noise"])
def test_a_decoder_that_talks_nonsense_is_an_unreadable_file(tmp_path, monkeypatch, said):
    audio.encode(noise(1, 32_000), tmp_path / "upload", "wav")
    talk = f"import sys; sys.stdout.buffer.write({said!r}); sys.stderr.buffer.write(bytes([255]) * 2**20)"
    monkeypatch.setattr(intake, "child_command", lambda: [sys.executable, "-c", talk])
    with pytest.raises(UnreadableAudio, match="crashes its decoder"):
        intake.admit(tmp_path / "upload", tmp_path / "clean")


def test_what_a_decoder_complains_is_not_kept_in_memory(tmp_path, monkeypatch):
    audio.encode(noise(1, 32_000), tmp_path / "upload", "wav")
    talk = "import sys; [sys.stderr.buffer.write(bytes(2**20)) for _ in range(50)]"
    monkeypatch.setattr(intake, "child_command", lambda: [sys.executable, "-c", talk])
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableAudio):
            intake.admit(tmp_path / "upload", tmp_path / "clean")
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_a_decoder_that_never_ends_is_stopped(tmp_path, monkeypatch):
    audio.encode(noise(1, 32_000), tmp_path / "upload", "wav")
    monkeypatch.setattr(intake, "child_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(UnreadableAudio, match="longer than 1 s to decode"):
        intake.admit(tmp_path / "upload", tmp_path / "clean", timeout_s=1.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_room_for_the_clean_copy_is_a_full_disk(tmp_path):
    audio.encode(noise(1, 32_000), tmp_path / "upload", "wav")
    # A link to the device stands in for a full disk: the child writes through it.
    (tmp_path / "clean").symlink_to("/dev/full")
    request = {"upload": str(tmp_path / "upload"), "clean": str(tmp_path / "clean"), "max_s": 60.0}
    assert intake._answer(request)["code"] == DiskFull.code


def test_a_small_file_that_unpacks_to_much_is_taken_in_without_much_memory(tmp_path):
    """Fifteen minutes of 48 kHz stereo silence, 350 MB decoded, in a file of a few hundred kB."""
    with soundfile.SoundFile(tmp_path / "upload", "w", 48_000, 2, format="FLAC", subtype="PCM_16") as bomb:
        for _ in range(15 * 60 * 48_000 // 65_536):
            bomb.write(np.zeros((65_536, 2), np.int16))
    assert (tmp_path / "upload").stat().st_size < 500_000
    one = Child()
    try:
        answer = one.ask(tmp_path / "upload", tmp_path / "clean", max_s=1000.0)
        one.measure()
    finally:
        one.close()
    assert answer is not None
    assert answer["held"]["seconds"] == pytest.approx(900, abs=2)
    assert one.peak_mb < 150
    assert (tmp_path / "clean").stat().st_size < 500_000
