"""The embedded model: its folder loader, its words, its codec. Importing this loads neither torch nor audiocraft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modules.musicgen.tiny.words import Understanding, understand, unknown_words

if TYPE_CHECKING:
    from audiocraft.models.encodec import CompressionModel
    from audiocraft.models.lm import LMModel

__all__ = ["Understanding", "load_tiny", "understand", "unknown_words"]


def load_tiny(folder: Path, device: str = "cpu") -> tuple[LMModel, CompressionModel]:
    """Load an embedded-model folder; see modules/musicgen/tiny/folder.py."""
    from modules.musicgen.tiny import folder as loader

    return loader.load(folder, device)
