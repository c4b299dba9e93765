"""The embedded model's text conditioner: a prompt's attributes as a short sequence for cross-attention."""

from __future__ import annotations

import math

import torch
from audiocraft.modules.conditioners import ConditionType, TextConditioner
from torch import Tensor, nn

from modules.musicgen.tiny.words import ATTRIBUTES, Understanding, understand

SLOTS = 16  # fixed: audiocraft's cross-attention also looks at padding, so its amount must not depend on the batch
TEMPI_BPM = tuple(3000.0 / frames for frames in range(17, 51))  # what the corpus plays, 60 to 176 bpm
_SPREAD = 0.02  # of log tempo: a tempo between two of them is a mixture


class MusicWords(TextConditioner):
    """Attributes of `understand(prompt)` as embeddings; the tempo, a quantity, as a mixture over TEMPI_BPM.

    Args:
        output_dim: the language model's width.
        dim: width of the embeddings.
    """

    def __init__(self, output_dim: int, dim: int = 128) -> None:
        super().__init__(dim, output_dim)
        self.attributes = nn.Embedding(len(ATTRIBUTES), dim)
        self.tempi = nn.Parameter(torch.randn(len(TEMPI_BPM), dim))
        self.norm = nn.LayerNorm(dim)
        self._index = {name: i for i, name in enumerate(ATTRIBUTES)}

    def tokenize(self, x: list[str | None]) -> tuple[Tensor, Tensor]:
        """Read prompts; None and "" are the unconditional prompt.

        Returns:
            ids int64 [B, SLOTS - 1], -1 where empty, and tempo weights float32 [B, len(TEMPI_BPM)], zero where not
            named.
        """
        return self.tokenize_read([understand(prompt) for prompt in x])

    def tokenize_read(self, read: list[Understanding]) -> tuple[Tensor, Tensor]:
        """The same for prompts already read."""
        ids = torch.full((len(read), SLOTS - 1), -1, dtype=torch.long)
        tempi = torch.zeros(len(read), len(TEMPI_BPM))
        grid = torch.log(torch.tensor(TEMPI_BPM))
        for row, what in enumerate(read):
            known = [self._index[a] for a in what.attributes][: SLOTS - 1]
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.long)
            if what.tempo_bpm is not None:
                tempi[row] = tempo_weights(what.tempo_bpm, grid)
        device = self.tempi.device
        return ids.to(device), tempi.to(device)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> ConditionType:
        """Embeddings float [B, SLOTS, output_dim], zero where empty, and their mask int [B, SLOTS]."""
        ids, tempi = inputs
        words = self.attributes(ids.clamp(min=0))
        tempo = (tempi.to(words.dtype) @ self.tempi)[:, None]
        mask = torch.cat([(tempi.sum(1, keepdim=True) > 0), ids >= 0], 1)
        out = self.output_proj(self.norm(torch.cat([tempo, words], 1)))
        return out * mask[..., None], mask.int()


def tempo_weights(bpm: float, grid: Tensor) -> Tensor:
    """How near each grid tempo is to `bpm`: [N], sum 1. Far outside, half or double the tempo is taken."""
    low, high = min(TEMPI_BPM), max(TEMPI_BPM)
    while bpm < low * 0.97:
        bpm *= 2
    while bpm > high * 1.03:
        bpm /= 2
    return torch.softmax(-(((grid - math.log(bpm)) / _SPREAD) ** 2) / 2, 0)
