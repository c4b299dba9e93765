"""Small random language models of audiocraft's own class for the engine's tests, their conditioners included."""

from __future__ import annotations

from typing import Any

from modules.musicgen.engine import Codes, GenerationSpec, ModelFacts

CARD = 256
FRAMES = 100
"""Frames of the small models' window, two seconds."""


def build(
    *, dim: int = 64, layers: int = 3, heads: int = 4, stereo: bool = False, prepend: bool = False, bias: bool = False,
    card: int = CARD, seed: int = 0,
) -> Any:  # fmt: skip
    """An LMModel in eval mode. Weights are large enough that tokens and conditions matter to the logits.

    Args:
        prepend: conditions stand before the first step, as in melody models; else the layers attend to them.
    """
    import torch
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider

    codebooks = 8 if stereo else 4
    delays = [d for d in range(4) for _ in range(2)] if stereo else list(range(4))
    fuse: dict[str, list[str]] = {"cross": [], "prepend": [], "sum": [], "input_interpolate": []}
    fuse["prepend" if prepend else "cross"] = ["description"]
    lm = LMModel(
        DelayedPatternProvider(codebooks, delays), ConditioningProvider({"description": _words(dim)}),
        ConditionFuser(fuse), n_q=codebooks, card=card, dim=dim, num_heads=heads, hidden_scale=4, norm="layer_norm",
        norm_first=True, bias_proj=bias, num_layers=layers, dropout=0.0, activation="gelu", bias_ff=bias,
        bias_attn=bias, causal=True, custom=False, memory_efficient=True, attention_as_float32=False,
        cross_attention=not prepend, positional_embedding="sin", cfg_coef=3.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.0 if name.startswith("emb") else 1.5 / parameter.shape[-1] ** 0.5))
            else:
                parameter.copy_(noise * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return lm.eval()


def _words(dim: int) -> Any:
    """A text conditioner like T5's: as many states as words, those of an absent text are zero."""
    import torch
    from audiocraft.modules.conditioners import TextConditioner

    class Words(TextConditioner):
        def __init__(self) -> None:
            super().__init__(16, dim)

        def tokenize(self, x: list[str | None]) -> list[list[str]]:
            return [(text or "").split() for text in x]

        def forward(self, inputs: list[list[str]]) -> Any:
            length = max(1, *(len(words) for words in inputs))
            states, mask = torch.zeros(len(inputs), length, 16), torch.zeros(len(inputs), length)
            for row, words in enumerate(inputs):
                for at, word in enumerate(words):
                    generator = torch.Generator().manual_seed(sum(word.encode()))
                    states[row, at], mask[row, at] = torch.randn(16, generator=generator), 1
            return self.output_proj(states) * mask[..., None], mask

    return Words()


def facts(lm: Any, precision: str = "float32", *, window_s: float = FRAMES / 50) -> ModelFacts:
    return ModelFacts(
        model="test/small", checkpoint_hash=None, precision=precision, frame_rate_hz=50.0, sample_rate_hz=32_000,
        channels=2 if lm.n_q == 8 else 1, codebooks=lm.n_q, cardinality=lm.card, max_window_s=window_s, melody=False,
    )  # fmt: skip


SPEC = GenerationSpec(prompt="a warm piano", duration_s=1.0, seeds=(3,), temperature=0.0, top_k=50, extend_stride_s=1.2)


class Listener:
    """A sink that keeps what it hears."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.pieces: list[Codes] = []
        self.stop_at = stop_at

    def progress(self, done_steps: int, total_steps: int) -> None:
        from modules.contract import Cancelled

        self.steps.append((done_steps, total_steps))
        if self.stop_at is not None and done_steps >= self.stop_at:
            raise Cancelled("enough")

    def frames(self, codes: Codes) -> None:
        self.pieces.append(codes)
