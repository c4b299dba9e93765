"""Train the language model on scores composed on the fly; no audio is made.

The codec's codes are a function of the score (training/codec/layout.py), so a batch costs milliseconds and no clip is
ever seen twice. The loss is audiocraft's (cross-entropy on the delay pattern) computed without its copies.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from modules.musicgen import compat

compat.prepare()

from modules.musicgen.tiny.folder import build_lm  # noqa: E402
from modules.musicgen.tiny.words import Understanding, understand  # noqa: E402
from training.codec.factors import factor_matrix  # noqa: E402
from training.codec.layout import CARD, tokens  # noqa: E402
from training.corpus.captions import caption  # noqa: E402
from training.corpus.score import compose  # noqa: E402
from training.muon import Muon  # noqa: E402

LMModel: TypeAlias = Any
"""audiocraft's; its parts are nn.Module attributes, whose types say nothing."""

log = logging.getLogger(__name__)
AVERAGE_EVERY = 5
GUIDANCE = ((1.0, 2.0, 3.0), None, True, (0.05, 0.1, 0.85))  # cfg_coef of guided training: what people sample with
EASY_SHARE = 0.25  # of the frames whose code merely follows, this many enter the loss


@dataclass(frozen=True)
class Recipe:
    """dim, layers: of the transformer. frames, batch: of a step. lr: of the hidden matrices, table_lr: of the rest."""

    dim: int = 192
    layers: int = 4
    frames: int = 256
    long_frames: int = 500
    batch: int = 6
    lr: float = 3e-3
    table_lr: float = 3e-3
    window_s: float = 10.0


def lm_config(recipe: Recipe) -> dict[str, Any]:
    """The model's `xp.cfg`, as audiocraft writes one."""
    return {
        "lm_model": "transformer_lm",
        "transformer_lm": {
            "dim": recipe.dim,
            "num_heads": recipe.dim // 64,
            "num_layers": recipe.layers,
            "hidden_scale": 4,
            "n_q": 4,
            "card": CARD,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": True,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0},
        },
        "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
        "attribute_dropout": {},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [],
            "cross": ["description"],
            "input_interpolate": [],
        },
        "conditioners": {"description": {"model": "music_words", "music_words": {"dim": 128}}},
        "dataset": {"segment_duration": recipe.window_s},
        "sample_rate": 32000,
        "channels": 2,
    }


def example(seed: int, frames: int) -> tuple[np.ndarray, Understanding]:
    """A window of a piece and what its caption says: int16 [4, frames]. Half of the windows begin with the piece."""
    rng = np.random.default_rng(seed + 1)
    start = 0 if rng.random() < 0.5 else int(rng.integers(1, 600))
    score = compose(seed, (start + frames) / 50 + 0.1)
    codes = tokens(score)[:, start : start + frames]
    return codes, understand(caption(score, rng) if rng.random() > 0.1 else None)


def batches(seed: int, batch: int, frames: int) -> Iterator[tuple[Tensor, list[Understanding]]]:
    while True:
        rows = [example((seed * batch + i) * 7919 + 13, frames) for i in range(batch)]
        yield torch.from_numpy(np.stack([r[0] for r in rows])).long(), [r[1] for r in rows]
        seed += 1


class Tables(nn.Module):
    """The language model's embeddings and output layers as sums over what their codes have in common.

    forward() multiplies them out: embeddings [K][card + 1, dim] and outputs [K][card, dim].
    """

    def __init__(self, dim: int, books: int = 4) -> None:
        super().__init__()
        self.books = books
        for k in range(books):
            matrix = torch.from_numpy(factor_matrix(k))
            self.register_buffer(f"matrix_{k}", matrix, persistent=False)
            # on a par with the positions that are added to them
            self.register_parameter(f"input_{k}", nn.Parameter(torch.randn(matrix.shape[1], dim) * 0.25))
            self.register_parameter(f"output_{k}", nn.Parameter(torch.randn(matrix.shape[1], dim) * 0.02))
            self.register_parameter(f"input_rest_{k}", nn.Parameter(torch.zeros(CARD + 1, dim)))
            self.register_parameter(f"output_rest_{k}", nn.Parameter(torch.zeros(CARD, dim)))

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        embeddings, outputs = [], []
        for k in range(self.books):
            matrix = getattr(self, f"matrix_{k}")
            embeddings.append(matrix @ getattr(self, f"input_{k}") + getattr(self, f"input_rest_{k}"))
            outputs.append(matrix[:CARD] @ getattr(self, f"output_{k}") + getattr(self, f"output_rest_{k}"))
        return embeddings, outputs

    @torch.no_grad()
    def write_to(self, lm: LMModel) -> None:
        """Multiply out into the model's own tables."""
        for k, (embedding, output) in enumerate(zip(*self(), strict=True)):
            lm.emb[k].weight.copy_(embedding)
            lm.linears[k].weight.copy_(output)


def losses(
    lm: LMModel,
    codes: Tensor,
    read: list[Understanding],
    easy_share: float = 1.0,
    tables: Tables | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Cross-entropy in nats for each codebook: [K]. The same as audiocraft's compute_predictions, on fewer frames.

    Args:
        codes: int64 [B, K, T].
        tables: in place of the model's own.
        easy_share: share of the frames kept whose code repeats or follows the one before; they are weighted up, so the
            expectation does not change.
        guidance: the loss of the guided distribution, as sampling with this cfg_coef has it. The unconditional half
            gives no gradient: it stays the corpus' own distribution.
    """
    batch, books, frames = codes.shape
    sequence = torch.full((batch, books, frames), lm.special_token_id, dtype=torch.long, device=codes.device)
    for k in range(books):  # the delay pattern: step s shows codebook k of frame s - 1 - k
        sequence[:, k, 1 + k :] = codes[:, k, : frames - 1 - k]
    embeddings, outputs = tables() if tables else ([e.weight for e in lm.emb], [o.weight for o in lm.linears])
    hidden = _hidden(lm, sequence, embeddings, read)
    if guidance != 1:
        with torch.no_grad():
            free = _hidden(lm, sequence, embeddings, [Understanding()] * batch)
        # the output layers are linear: guiding their input guides the logits
        hidden = guidance * hidden + (1 - guidance) * free
    out = []
    for k in range(books):
        target, states = codes[:, k, : frames - k], hidden[:, k:]
        before = functional.pad(target, (1, 0), value=-5)[:, :-1]
        easy = (target == before) | (target == before + 1)
        keep = ~easy | (torch.rand(target.shape, device=codes.device) < easy_share)
        weight = torch.where(easy, 1 / easy_share, 1.0)[keep]
        each = functional.cross_entropy(states[keep] @ outputs[k].T, target[keep], reduction="none")
        out.append((each * weight).sum() / target.numel())
    return torch.stack(out)


def _hidden(lm: LMModel, sequence: Tensor, embeddings: list[Tensor], read: list[Understanding]) -> Tensor:
    """The transformer's last states [B, S, dim] for a sequence [B, K, S]."""
    conditioner = lm.condition_provider.conditioners["description"]
    condition = conditioner(conditioner.tokenize_read(read))
    hidden = sum(functional.embedding(sequence[:, k], embedding) for k, embedding in enumerate(embeddings))
    hidden, cross = lm.fuser(hidden, {"description": condition})
    return lm.out_norm(lm.transformer(hidden, cross_attention_src=cross))


@dataclass
class State:
    """A training that can go on: the model, its average, the optimisers and how far it is."""

    lm: LMModel
    tables: Tables
    average: dict[str, Tensor]
    optimisers: list[torch.optim.Optimizer]
    step: int = 0
    frames: int = 0
    seconds: float = 0.0


def fresh(recipe: Recipe, device: str) -> State:
    torch.manual_seed(0)
    lm = build_lm(lm_config(recipe), device)
    tables = Tables(recipe.dim).to(device)
    tables.write_to(lm)
    named = [(name, p) for name, p in lm.named_parameters() if not name.startswith(("emb.", "linears."))]
    matrices = [p for name, p in named if p.ndim == 2 and "transformer.layers" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen] + list(tables.parameters())
    muon = Muon(matrices, lr=recipe.lr, weight_decay=0.02)
    adam = torch.optim.AdamW(rest, lr=recipe.table_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return State(lm, tables, {k: v.detach().clone() for k, v in lm.state_dict().items()}, [muon, adam])


def _update(state: State, codes: Tensor, read: list[Understanding], guidance: float) -> Tensor:
    """One step of the optimisers; the loss of each codebook [K].

    Raises:
        RuntimeError: the loss is not finite.
    """
    each = losses(state.lm, codes, read, EASY_SHARE, state.tables, guidance)
    if not bool(torch.isfinite(each).all()):
        raise RuntimeError(f"the loss is {each.tolist()} at step {state.step}")
    for optimiser in state.optimisers:
        optimiser.zero_grad(set_to_none=True)
    each.mean().backward()
    trained = [p for o in state.optimisers for group in o.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    for optimiser in state.optimisers:
        optimiser.step()
    state.step += 1
    state.frames += codes.shape[0] * codes.shape[2]
    return each.detach()


def _average(state: State, steps: float) -> None:
    """Move the average towards the weights of now; it covers about the last `steps`."""
    state.tables.write_to(state.lm)
    share = AVERAGE_EVERY / steps
    for name, value in state.lm.state_dict().items():
        state.average[name].lerp_(value, min(1.0, share))


def save(state: State, recipe: Recipe, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "recipe": asdict(recipe),
            "lm": state.lm.state_dict(),
            "tables": state.tables.state_dict(),
            "average": state.average,
            "step": state.step,
            "frames": state.frames,
            "seconds": state.seconds,
            "optimisers": [o.state_dict() for o in state.optimisers],
        },
        part,
    )
    part.replace(path)


def resume(path: Path, device: str) -> tuple[State, Recipe]:
    kept = torch.load(path, map_location=device, weights_only=True)
    recipe = Recipe(**kept["recipe"])
    state = fresh(recipe, device)
    state.lm.load_state_dict(kept["lm"])
    state.tables.load_state_dict(kept["tables"])
    state.average = kept["average"]
    for optimiser, saved in zip(state.optimisers, kept["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    state.step, state.frames, state.seconds = kept["step"], kept["frames"], kept["seconds"]
    return state, recipe


def continue_from(folder: Path, device: str) -> tuple[State, Recipe]:
    """A training that goes on from a finished model's folder, where its checkpoint is lost, with new momenta."""
    from modules.musicgen.tiny.folder import load

    lm, _ = load(folder, device)
    cfg: Any = lm.cfg
    arch = cfg.transformer_lm
    recipe = Recipe(dim=arch.dim, layers=arch.num_layers, window_s=cfg.dataset.segment_duration)
    state = fresh(recipe, device)
    state.lm.load_state_dict(lm.state_dict())
    with torch.no_grad():
        embeddings, outputs = state.tables()
        for k in range(state.tables.books):
            getattr(state.tables, f"input_rest_{k}").add_(lm.emb[k].weight - embeddings[k])
            getattr(state.tables, f"output_rest_{k}").add_(lm.linears[k].weight - outputs[k])
    state.average = {name: value.detach().clone() for name, value in lm.state_dict().items()}
    return state, recipe


def blend(first: Path, second: Path, out: Path) -> None:
    """The mean of two checkpoints of one training, the second's progress and momenta."""
    one, two = (torch.load(p, map_location="cpu", weights_only=True) for p in (first, second))
    for part in ("average", "lm", "tables"):
        two[part] = {n: (v + one[part][n]) / 2 if v.is_floating_point() else v for n, v in two[part].items()}
    torch.save(two, out)


@torch.no_grad()
def validate(lm: LMModel, clips: int = 48, frames: int = 400) -> dict[str, list[float]]:
    """Held-out loss of each codebook with its own caption, with another clip's, and with none."""
    lm.eval()
    rows = [_held_out_example(i, frames) for i in range(clips)]
    codes = torch.from_numpy(np.stack([r[0] for r in rows])).long().to(next(lm.parameters()).device)
    read = [r[1] for r in rows]
    result = {}
    for name, captions in (("own", read), ("shuffled", read[5:] + read[:5]), ("none", [Understanding()] * clips)):
        parts = [losses(lm, codes[i : i + 8], captions[i : i + 8]) for i in range(0, clips, 8)]
        result[name] = [round(float(v), 4) for v in torch.stack(parts).mean(0)]
    lm.train()
    return result


def _held_out_example(index: int, frames: int) -> tuple[np.ndarray, Understanding]:
    score = compose(2_000_000_011 + index, frames / 50 + 0.1, training=False)
    return tokens(score)[:, :frames], understand(caption(score, np.random.default_rng(index), full=True))


def train(
    path: Path,
    minutes: float,
    device: str,
    recipe: Recipe,
    *,
    decay: bool = False,
    long: bool = False,
    guided: bool = False,
    base: Path | None = None,
) -> State:
    """Train for some minutes, from `path` where it exists, and keep a checkpoint there every two.

    decay: bring the learning rate to zero over these minutes (the last stage).
    long: windows of recipe.long_frames.
    base: a finished model's folder to go on from where there is no checkpoint.
    guided: learn the distribution that sampling with guidance has (see GUIDANCE), not the conditional one alone.
    """
    if path.exists():
        state, kept = resume(path, device)
    elif base is not None:
        state, kept = continue_from(base, device)
    else:
        state, kept = fresh(recipe, device), recipe
    recipe = replace(kept, batch=recipe.batch or kept.batch)
    lm = state.lm.train()
    log.info("parameters %.2f M, step %d", sum(p.numel() for p in lm.parameters()) / 1e6, state.step)
    began, saved, running = time.monotonic(), time.monotonic(), torch.zeros(0)
    frames = recipe.long_frames if long else recipe.frames
    size = max(1, recipe.batch * recipe.frames // frames)
    # no clip is seen twice: examples are counted in the smallest batch
    source = batches(state.frames // frames // size + 1 + (500_000 if long else 0), size, frames)
    chance = np.random.default_rng(state.step)
    while (elapsed := time.monotonic() - began) < minutes * 60:
        rate = min(1.0, (state.step + 1) / 20) * ((1 - elapsed / (minutes * 60)) if decay else 1.0)
        for optimiser, lr in zip(state.optimisers, (recipe.lr, recipe.table_lr), strict=True):
            optimiser.param_groups[0]["lr"] = lr * max(rate, 0.01)
        codes, read = next(source)
        each = _update(state, codes.to(device), read, float(chance.choice(*GUIDANCE)) if guided else 1.0)
        if state.step % AVERAGE_EVERY == 0:
            _average(state, 25.0 if decay else max(25.0, state.step / 8))
        running = running * 0.97 + each * 0.03 if len(running) else each
        if state.step % 20 == 0:
            losses_now = [round(float(v), 3) for v in running]
            log.info("step %d %.0f s loss %.4f %s", state.step, elapsed, running.mean(), losses_now)
        if time.monotonic() - saved > 120:
            state.seconds += time.monotonic() - saved
            saved = time.monotonic()
            save(state, recipe, path)
    state.seconds += time.monotonic() - saved
    save(state, recipe, path)
    averaged = build_lm(lm_config(recipe), device)
    averaged.load_state_dict(state.average)
    log.info("held out: %s", json.dumps(validate(averaged, 24)))
    return state
