"""The library on a real disk: names, pairs, crashes, links, search, limits."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modules import audio, library
from modules.contract import (
    Conflict,
    DiskFull,
    InvalidParameter,
    LibraryChange,
    NotFound,
    TrackPatch,
    TrackQuery,
)
from modules.library import Library, track_name
from tests.library_parts import BEEP_FRAMES, WHEN, add, add_stems, draft, fill, write_beep
from tests.pace import assert_within

COLD_SCAN_S, PAGE_S, SEARCH_S = 1.5, 0.05, 0.05
"""The promised times for 10,000 tracks, in processor time: the machine may be shared with other work."""


def files_in(lib_dir: Path) -> set[str]:
    """Everything under the data folder but the lock."""
    found = {str(path.relative_to(lib_dir)) for path in lib_dir.rglob("*") if not path.is_dir() or path.is_symlink()}
    return found - {"audio/.studio/lock"}


@pytest.fixture
def open_library(tmp_path):
    opened: list[Library] = []

    def opening(**kwargs) -> Library:
        while opened:
            opened.pop().close()
        lib: Library = Library(tmp_path / "audio", tmp_path / "stems", **kwargs)
        opened.append(lib)
        return lib

    yield opening
    while opened:
        opened.pop().close()


@pytest.fixture
def lib(open_library: Callable[[], Library]) -> Library:
    return open_library()


# ---------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("artist", "model", "seed", "name"),
    [
        ("Nina", "small", 42, "Nina_small_42_09032026_07_05"),
        ("", "melody", None, "melody_09032026_07_05"),
        ("", "small", 0, "small_0_09032026_07_05"),
        ("坂本 龍一", "large", None, "坂本 龍一_large_09032026_07_05"),
        ("Виктор Цой", "small", 1, "Виктор Цой_small_1_09032026_07_05"),
        ("AC/DC", "small", None, "AC-DC_small_09032026_07_05"),
        ("../../etc", "small", None, "etc_small_09032026_07_05"),
        ("CON.mp3", "small", None, "CON_.mp3_small_09032026_07_05"),
        ("a\r\nb\x00\u202ec", "small", None, "a bc_small_09032026_07_05"),
        ("...", "small", None, "small_09032026_07_05"),
        ("", "owner/my model", None, "owner-my model_09032026_07_05"),
        ("Ame\u0301lie", "small", None, "Am\u00e9lie_small_09032026_07_05"),
    ],
)
def test_a_name_says_artist_model_seed_and_minute(artist, model, seed, name):
    assert track_name(artist, model, seed, WHEN) == name


@settings(max_examples=300, deadline=None)
@given(artist=st.text(max_size=80), model=st.text(max_size=80), seed=st.none() | st.integers(0, 2**31 - 1))
@example(artist="CON", model="", seed=None)
@example(artist="\u0130" * 60, model="🎹" * 50, seed=2**31 - 1)
def test_any_artist_and_model_make_a_name_that_every_system_takes(artist, model, seed):
    name = track_name(artist, model, seed, WHEN)
    assert re.search(r"(^|_)09032026_07_05$", name)
    assert len(name.encode()) <= library.MAX_NAME_BYTES - len("_99999")
    assert unicodedata.is_normalized("NFC", name)
    assert not set(name) & set('<>:"/\\|?*')
    assert all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in name)
    assert name == name.strip(" .")
    assert name.split(".")[0].strip().upper() not in library._WINDOWS_DEVICES


def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(lib, tmp_path):
    first = add(lib)
    assert first.name == "small_7_09032026_07_05"
    (tmp_path / "audio" / f"{first.name}_2.mp3").write_bytes(b"a person's own")
    third = lib.reserve_name("", "small", 7, WHEN)
    assert (third, add(lib).name) == (f"{first.name}_3", f"{first.name}_4")
    lib.release_name(third)
    assert lib.reserve_name("", "small", 7, WHEN) == third


def test_names_that_differ_in_case_alone_are_one_name(open_library):
    lib = open_library()
    add(lib, model="small")
    assert lib.reserve_name("", "SMALL", 7, WHEN) == "SMALL_7_09032026_07_05_2"
    assert open_library().reserve_name("", "Small", 7, WHEN) == "Small_7_09032026_07_05_2"


def test_a_file_that_comes_after_the_name_was_reserved_is_not_overwritten(lib, tmp_path):
    name = lib.reserve_name("", "small", 7, WHEN)
    (tmp_path / "audio" / f"{name}.wav").write_bytes(b"a person's own")
    track = lib.save(draft(name), write_beep)
    assert track.name == f"{name}_2"
    assert (tmp_path / "audio" / f"{name}.wav").read_bytes() == b"a person's own"


# ---------------------------------------------------------------------------------------------------- pairs
def test_a_saved_track_is_a_pair_that_the_next_start_finds_again(open_library, tmp_path):
    lib = open_library()
    saved = add(lib, tokens=True, prompt="тёплое пианино")
    assert files_in(tmp_path) == {f"audio/{saved.name}{suffix}" for suffix in (".wav", ".json", ".tokens.npz")}
    assert saved.bytes == lib.audio_path(saved.name).stat().st_size
    again = open_library()
    assert again.get(saved.name) == saved
    assert again.count() == 1
    codes = again.tokens(saved.name)
    assert codes is not None
    assert (codes.dtype, codes.tolist()) == (np.int64, np.arange(40).reshape(4, 10).tolist())


def test_the_json_is_for_people_too(lib, tmp_path):
    saved = add(lib, prompt="тёплое пианино")
    text = (tmp_path / "audio" / f"{saved.name}.json").read_text(encoding="utf-8")
    assert '  "prompt": "тёплое пианино",\n' in text


def test_a_failed_write_leaves_nothing_and_gives_the_name_back(lib, tmp_path):
    name = lib.reserve_name("", "small", 7, WHEN)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("encoder")

    with pytest.raises(RuntimeError, match="encoder"):
        lib.save(draft(name), fail)
    assert files_in(tmp_path) == set()
    assert lib.reserve_name("", "small", 7, WHEN) == name


STEPS = ("fsync", "rename", "replace", "open")


@pytest.mark.parametrize("step", range(14))
def test_a_disk_that_fills_at_any_step_of_a_save_leaves_nothing(lib, tmp_path, monkeypatch, step):
    kept = add(lib, tokens=True)
    before = files_in(tmp_path)
    name = lib.reserve_name("", "small", 8, WHEN)
    calls = fail_at(monkeypatch, step)
    try:
        saved = lib.save(draft(name), write_beep, np.zeros((4, 10), np.int64))
    except DiskFull:
        assert files_in(tmp_path) == before
        assert lib.count() == 1
        assert lib.page(TrackQuery())[0] == [kept]
    else:
        assert calls["count"] <= step, "the injected failure was swallowed"
        assert lib.get(saved.name) == saved


def fail_at(monkeypatch, step: int) -> dict[str, int]:
    """Let the `step`-th sync or rename from now on find the disk full; the ones before and after work."""
    calls = {"count": 0}

    def counted(real):
        def call(*args, **kwargs):
            calls["count"] += 1
            if calls["count"] == step + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    return calls


@pytest.mark.parametrize("step", range(3))
def test_a_disk_that_fills_during_a_patch_leaves_the_track_as_it_was(lib, tmp_path, monkeypatch, step):
    saved = add(lib)
    before = files_in(tmp_path)
    text = (tmp_path / "audio" / f"{saved.name}.json").read_text(encoding="utf-8")
    fail_at(monkeypatch, step)
    if step < 2:
        with pytest.raises(DiskFull):
            lib.patch(saved.name, TrackPatch(favourite=True))
        assert lib.get(saved.name) == saved
        assert (tmp_path / "audio" / f"{saved.name}.json").read_text(encoding="utf-8") == text
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("step", range(8))
def test_a_disk_that_fills_while_stems_come_in_leaves_the_track_without_them(lib, tmp_path, monkeypatch, step):
    saved = add(lib)
    before = files_in(tmp_path)
    fail_at(monkeypatch, step)
    with pytest.raises(DiskFull):
        add_stems(lib, saved.name, tmp_path.parent / f"{tmp_path.name}-tmp")
    assert lib.get(saved.name) == saved
    assert files_in(tmp_path) == before


# ------------------------------------------------------------------------------------------- locks, deletion
def test_favourite_and_locked_are_kept_on_disk(open_library):
    lib = open_library()
    name = add(lib).name
    assert lib.patch(name, TrackPatch(favourite=True)).favourite
    assert lib.patch(name, TrackPatch(locked=True)).favourite
    again = open_library().get(name)
    assert (again.favourite, again.locked) == (True, True)


def test_deleting_takes_everything_that_belongs_to_the_track_and_nothing_else(lib, tmp_path):
    kept, gone = add(lib, tokens=True), add(lib, tokens=True)
    add_stems(lib, gone.name, tmp_path / "split")
    (tmp_path / "audio" / f"{gone.name}.mp3").write_bytes(b"made by hand")
    (tmp_path / "audio" / "notes.txt").write_text("mine")
    lib.delete(gone.name)
    assert files_in(tmp_path) == {
        f"audio/{kept.name}.wav", f"audio/{kept.name}.json", f"audio/{kept.name}.tokens.npz",
        f"audio/{gone.name}.mp3", "audio/notes.txt",
    }  # fmt: skip
    with pytest.raises(NotFound, match="no track"):
        lib.get(gone.name)


def test_a_locked_track_is_not_deleted(lib):
    name = add(lib).name
    lib.patch(name, TrackPatch(locked=True))
    with pytest.raises(Conflict, match="locked"):
        lib.delete(name)
    assert lib.delete_unlocked() == (0, 1)
    assert lib.get(name).locked


def test_a_track_in_use_is_not_deleted_until_it_is_free(lib):
    name = add(lib).name
    with lib.hold(name) as held, lib.hold(name):
        assert held.name == name
        with pytest.raises(Conflict, match="used by a job"):
            lib.delete(name)
        assert lib.delete_unlocked() == (0, 1)
    lib.delete(name)
    assert lib.count() == 0


def test_cleaning_up_removes_all_but_the_locked(lib, tmp_path):
    names = [add(lib, tokens=True).name for _ in range(6)]
    for name in names[:2]:
        lib.patch(name, TrackPatch(locked=True))
    assert lib.delete_unlocked() == (4, 2)
    assert {track.name for track in lib.page(TrackQuery())[0]} == set(names[:2])
    assert len(files_in(tmp_path)) == 6


def test_a_freed_name_can_be_used_again(lib):
    name = add(lib).name
    lib.delete(name)
    assert lib.reserve_name("", "small", 7, WHEN) == name


def test_a_file_that_cannot_be_removed_now_goes_at_the_next_start(open_library, tmp_path, monkeypatch):
    lib = open_library()
    name = add(lib, tokens=True).name
    real = Path.unlink

    def busy(path, *args, **kwargs):
        if path.suffix == ".wav":
            raise PermissionError(errno.EACCES, "in use")
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", busy)
    lib.delete(name)
    assert lib.count() == 0
    assert lib.reserve_name("", "small", 7, WHEN) != name
    monkeypatch.undo()
    assert f"audio/{name}.wav" in files_in(tmp_path)
    open_library()
    assert files_in(tmp_path) == set()


# ---------------------------------------------------------------------------------------------------- stems
def test_stems_are_kept_with_their_track(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    add_stems(lib, name, tmp_path / "split")
    track = add_stems(lib, name, tmp_path / "split", ("vocals",))
    assert track.stems == {"drums": "drums.wav", "bass": "bass.wav", "vocals": "vocals.wav"}
    assert audio.probe(open_library().stem_path(name, "vocals")).seconds == pytest.approx(0.1)


@pytest.mark.parametrize("stem", ["piano", "..", "../drums", "drums.wav", "", "drums\0"])
def test_a_stem_that_is_not_there_is_not_found(lib, tmp_path, stem):
    name = add(lib).name
    add_stems(lib, name, tmp_path / "split")
    with pytest.raises(NotFound):
        lib.stem_path(name, stem)


def test_a_stem_of_an_unknown_name_is_refused(lib, tmp_path):
    with pytest.raises(InvalidParameter, match=r"'\.\./x' is none of"):
        lib.add_stems(add(lib).name, {"../x": tmp_path / "x"}, {})


# ------------------------------------------------------------------------------------------ hostile folders
HOSTILE_NAMES = ["..", "../secret", "%2e%2e/secret", "..\\secret", "//secret", "\0", "", ".", "a" * 5000, "nothing"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_not_in_the_index_reaches_no_file(lib, tmp_path, name):
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "secret.json").write_text("{}")
    asks = (
        lib.get,
        lib.audio_path,
        lib.tokens,
        lib.delete,
        lambda n: lib.peaks(n, 9),
        lambda n: lib.stem_path(n, "bass"),
    )
    for ask in asks:
        with pytest.raises(NotFound):
            ask(name)


def test_planted_links_are_never_followed(open_library, tmp_path):
    lib = open_library()
    name = add(lib, tokens=True).name
    add_stems(lib, name, tmp_path / "split")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "drums.wav").write_bytes(b"secret")
    for suffix in (".wav", ".tokens.npz"):
        path = tmp_path / "audio" / (name + suffix)
        path.unlink()
        path.symlink_to(secret / "drums.wav")
    (tmp_path / "stems" / name / "drums.wav").unlink()
    (tmp_path / "stems" / name / "drums.wav").symlink_to(secret / "drums.wav")
    with pytest.raises(NotFound):
        lib.audio_path(name)
    with pytest.raises(NotFound):
        lib.stem_path(name, "drums")
    assert lib.tokens(name) is None
    lib.delete(name)
    assert (secret / "drums.wav").read_bytes() == b"secret"


def test_a_linked_stems_folder_is_neither_read_nor_emptied(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "drums.wav").write_bytes(b"secret")
    (tmp_path / "stems" / name).symlink_to(secret)
    with pytest.raises(Conflict, match="is a link"):
        add_stems(lib, name, tmp_path / "split")
    lib = open_library()
    assert lib.get(name).stems == {}
    lib.delete(name)
    assert (secret / "drums.wav").read_bytes() == b"secret"
    assert not (tmp_path / "stems" / name).is_symlink()


def test_a_linked_pair_is_not_part_of_the_library(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    lib.close()
    for suffix in (".json", ".wav"):
        (tmp_path / "audio" / f"{name}{suffix}").rename(tmp_path / f"secret{suffix}")
        (tmp_path / "audio" / f"{name}{suffix}").symlink_to(tmp_path / f"secret{suffix}")
    assert open_library().count() == 0


@pytest.mark.parametrize("suffix", [".json", ".wav"])
def test_a_pair_of_which_one_half_is_a_link_is_left_alone(open_library, tmp_path, suffix):
    lib = open_library()
    name = add(lib).name
    lib.close()
    path = tmp_path / "audio" / (name + suffix)
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    assert open_library().count() == 0
    assert path.is_symlink()


def test_a_stems_folder_that_became_a_link_holds_no_stems(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    add_stems(lib, name, tmp_path / "split")
    (tmp_path / "stems" / name).rename(tmp_path / "secret")
    (tmp_path / "stems" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound):
        lib.stem_path(name, "drums")
    assert open_library().get(name).stems == {}


def test_a_linked_folder_of_our_own_is_refused(open_library, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / ".studio").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="is a link"):
        open_library()


@pytest.mark.parametrize("own", ["tmp", "lock"])
def test_what_we_keep_in_our_own_folder_may_not_be_a_link_either(open_library, tmp_path, own):
    (tmp_path / "audio" / ".studio").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "audio" / ".studio" / own).symlink_to(tmp_path / "secret")
    with pytest.raises(Conflict, match="is a link"):
        open_library()
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_planted_pipe_does_not_stop_the_start(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    for kind in ("save", "delete", "stems"):
        os.mkfifo(tmp_path / "audio" / ".studio" / "tmp" / f"x.{kind}")
    os.mkfifo(tmp_path / "audio" / "y.json")
    (tmp_path / "audio" / "y.wav").touch()
    assert open_library().get(name).name == name


def test_an_unreadable_json_does_not_cost_a_track_its_stems(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    add_stems(lib, name, tmp_path / "split")
    lib.close()
    (tmp_path / "audio" / f"{name}.json").write_text("{")
    (tmp_path / "audio" / ".studio" / "tmp" / f"{name}.stems").write_text("{")
    open_library()
    assert (tmp_path / "stems" / name / "drums.wav").exists()


def test_the_data_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "audio").symlink_to(tmp_path / "disk")
    with Library(tmp_path / "audio", tmp_path / "stems") as lib:
        assert lib.audio_path(add(lib).name).parent == tmp_path / "disk"


BROKEN_JSON = ["", "{", "[]", "{}", '{"name": 1}', "\ufeff" * 9, '{"a": ' * 5000, "x" * 300_000]


@pytest.mark.parametrize("text", BROKEN_JSON, ids=lambda text: repr(text[:8]))
def test_a_broken_json_is_set_aside_and_the_rest_goes_on(open_library, tmp_path, caplog, text):
    lib = open_library()
    good, bad = add(lib).name, add(lib).name
    lib.close()
    (tmp_path / "audio" / f"{bad}.json").write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        lib = open_library()
    assert [track.name for track in lib.page(TrackQuery())[0]] == [good]
    assert f"{bad}.json" in caplog.text
    assert (tmp_path / "audio" / f"{bad}.json.broken").read_text(encoding="utf-8") == text
    assert (tmp_path / "audio" / f"{bad}.wav").exists()


def test_a_json_of_a_later_version_keeps_its_track(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    lib.close()
    path = tmp_path / "audio" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema_version": 9, "mood": "blue"}))
    assert open_library().get(name).schema_version == 9


def test_a_json_that_names_other_files_reaches_none_of_them(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    lib.close()
    (tmp_path / "secret.wav").write_bytes(b"secret")
    path = tmp_path / "audio" / f"{name}.json"
    planted = {"file": "../secret.wav", "name": "../secret", "stems": {"drums": "../../secret.wav", "../secret": "x"}}
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **planted}))
    lib = open_library()
    assert lib.get(name).file == f"{name}.wav"
    assert lib.audio_path(name).parent == tmp_path / "audio"
    (tmp_path / "stems" / name).mkdir()
    (tmp_path / "stems" / "secret.wav").write_bytes(b"secret")
    lib = open_library()
    for stem in ("drums", "../secret"):
        with pytest.raises(NotFound):
            lib.stem_path(name, stem)
    lib.delete(name)
    assert (tmp_path / "secret.wav").exists()


def test_a_pair_that_a_person_renamed_is_known_by_its_new_name(open_library, tmp_path):
    lib = open_library()
    name = add(lib).name
    lib.close()
    for suffix in (".wav", ".json"):
        (tmp_path / "audio" / (name + suffix)).rename(tmp_path / "audio" / f"my song{suffix}")
    track = open_library().get("my song")
    assert (track.name, track.file) == ("my song", "my song.wav")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
@pytest.mark.parametrize("renamed", [b"caf\xe9", b"a\nb", "ж".encode() * 61, "a\u202eb".encode()])
def test_a_pair_under_a_name_that_cannot_travel_is_left_alone(open_library, tmp_path, renamed):
    lib = open_library()
    good, bad = add(lib).name, add(lib).name
    lib.close()
    folder = os.fsencode(tmp_path / "audio") + b"/"
    for suffix in (b".wav", b".json"):
        Path(os.fsdecode(folder + bad.encode() + suffix)).rename(os.fsdecode(folder + renamed + suffix))
    assert [track.name for track in open_library().page(TrackQuery())[0]] == [good]
    assert Path(os.fsdecode(folder + renamed + b".json")).exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 100], ids=["empty", "text", "cut zip"])
def test_tokens_that_cannot_be_read_are_as_good_as_none(lib, tmp_path, content):
    name = add(lib, tokens=True).name
    (tmp_path / "audio" / f"{name}.tokens.npz").write_bytes(content)
    assert lib.tokens(name) is None


def test_tokens_that_hide_a_pickle_are_not_opened(lib, tmp_path):
    name = add(lib, tokens=True).name
    trap = np.array([[Trap(str(tmp_path / "sprung"))]], dtype=object)
    np.savez(tmp_path / "audio" / f"{name}.tokens.npz", codes=trap)
    assert lib.tokens(name) is None
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_second_program_on_the_folder_is_told_so(lib, tmp_path):
    code = (
        "import sys; from pathlib import Path; from modules.library import Library\n"
        "from modules.contract import Conflict\n"
        "try: Library(Path(sys.argv[1]) / 'audio', Path(sys.argv[1]) / 'stems')\n"
        "except Conflict as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "another running program already uses the folder" in done.stdout
    assert str(tmp_path / "audio") in done.stdout
    with pytest.raises(Conflict):
        Library(tmp_path / "audio", tmp_path / "stems")


# -------------------------------------------------------------------------------------------- search, pages
@pytest.fixture
def five(lib) -> list[str]:
    facts: list[dict[str, Any]] = [
        {"prompt": "Warm LO-FI piano", "model": "small", "duration_s": 5.0},
        {"prompt": "тёплый Дождь", "model": "melody", "duration_s": 9.0, "asked": {"artist": "Цой"}},
        {"prompt": "drum and bass", "model": "small", "duration_s": 1.0, "format": "flac"},
        {"prompt": "Ame\u0301lie waltz", "model": "large", "duration_s": 9.0},
        {"prompt": "warm drums", "model": "small", "duration_s": 3.0},
    ]
    made = []
    for index, fact in enumerate(facts):
        created = (WHEN + timedelta(seconds=index)).isoformat()
        made.append(add(lib, created_at=created, seed=index, **fact).name)
    return made


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"sort": "oldest"}, [0, 1, 2, 3, 4]),
        ({"sort": "duration"}, [1, 3, 0, 4, 2]),
        ({"sort": "name"}, [3, 1, 0, 2, 4]),
        ({"q": "warm"}, [4, 0]),
        ({"q": "PIANO lo-fi"}, [0]),
        ({"q": "дождь"}, [1]),
        ({"q": "цой"}, [1]),
        ({"q": "am\u00e9lie"}, [3]),
        ({"q": "09032026"}, [4, 3, 2, 1, 0]),
        ({"q": "nothing"}, []),
        ({"model": "small", "format": "wav"}, [4, 0]),
        ({"format": "flac"}, [2]),
        ({"favourite": True}, [3]),
        ({"locked": False, "q": "warm"}, [0]),
        ({"stems": True}, [0]),
        ({"stems": False, "model": "small"}, [4, 2]),
    ],
)
def test_search_and_filters_find_what_they_say(lib, five, tmp_path, query, found):
    lib.patch(five[3], TrackPatch(favourite=True))
    lib.patch(five[4], TrackPatch(locked=True))
    add_stems(lib, five[0], tmp_path / "split")
    tracks, cursor, total = lib.page(TrackQuery(**query))
    assert [five.index(track.name) for track in tracks] == found
    assert (cursor, total) == (None, len(found))


@pytest.mark.parametrize("sort", ["newest", "oldest", "name", "duration"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_pages_together_are_the_whole_list(lib, five, sort, limit):
    whole = [track.name for track in lib.page(TrackQuery(sort=sort))[0]]
    paged: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        tracks, cursor, total = lib.page(TrackQuery(sort=sort, limit=limit, cursor=cursor))
        assert total == 5
        paged += [track.name for track in tracks]
    assert paged == whole
    assert set(whole) == set(five)


def test_a_cursor_stays_in_place_when_tracks_come_and_go(lib, five):
    tracks, cursor, _ = lib.page(TrackQuery(limit=2))
    assert [track.name for track in tracks] == [five[4], five[3]]
    lib.delete(five[3])
    add(lib, created_at=(WHEN + timedelta(hours=1)).isoformat())
    rest, _, total = lib.page(TrackQuery(limit=5, cursor=cursor))
    assert [track.name for track in rest] == [five[2], five[1], five[0]]
    assert total == 5


def test_the_longest_name_still_makes_a_cursor_that_a_query_takes(lib):
    for _ in range(2):
        name = lib.reserve_name("ж" * 60, "д" * 60, 2**31 - 1, WHEN)
        lib.save(draft(name), write_beep)
    _, cursor, _ = lib.page(TrackQuery(limit=1))
    assert len(lib.page(TrackQuery(limit=1, cursor=cursor))[0]) == 1


@pytest.mark.parametrize("cursor", ["x", "!!!!", "bm90aGluZw==", "я", "b2"])
def test_a_cursor_that_is_none_is_refused(lib, five, cursor):
    with pytest.raises(InvalidParameter, match="cursor"):
        lib.page(TrackQuery(cursor=cursor))


def test_a_cursor_of_another_order_is_refused(lib, five):
    cursor = lib.page(TrackQuery(limit=1))[1]
    with pytest.raises(InvalidParameter, match="'name'"):
        lib.page(TrackQuery(sort="name", cursor=cursor))


def test_peaks_are_computed_once(lib, monkeypatch):
    name = add(lib).name
    first = lib.peaks(name, 20)
    assert first[:, 1].max() == pytest.approx(0.25, abs=1e-3)
    monkeypatch.setattr(audio, "peaks", None)
    assert lib.peaks(name, 20) is first


# -------------------------------------------------------------------------------------------------- changes
def test_every_change_is_told_once_and_in_order(open_library, tmp_path):
    told: list[LibraryChange] = []
    lib = open_library(on_change=told.append)
    first = add(lib)
    second = add(lib)
    patched = lib.patch(first.name, TrackPatch(favourite=True))
    lib.patch(first.name, TrackPatch(favourite=True))  # already so: no change
    split = add_stems(lib, first.name, tmp_path / "split")
    lib.delete(second.name)
    lib.delete_unlocked()
    lib.delete_unlocked()  # nothing left: no change
    assert told == [
        LibraryChange(added=[first]), LibraryChange(added=[second]), LibraryChange(changed=[patched]),
        LibraryChange(changed=[split]), LibraryChange(removed=[second.name]), LibraryChange(removed=[first.name]),
    ]  # fmt: skip


def test_a_deletion_that_fails_at_once_tells_nothing_and_keeps_the_track(open_library, monkeypatch):
    told: list[LibraryChange] = []
    lib = open_library()
    track = add(lib)
    lib.on_change = told.append
    real = Path.replace

    def refuse(path, target):
        if str(target).endswith(".delete"):
            raise PermissionError(errno.EACCES, "refused")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        lib.delete(track.name)
    monkeypatch.undo()
    assert lib.get(track.name) == track
    lib.patch(track.name, TrackPatch(favourite=True))
    assert [change.removed for change in told] == [[]]
    assert told[0].changed


def test_a_listener_may_ask_the_library_while_others_work(open_library):
    sizes: list[int] = []
    lib: Library = open_library()
    lib.on_change = lambda _: sizes.append(lib.page(TrackQuery())[2])
    threads = [threading.Thread(target=lambda: [add(lib) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert lib.count() == 20
    assert len({track.name for track in lib.page(TrackQuery())[0]}) == 20
    assert len(sizes) == 20


# -------------------------------------------------------------------------------------------------- crashes
def assert_whole(root: Path) -> int:
    """After a restart: every track has all its parts, and there is no file that belongs to no track."""
    with Library(root / "audio", root / "stems") as lib:
        tracks = lib.page(TrackQuery(limit=500))[0]
        expected = set()
        for track in tracks:
            assert audio.probe(lib.audio_path(track.name)).frames == BEEP_FRAMES
            assert lib.tokens(track.name) is not None
            expected |= {f"audio/{track.name}{suffix}" for suffix in (".wav", ".json", ".tokens.npz")}
            for stem in track.stems:
                assert audio.probe(lib.stem_path(track.name, stem)).frames == BEEP_FRAMES
                expected.add(f"stems/{track.name}/{stem}.wav")
    assert {file for file in files_in(root) if not file.startswith("split/")} == expected
    assert {path.name for path in (root / "stems").iterdir()} == {track.name for track in tracks if track.stems}
    return len(tracks)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_kill_at_a_hundred_random_moments_breaks_no_pair_and_leaves_nothing(tmp_path):
    chance = random.Random(2)
    tracks = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.library_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as workers:
        assert workers.stdin is not None
        assert workers.stdout is not None
        for kill in range(100):
            workers.stdin.write(f"{tmp_path} {kill}\n")
            workers.stdin.flush()
            worker = int(workers.stdout.readline())
            time.sleep(chance.random() * 0.15)
            os.kill(worker, signal.SIGKILL)
            assert workers.stdout.readline() == "gone\n"
            tracks += assert_whole(tmp_path)
        workers.stdin.close()
    assert tracks > 100, "the workers hardly got to save anything"


# ------------------------------------------------------------------------------------------- many tracks
def assert_quick(limit_s: float, work: Callable[[], Any]) -> Any:
    """What `work` returns; its processor time is within the limit."""
    results: list[Any] = []

    def measured() -> float:
        began = time.process_time()
        results.append(work())
        return time.process_time() - began

    assert_within(limit_s, measured, clock=time.process_time)
    return results[-1]


@pytest.mark.slow
def test_ten_thousand_tracks_are_scanned_paged_and_searched_quickly(tmp_path):
    fill(tmp_path, 10_000)

    def scanned() -> int:
        with Library(tmp_path / "audio", tmp_path / "stems") as opened:
            return opened.count()

    assert assert_quick(COLD_SCAN_S, scanned) == 10_000
    with Library(tmp_path / "audio", tmp_path / "stems") as lib:
        # The order of an uncommon sort is made for its first page.
        for sort in get_args(TrackQuery.model_fields["sort"].annotation):
            _, cursor, _ = assert_quick(PAGE_S, partial(lib.page, TrackQuery(sort=sort)))
            tracks, _, total = assert_quick(PAGE_S, partial(lib.page, TrackQuery(sort=sort, cursor=cursor)))
            assert (len(tracks), total) == (100, 10_000)
        found = partial(lib.page, TrackQuery(q="PIANO 777", favourite=False))
        assert assert_quick(SEARCH_S, found)[2] == sum("777" in str(index) for index in range(10_000))
        assert lib.delete_unlocked() == (10_000, 0)
    assert files_in(tmp_path) == set()
