"""Muon: the momentum of a matrix's gradient, made orthogonal, is the step (Jordan et al. 2024).

    m = 0.95 m + 0.05 g          u = 0.05 g + 0.95 m          (Nesterov's momentum)
    W = (1 - lr * decay) W - lr * sqrt(max(1, rows / columns)) * orthogonal(u)

``orthogonal(u)`` is near U V^T of u's singular value decomposition U S V^T: all directions move equally far. It needs
the whole matrix. Where FSDP keeps a share of each matrix on every rank, momentum is kept in shares too; u is gathered,
every rank makes it orthogonal and applies the rows that are its own. `torch.optim.Muon`, which this equals bit for bit,
works on shares as well, but communicates within each of the iteration's products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast, overload

import torch
from torch import nn

from gpt2lab.training.shares import own_share, whole

MUON_LR, MUON_MOMENTUM = 0.02, 0.95
"""Of Jordan et al. 2024; the rate is for orthogonal updates, whose size does not depend on the gradient's."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial a x + b x^3 + c x^5, which takes singular values in (0, 1] near 1, to within 0.7 and 1.2."""


def orthogonal(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Return about U V^T, in bf16, of a matrix (rows, columns) with singular value decomposition U S V^T.

    Newton-Schulz iteration in bf16 (Jordan et al. 2024): x becomes a x + b (x x^T) x + c (x x^T)^2 x, after
    dividing by the norm, so that no singular value is above 1.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16().T if tall else matrix.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices; its state of each is ``momentum_buffer``."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter from its gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = cast(dict[str, torch.Tensor], self.state[parameter])
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(whole(gradient.lerp(momentum, group["momentum"])))
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(own_share(update, parameter), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
