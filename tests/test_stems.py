"""Splitting through the real demucs code, with small weights that the tests make."""

from __future__ import annotations

import errno
import importlib
import io
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from modules import audio, settings, stems
from modules.contract import (
    Cancelled,
    ClipTooLong,
    DiskFull,
    InvalidParameter,
    ModelBroken,
    ModelMissing,
    UnreadableAudio,
)  # fmt: skip
from tests import loopback_hub, separators
from tests.test_hub import point_client_at

ALL = separators.SOURCES
HELD_OUT = (9_000_002, 9_000_020)
"""Pieces of training/separator.py."""
Samples = npt.NDArray[np.float32]


def nothing(*_: Any) -> None:
    pass


def decibels(difference: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(difference).mean() / np.square(reference).mean() + 1e-30))


def band(seconds: float, rate_hz: int = separators.RATE_HZ) -> Samples:
    """A mix of known parts, float32 [2, T]: drums, a bass line, chords."""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(7).standard_normal(len(t))
    drums = noise * np.exp(-((t * 2) % 1) * 12) * 0.3
    bass = np.sin(2 * np.pi * 55 * 2 ** (np.floor(t) % 3 / 12) * t) * 0.25
    chords = sum(np.sin(2 * np.pi * f * t) for f in (261.6, 329.6, 392.0)) * 0.08
    return np.stack([drums + bass + chords, drums * 0.6 + bass + chords * 1.2]).astype(np.float32)


def write(path: Path, samples: Samples, rate_hz: int = separators.RATE_HZ, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples.T, rate_hz, subtype=subtype)
    return path


def read(path: Path) -> tuple[Samples, int]:
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.T, rate_hz


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    separators.make_folder(root)
    return root


@pytest.fixture(scope="module")
def separator(models_dir: Path) -> stems.Separator:
    return stems.Separator(offline(models_dir))


def offline(models_dir: Path, *flags: str) -> settings.Settings:
    return settings.parse(
        ["--models-dir", str(models_dir), "--offline", "--device", "cpu", "--threads", "1", *flags], env={}
    )


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return write(tmp_path / "song.wav", band(2.1))


def split(
    separator: stems.Separator, source: Path, wanted: tuple[str, ...] = ALL, *, named: str = "test-stems",
    progress: Callable[..., None] = nothing, check: stems.Check = nothing,
) -> stems.Split:  # fmt: skip
    out = source.parent / "out"
    return separator.split(source, out, wanted, separator=named, progress=progress, check=check)


# ------------------------------------------------------------------------------------------- the split itself
def test_the_stems_are_those_of_demucs_own_apply_model(separator: stems.Separator, song: Path) -> None:
    import torch
    from demucs.apply import apply_model

    made = split(separator, song)
    mix = torch.from_numpy(read(song)[0])
    reference = mix.mean(0)
    scale = reference.std() + 1e-8
    normal = ((mix - reference.mean()) / scale)[None]
    theirs = apply_model(separators.model(1), normal, shifts=0, overlap=stems.OVERLAP)[0] * scale + reference.mean()
    for name, expected in zip(ALL, theirs.numpy(), strict=True):
        got, rate_hz = read(made.paths[name])
        assert rate_hz == separators.RATE_HZ
        assert decibels(got - expected, expected) < -90


@pytest.mark.parametrize(
    ("rate_hz", "channels", "seconds"),
    [(44_100, 2, 2.001), (32_000, 1, 2.3), (48_000, 2, 1.9), (8_000, 1, 0.21), (96_000, 2, 1.7)],
)
def test_stems_have_the_sources_exact_length_rate_and_channels(
    separator: stems.Separator, tmp_path: Path, rate_hz: int, channels: int, seconds: float
) -> None:
    samples = band(seconds, rate_hz)[:channels]
    source = write(tmp_path / "song.wav", samples, rate_hz)
    made = split(separator, source, ("drums", "vocals"))
    assert list(made.paths) == ["drums", "vocals"]
    for path in made.paths.values():
        about = soundfile.info(path)
        assert (about.samplerate, about.channels, about.frames) == (rate_hz, channels, samples.shape[1])
        assert about.subtype == "FLOAT"
        assert np.abs(read(path)[0]).max() > 0


@pytest.mark.parametrize(("rate_hz", "channels"), [(44_100, 2), (32_000, 2), (48_000, 1), (22_050, 2)])
def test_a_network_that_changes_nothing_gives_back_the_song_to_the_sample(
    separator: stems.Separator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, channels: int
) -> None:
    monkeypatch.setattr(stems._Network, "__call__", lambda _self, heard: heard[None])
    t = np.arange(rate_hz * 5 + 17) / rate_hz
    tone = (np.sin(2 * np.pi * (200 + 300 * t) * t) * 0.4).astype(np.float32)
    samples = np.stack([tone, -0.5 * tone])[:channels]
    source = write(tmp_path / "song.wav", samples, rate_hz)
    got, _ = read(split(separator, source, ("bass",)).paths["bass"])
    inner = slice(200, -200)  # the resampler's filter needs some music on both sides
    assert got.shape == samples.shape
    assert decibels(got[:, inner] - samples[:, inner], samples) < -80


def test_the_same_song_gives_the_same_bytes_whatever_the_random_state(separator: stems.Separator, song: Path) -> None:
    import random

    first = {name: path.read_bytes() for name, path in split(separator, song).paths.items()}
    random.seed(99)
    again = {name: path.read_bytes() for name, path in split(separator, song).paths.items()}
    assert first == again


def test_a_fine_tuned_bag_runs_only_the_models_that_a_wanted_stem_needs(tmp_path: Path, song: Path) -> None:
    import torch
    from demucs.apply import BagOfModels, apply_model

    one_hot = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
    folder = separators.make_folder(tmp_path / "models", "bag", seeds=(1, 2, 3, 4), weights=one_hot)
    separator = stems.Separator(offline(folder.parent))
    made = split(separator, song, ("vocals",), named="bag")
    loaded = separator._loaded
    assert loaded is not None
    assert stems._Network(loaded, [3], nothing)._used == [3]
    mix = torch.from_numpy(read(song)[0])
    mono = mix.mean(0)
    bag = BagOfModels([separators.model(seed) for seed in (1, 2, 3, 4)], one_hot)
    theirs = apply_model(bag, ((mix - mono.mean()) / mono.std())[None], shifts=0, overlap=stems.OVERLAP)[0, 3]
    expected = (theirs * mono.std() + mono.mean()).numpy()
    assert decibels(read(made.paths["vocals"])[0] - expected, expected) < -90


def test_progress_counts_segments_up_to_the_last(separator: stems.Separator, song: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    split(separator, song, progress=lambda phase, done, total, _rate: seen.append((phase, done, total)))
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert [phase for phase in phases if phase != "loading"] == ["preparing", "splitting", "saving"]
    done = [done for phase, done, _ in seen if phase == "splitting"]
    assert done == sorted(done)
    assert done[-1] == 5
    assert {total for phase, _, total in seen if phase == "splitting"} == {5}
    assert len(done) > 30  # within a segment too


def test_a_cancel_is_honoured_within_a_segment_and_leaves_nothing(separator: stems.Separator, song: Path) -> None:
    reached: list[float] = []

    def check() -> None:
        if reached and reached[-1] >= 1.4:
            raise Cancelled("stop")

    def progress(phase: str, done: float, _total: float, _rate: float | None) -> None:
        if phase == "splitting":
            reached.append(done)

    with pytest.raises(Cancelled):
        split(separator, song, progress=progress, check=check)
    assert reached[-1] < 1.6
    assert not (song.parent / "out").exists()
    assert split(separator, song, ("bass",)).paths["bass"].exists()  # and the next one works


def test_a_segment_that_overflows_in_half_precision_is_done_again_in_full(
    separator: stems.Separator, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU only the way back can be shown: the network is asked in half precision once, and never again."""
    import dataclasses

    import torch

    expected = read(split(separator, song, ("bass",)).paths["bass"])[0]
    loaded = separator._loaded
    assert loaded is not None
    half: list[bool] = []

    def forward(mix: Any) -> Any:
        half.append(torch.is_autocast_enabled("cpu"))
        return loaded.models[0](mix) * (float("inf") if half[-1] else 1)

    network = stems._Network(dataclasses.replace(loaded, half=True), [1], nothing)
    song_ = stems._survey(song, nothing, nothing)
    heard = stems._Stream(song_, loaded.sample_rate_hz, keep=0).take(0, loaded.segment_frames)
    monkeypatch.setattr(network, "_loaded", dataclasses.replace(loaded, half=True, models=(forward,)))
    assert network.precision == "float16"
    with torch.inference_mode():
        first, again = network(heard), network(heard)
    assert half == [True, False, False]
    assert network.precision == "float32"
    np.testing.assert_array_equal(first, again)
    stride = int((1 - stems.OVERLAP) * loaded.segment_frames)
    alone = first[0][:, :stride] * song_.std + song_.mean  # before the second segment joins in
    assert decibels(alone - expected[:, :stride], expected[:, :stride]) < -90


def test_silence_inside_a_song_stays_silent_without_running_the_network(
    separator: stems.Separator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = band(6.0) + np.float32(0.01)
    samples[:, separators.RATE_HZ :] = 0
    runs: list[int] = []
    separate = stems._Network._separate

    def counted(self: stems._Network, *args: Any) -> Any:
        runs.append(1)
        return separate(self, *args)

    monkeypatch.setattr(stems._Network, "_separate", counted)
    got, _ = read(split(separator, write(tmp_path / "song.wav", samples), ("drums",)).paths["drums"])
    assert 0 < len(runs) <= 3
    assert np.abs(got[:, 3 * separators.RATE_HZ :]).max() < 1e-4


def test_memory_does_not_grow_with_the_song(
    separator: stems.Separator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    monkeypatch.setattr(stems._Network, "__call__", lambda _self, heard: np.stack([heard, heard]))
    source = write(tmp_path / "song.wav", np.tile(band(2.0, 8_000), (1, 150)), 8_000, subtype="PCM_16")  # 5 minutes
    split(separator, source, ("bass", "drums"))  # everything is loaded once
    tracemalloc.start()
    try:
        split(separator, source, ("bass", "drums"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # the song in float stereo at 44.1 kHz alone would be 106 MB


# ------------------------------------------------------------------------------------------- the numerics
@given(frames=st.integers(1, 2_000), segment=st.integers(4, 300), overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_segments_cover_every_frame_and_are_apply_models(frames: int, segment: int, overlap: float) -> None:
    planned = stems.plan(frames, segment, overlap)
    covered = np.zeros(frames, dtype=int)
    for part in planned:
        covered[part.start : part.end] += 1
        assert part.skip >= 0
        assert part.end - part.seen <= segment
    assert covered.min() >= 1
    theirs = list(range(0, frames, int((1 - overlap) * segment)))
    assert [part.start for part in planned] == theirs
    assert planned[-1].end == frames


@given(data=st.data())
def test_joining_piece_by_piece_is_joining_at_once(data: st.DataObject) -> None:
    segment = data.draw(st.integers(4, 60))
    frames = data.draw(st.integers(1, 400))
    planned = stems.plan(frames, segment, 0.25)
    rng = np.random.default_rng(frames)
    answers = [rng.standard_normal((2, 2, part.end - part.start)).astype(np.float32) for part in planned]
    weight = stems.triangle(segment)
    total, weights = np.zeros((2, 2, frames)), np.zeros(frames)
    joined = stems.OverlapAdd(segment, (2, 2))
    pieces = []
    for index, (part, answer) in enumerate(zip(planned, answers, strict=True)):
        total[..., part.start : part.end] += answer * weight[: part.end - part.start]
        weights[part.start : part.end] += weight[: part.end - part.start]
        joined.add(part, answer)
        pieces.append(joined.pop(planned[index + 1].start if index + 1 < len(planned) else frames))
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), total / weights, rtol=1e-4, atol=1e-5)


def test_the_wav_header_is_one_that_others_read(tmp_path: Path) -> None:
    samples = np.array([[0.5, -1.5, 0.25]], dtype="<f4")
    content = stems.float_wav_header(44_100, 1, 3) + samples.T.tobytes()
    got, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate_hz == 44_100
    assert got.tolist() == [0.5, -1.5, 0.25]  # above full scale too
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8


# ------------------------------------------------------------------------------------------- bad input
def _no_audio(path: Path) -> None:
    path.write_bytes(b"This is a letter, not a song.\n" * 50)


def _silence(path: Path) -> None:
    write(path, np.zeros((2, separators.RATE_HZ), dtype=np.float32))


def _eight_channels(path: Path) -> None:
    write(path, np.tile(band(0.5), (4, 1)))


def _nan(path: Path) -> None:
    samples = band(1.0)
    samples[0, 20_000] = np.nan
    write(path, samples)


def _lies_about_its_length(path: Path) -> None:
    """A FLAC cut in half: its header still promises everything."""
    whole = io.BytesIO()
    soundfile.write(whole, band(2.0).T, separators.RATE_HZ, format="FLAC")
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def _three_hours(path: Path) -> None:
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as file:
        minute = np.zeros(8_000 * 60, dtype=np.float32)
        for _ in range(181):
            file.write(minute)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (_no_audio, UnreadableAudio, "not audio"),
        (_silence, UnreadableAudio, "silent"),
        (_eight_channels, UnreadableAudio, "8 channels"),
        (_nan, UnreadableAudio, "NaN"),
        (_lies_about_its_length, UnreadableAudio, "damaged|cut off"),
        (_three_hours, ClipTooLong, "120 minutes"),
        (_empty, UnreadableAudio, "empty"),
    ],
)
def test_a_file_that_cannot_be_split_is_one_clear_error_and_no_leftovers(
    separator: stems.Separator, tmp_path: Path, make: Callable[[Path], None], error: type[Exception], words: str
) -> None:
    source = tmp_path / "odd.wav"
    make(source)
    with pytest.raises(error, match=words):
        split(separator, source)
    assert sorted(tmp_path.iterdir()) == [source]


def test_an_unknown_stem_and_an_unknown_separator_are_named(separator: stems.Separator, song: Path) -> None:
    with pytest.raises(InvalidParameter, match="makes no 'piano'") as caught:
        split(separator, song, ("piano",))
    assert caught.value.field == "stems"
    with pytest.raises(InvalidParameter, match="'htdemucs_9'") as caught:
        split(separator, song, named="htdemucs_9")
    assert caught.value.field == "separator"


def test_a_disk_that_is_too_small_is_said_before_anything_is_computed(
    separator: stems.Separator, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("modules.stems.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="MB"):
        split(separator, song)
    assert not (song.parent / "out").exists()


def test_a_disk_that_fills_in_the_middle_leaves_nothing(
    separator: stems.Separator, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = stems._StemFile._append
    written: list[int] = []

    def fills(self: stems._StemFile, frames: Samples) -> None:
        written.append(len(frames))
        if len(written) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, frames)

    monkeypatch.setattr(stems._StemFile, "_append", fills)
    with pytest.raises(DiskFull, match="disk is full"):
        split(separator, song)
    assert sum(written) > 0
    assert not (song.parent / "out").exists()


# ------------------------------------------------------------------------------------------- which separator
def test_stems_that_exist_cost_nothing_and_others_are_added(separator: stems.Separator) -> None:
    info = separator.resolve("test-stems")
    assert separator.wanted("all", info, {}) == ALL
    assert separator.wanted("all", info, dict.fromkeys(ALL, "x.wav")) == ()
    assert separator.wanted("vocals", info, {"vocals": "vocals.wav"}) == ()
    assert separator.wanted("all", info, {"vocals": "vocals.wav"}) == ("drums", "bass", "other")


def test_the_sketch_is_the_default_only_while_no_real_separator_is_here(tmp_path: Path) -> None:
    separators.make_folder(tmp_path, "tiny-stems")
    separator = stems.Separator(offline(tmp_path))
    assert separator.resolve("auto").id == "tiny-stems"
    separators.make_folder(tmp_path, "mine", sketch=False)
    assert separator.resolve("auto").id == "mine"


def test_with_nothing_here_offline_says_every_missing_part(tmp_path: Path, song: Path) -> None:
    separator = stems.Separator(offline(tmp_path / "none"))
    with pytest.raises(ModelMissing) as caught:
        split(separator, song, named="htdemucs_ft")
    assert caught.value.details["missing"] == [
        "adefossez/HTDemucs-ft/htdemucs_ft.yaml",
        *(f"adefossez/HTDemucs-ft/{name}.safetensors" for name in ("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d")),
    ]
    assert separator.resolve("auto").state == "missing"


@pytest.mark.parametrize("klass", ["os.system", "subprocess.Popen", "builtins.exec", None])
def test_a_weights_file_that_names_another_class_is_not_obeyed(tmp_path: Path, song: Path, klass: str | None) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "models" / "evil"
    folder.mkdir(parents=True)
    proof = tmp_path / "proof"
    said = {} if klass is None else {"klass": klass, "args": json.dumps([f"touch {proof}"]), "kwargs": "{}"}
    save_file({"x": np.zeros(1, dtype=np.float32)}, folder / "sig.safetensors", metadata=said)
    (folder / "evil.yaml").write_text("models: [sig]\n")
    with pytest.raises(ModelBroken, match="no Demucs model"):
        split(stems.Separator(offline(folder.parent)), song, named="evil")
    assert not proof.exists()


def test_a_bag_file_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    folder = separators.make_folder(tmp_path, "sly")
    (folder / "sly.yaml").write_text("models: ['../test/sig1']\n")
    assert [info.id for info in stems.Separator(offline(tmp_path)).separators() if info.id == "sly"] == []


@pytest.mark.parametrize("spoil", ["cut", "keys", "absent"])
def test_broken_weights_are_said_in_words(tmp_path: Path, song: Path, spoil: str) -> None:
    from safetensors.numpy import save_file

    folder = separators.make_folder(tmp_path / "models", "worn")
    weights = folder / "sig1.safetensors"
    if spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif spoil == "keys":
        said = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps({"sources": ["a", "b"]})}
        save_file({"x": np.zeros(1, dtype=np.float32)}, weights, metadata=said)
    else:
        weights.unlink()
    with pytest.raises(ModelBroken, match="worn"):
        split(stems.Separator(offline(folder.parent)), song, named="worn")


def test_unloading_gives_the_weights_back(models_dir: Path, song: Path) -> None:
    separator = stems.Separator(offline(models_dir))
    split(separator, song, ("bass",))
    assert separator.memory_bytes > 100_000
    separator.unload()
    assert separator.memory_bytes == 0
    assert split(separator, song, ("bass",)).paths["bass"].exists()


# ------------------------------------------------------------------------------------------- from the hub
@pytest.fixture
def hub(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback_hub.Hub]:
    weights = (models_dir / "test-stems" / "sig1.safetensors").read_bytes()
    with loopback_hub.serve() as server:
        server.add("adefossez/HTDemucs", "htdemucs.yaml", b"models: ['955717e8']\n")
        server.add("adefossez/HTDemucs", "955717e8.safetensors", weights)
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def test_the_first_split_fetches_the_separator_and_the_next_needs_no_network(
    hub: loopback_hub.Hub, tmp_path: Path, song: Path
) -> None:
    online = settings.parse(["--models-dir", str(tmp_path / "none"), "--device", "cpu"], env={})
    separator = stems.Separator(online)
    assert separator.resolve("auto").state == "downloadable"
    seen: list[tuple[str, float, float]] = []
    split(separator, song, named="auto", progress=lambda phase, done, total, _r: seen.append((phase, done, total)))
    fetched = [(done, total) for phase, done, total in seen if phase == "downloading"]
    assert fetched[-1][0] == fetched[-1][1] == len(hub.files["adefossez/HTDemucs", "955717e8.safetensors"])
    asked = list(hub.requests)
    later = stems.Separator(offline(tmp_path / "none"))
    assert later.resolve("auto").state == "ready"
    split(later, song, named="auto")
    assert hub.requests == asked


def test_a_cancelled_download_of_a_separator_goes_on_later(
    hub: loopback_hub.Hub, tmp_path: Path, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.hub.CHUNK_BYTES", 1 << 16)
    separator = stems.Separator(settings.parse(["--models-dir", str(tmp_path / "none"), "--device", "cpu"], env={}))

    def cancel(phase: str, done: float, _total: float, _rate: float | None) -> None:
        if phase == "downloading" and done > 100_000:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        split(separator, song, named="htdemucs", progress=cancel)
    made = split(separator, song, named="htdemucs")
    assert hub.gets()[-1][1] is not None  # a range: not from the beginning
    assert audio.probe(made.paths["vocals"]).frames == audio.probe(song).frames


# ------------------------------------------------------------------------------------- the one that comes with it
def test_the_embedded_separator_takes_pieces_apart(tmp_path: Path) -> None:
    """Two pieces that its training never heard: one of rendered notes, one as the embedded model plays."""
    corpus = importlib.import_module("training.separator")
    embedded = stems.Separator(settings.parse(["--offline", "--device", "cpu", "--threads", "1"], env={}))
    gains: list[float] = []
    for number in HELD_OUT:
        parts = corpus.stems_of(number, 6.0, training=False)
        mix = parts.sum(0)
        source = write(tmp_path / f"{number}.wav", mix)
        made = embedded.split(source, tmp_path, ALL, separator="tiny-stems", progress=nothing, check=nothing)
        for name, part in zip(corpus.STEMS, parts, strict=True):
            got, _ = read(made.paths[name])
            assert got.shape == part.shape
            if np.abs(part).max() > 0.01:
                gains.append(si_sdr(got, part) - si_sdr(mix, part))
    assert len(gains) >= 6
    assert np.mean(gains) > 4
    assert min(gains) > 0


def si_sdr(estimate: Samples, target: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    wanted = (estimate * target).sum() / (target**2).sum() * target
    return float(10 * np.log10((wanted**2).sum() / ((estimate - wanted) ** 2).sum()))
