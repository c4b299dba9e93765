"""Checkpoint files through the real hub client, against a hub served on loopback."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from modules import hub
from modules.contract import Cancelled, DiskFull, DownloadFailed, ModelMissing
from tests import loopback_hub

REPO = "someone/Things"
BIG = bytes(range(256)) * 20_000  # 5 MB, five chunks
FILE = hub.HubFile(REPO, "big.safetensors")
SMALL = hub.HubFile(REPO, "bag.yaml")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback_hub.Hub]:
    with loopback_hub.serve() as server:
        server.add(REPO, FILE.name, BIG)
        server.add(REPO, SMALL.name, b"models: [big]\n")
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads its address and cache once, at import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}", raising=False
    )
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def ignore(done: float, total: float, rate: float | None) -> None:
    pass


def test_files_arrive_whole_and_are_found_without_the_network_afterwards(served: loopback_hub.Hub) -> None:
    seen: list[tuple[float, float]] = []
    paths = hub.fetch([FILE, SMALL], lambda done, total, _: seen.append((done, total)))
    assert paths[0].read_bytes() == BIG
    done, total = seen[-1]
    assert done == total == len(BIG) + 14
    assert seen == sorted(seen)
    asked = list(served.requests)
    assert hub.fetch([FILE, SMALL], ignore, offline=True) == paths
    assert hub.missing([FILE, SMALL]) == []
    assert served.requests == asked


def test_a_cancelled_download_goes_on_where_it_stopped(served: loopback_hub.Hub) -> None:
    def cancel(done: float, _total: float, _rate: float | None) -> None:
        if done > 2_000_000:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        hub.fetch([FILE], cancel)
    assert hub.missing([FILE]) == [FILE]
    started: list[float] = []
    (path,) = hub.fetch([FILE], lambda done, _t, _r: started.append(done))
    assert started[0] > 2_000_000
    assert path.read_bytes() == BIG
    assert served.gets()[-1][1] == f"bytes={int(started[0])}-"


def test_a_connection_that_breaks_twice_is_taken_up_again(served: loopback_hub.Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr("modules.hub.time.sleep", lambda _: None)
    served.breaks = [1_000_000, 700_000]
    (path,) = hub.fetch([FILE], ignore)
    assert path.read_bytes() == BIG
    assert len(served.gets()) == 3


def test_a_connection_that_never_holds_is_one_clear_error(served: loopback_hub.Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr("modules.hub.time.sleep", lambda _: None)
    served.breaks = [0] * 20
    with pytest.raises(DownloadFailed, match="big"):
        hub.fetch([FILE], ignore)
    assert len(served.gets()) == hub.RETRIES


def test_a_server_that_ignores_ranges_does_not_spoil_the_file(served: loopback_hub.Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr("modules.hub.time.sleep", lambda _: None)
    served.breaks, served.ignore_ranges = [1_500_000], True
    (path,) = hub.fetch([FILE], ignore)
    assert path.read_bytes() == BIG


def test_damaged_bytes_are_refused_and_not_kept(served: loopback_hub.Hub) -> None:
    served.corrupt = True
    with pytest.raises(DownloadFailed, match="checksum"):
        hub.fetch([FILE], ignore)
    served.corrupt = False
    (path,) = hub.fetch([FILE], ignore)
    assert path.read_bytes() == BIG


def test_offline_lists_every_missing_part_and_asks_nobody(served: loopback_hub.Hub) -> None:
    with pytest.raises(ModelMissing) as caught:
        hub.fetch([FILE, SMALL], ignore, offline=True)
    assert caught.value.details["missing"] == [f"{REPO}/big.safetensors", f"{REPO}/bag.yaml"]
    assert served.requests == []


def test_a_file_the_hub_does_not_have_is_named(served: loopback_hub.Hub) -> None:
    with pytest.raises(DownloadFailed, match="nothing"):
        hub.fetch([hub.HubFile(REPO, "nothing.bin")], ignore)


def test_no_hub_at_all_is_one_clear_error(
    served: loopback_hub.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_client_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(DownloadFailed, match="did not answer"):
        hub.fetch([FILE], ignore)


def test_a_full_disk_is_said_before_the_first_byte(served: loopback_hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("modules.hub.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="MB"):
        hub.fetch([FILE], ignore)
    assert served.gets() == []


def test_a_disk_that_fills_in_the_middle_says_so(served: loopback_hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modules.hub.os.fsync", no_room)
    with pytest.raises(DiskFull):
        hub.fetch([FILE], ignore)
