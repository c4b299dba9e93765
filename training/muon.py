"""Muon in float32: momentum, orthogonalised by a Newton-Schulz iteration.

torch's own works in bfloat16, at which a CPU crawls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pushes singular values towards one


def orthogonal(matrix: Tensor, rounds: int = 4) -> Tensor:
    """The nearest matrix, roughly, with all singular values one. [..., M, N]; a stack is done at once."""
    flip = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if flip else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """For the hidden matrices of a transformer; the step's size matches AdamW's.

    A packed query-key-value matrix [3d, d] is treated as three.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(kept, group["momentum"])
                rows, columns = update.shape
                update = orthogonal(update.view(3, -1, columns) if rows == 3 * columns else update).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(rows if rows != 3 * columns else columns, columns) ** 0.5)
