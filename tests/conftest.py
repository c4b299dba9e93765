"""What holds for every test. Set before anything imports torch, and inherited by the programs that tests start."""

from __future__ import annotations

import os

# The models of the tests are so small that a second thread only waits for the first, and where other programs
# are busy, waits long: on a loaded machine the slowest test took 320 s with two threads and 49 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
