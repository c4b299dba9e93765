"""The growing audio of a running job: one writer, any number of listeners, each from the start.

The sound goes through a file, so that memory stays small however long it gets and a slow listener costs the
writer nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from modules.audio import Samples, to_pcm16, wav_header

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024


class LiveAudio:
    """16-bit PCM that is still being made.

    Args:
        path: where it is kept while it is needed.
        sample_rate_hz, channels: of everything that is written.
    """

    def __init__(self, path: Path, sample_rate_hz: int, channels: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._rate = sample_rate_hz
        self._channels = channels
        self._file = path.open("wb", buffering=0)
        self._grown = threading.Condition()
        self._bytes = 0
        self._ended = False

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def seconds(self) -> float:
        """How much there is to hear."""
        return self._bytes / (2 * self._channels * self._rate)

    def write(self, samples: Samples) -> None:
        """Add float32 [C, n]. A full disk ends the stream, never the job that is being listened to."""
        data = to_pcm16(samples)
        if self._ended:
            return
        try:
            self._file.write(data)
        except OSError:
            log.exception("the live audio ends early")
            self.end()
            return
        with self._grown:
            self._bytes += len(data)
            self._grown.notify_all()

    def end(self) -> None:
        """Nothing more will come: listeners get the rest and stop."""
        with self._grown:
            if not self._ended:
                self._ended = True
                self._file.close()
                self._grown.notify_all()

    def discard(self) -> None:
        """Drop the file. Whoever is still reading goes on to the end where the system allows it."""
        self.end()
        try:
            self._path.unlink(missing_ok=True)
        except OSError:  # Windows: a listener has it open; the sweep at the next start takes it.
            log.debug("%s is still being read", self._path.name)

    def listen(self) -> Iterator[bytes]:
        """A WAV header for an unknown length, then the sound from its start, until the job ends.

        The file is opened at once: what is discarded before the first block is asked for can still be heard.
        """
        return self._blocks(self._path.open("rb"))

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        with file:
            yield wav_header(self._rate, self._channels, None)
            read = 0
            while True:
                with self._grown:
                    self._grown.wait_for(lambda: self._ended or self._bytes > read)  # noqa: B023 - called at once
                    there = self._bytes
                if there <= read:
                    return
                data = file.read(min(_READ_BYTES, there - read))
                if not data:
                    return
                read += len(data)
                yield data
