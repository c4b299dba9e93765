"""What holds for every test. Set before anything imports torch, and inherited by the programs that tests start."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# The models of the tests are so small that a second thread only waits for the first, and where other programs
# are busy, waits long: on a loaded machine the slowest test took 320 s with two threads and 49 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a script starts with `&`, as ./test.sh does its second lane, is deaf to SIGINT, and so is all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run of ./test.sh asks the same questions each time, so that its answer speaks of the change and not of the day.
# `pytest --hypothesis-profile explore` asks new ones, and more of them; what it finds becomes an example.
settings.register_profile("settled", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1_000, deadline=None)
settings.load_profile("settled")
