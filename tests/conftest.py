"""What holds for every test. Set before anything imports torch, and inherited by the programs that tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# The models of the tests are so small that a second thread only waits for the first, and where other programs
# are busy, waits long: on a loaded machine the slowest test took 320 s with two threads and 49 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _the_hub_stays_as_it_was() -> Iterator[None]:
    """A program with --offline shuts the hub's client for its whole process, which in the tests is everybody's."""
    before = os.environ.get("HF_HUB_OFFLINE")
    yield
    if before is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = before
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = before == "1"  # type: ignore[attr-defined]
