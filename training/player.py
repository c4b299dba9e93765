"""A finished model as the program plays it: its manager, its engine in its precision, its codec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules import settings
from modules.musicgen.engine import Codes, GenerationSpec
from modules.musicgen.manager import ModelManager


class _Nobody:
    """A sink that lets everything pass."""

    def progress(self, done_steps: int, total_steps: int) -> None: ...

    def frames(self, codes: Codes) -> None: ...


class Player:
    """The folder's model, loaded once.

    Args:
        folder: models/tiny or another folder of that form; its name is the model's.
        work: where the converted model is kept.
        flags: more of the program's own, "--precision float32" for example.
    """

    def __init__(self, folder: Path, work: Path, threads: int = 1, flags: Sequence[str] = ()) -> None:
        asked = ["--models-dir", str(folder.parent), "--cache-dir", str(work / "cache"), "--threads", str(threads)]
        self._manager = ModelManager(settings.parse([*asked, "--offline", *flags], {}))
        self._loaded = self._manager.ensure(folder.name, lambda *_: None)

    @property
    def info(self) -> Any:
        return self._loaded.engine_info

    def play(
        self,
        texts: Sequence[str],
        seconds: float,
        seed: int,
        before: Sequence[Codes] | None = None,
        **sampling: Any,
    ) -> list[Codes]:
        """New frames int64 [K, T] for each text, one after the other; `before` holds the frames each goes on from.

        sampling: cfg_coef, top_k, temperature and the like of GenerationSpec, its defaults where not given.
        """
        specs = [
            GenerationSpec(text, seconds, (seed + i,), prompt_codes=None if before is None else before[i], **sampling)
            for i, text in enumerate(texts)
        ]
        return [self._loaded.engine.generate(spec, _Nobody())[0] for spec in specs]

    def sound(self, codes: Iterable[Codes]) -> list[np.ndarray]:
        """Mono sound float32 [T] of frames [K, T]."""
        return [self._loaded.codec.decode(each).samples.mean(0) for each in codes]

    def close(self) -> None:
        self._manager.close()
