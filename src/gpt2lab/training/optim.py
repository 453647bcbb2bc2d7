"""AdamW, alone or with Muon for the hidden matrices.

AdamW (Loshchilov & Hutter 2019) scales each number's step by its own gradient's size. Weight decay goes to matrices
only: biases and layer norms shift and scale, and pulling them to zero has no meaning (Brown et al. 2020, appendix B).

Muon (`muon.py`) treats a hidden layer's matrix as one thing: it takes the momentum of its gradient and replaces it by
the nearest orthogonal matrix, so that every direction moves equally far. Embeddings, which are looked up, biases and
norms stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn

from gpt2lab.training.muon import MUON_LR, MUON_MOMENTUM, Muon
from gpt2lab.training.recipes import OptimConfig


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups, matrices with weight decay and vectors without, in the order of the parameters."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser that the configuration names for a model."""
    if config.name == "muon":
        return MuonWithAdamW(model, config)
    return adamw(list(model.parameters()), config)


def adamw(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW for parameters; fused, which is one pass over memory, on every device that has it."""
    return torch.optim.AdamW(
        parameter_groups(parameters, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=parameters[0].device.type in ("cpu", "cuda", "mps"),
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks and AdamW on everything else, as one optimiser with one state."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        hidden = [p for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2]
        inside = {id(p) for p in hidden}
        rate = MUON_LR if config.muon_lr is None else config.muon_lr
        muon = Muon(hidden, lr=rate, weight_decay=config.weight_decay, momentum=MUON_MOMENTUM)
        rest = adamw([p for p in model.parameters() if id(p) not in inside], config)
        muon.param_groups[0]["lr_scale"] = rate / config.lr
        super().__init__([{"params": list(model.parameters())}], {})
        self.param_groups = [*muon.param_groups, *rest.param_groups]
        self._parts: list[torch.optim.Optimizer] = [muon, rest]
        for part in self._parts:
            part.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter from its gradient."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss


def state_names(optimiser: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return the names of what an optimiser keeps for each parameter."""
    adamw_keeps, muon_keeps = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
    return {
        parameter: muon_keeps if "momentum" in group else adamw_keeps
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Use a learning rate for the next update; Muon's keeps its proportion to it."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
