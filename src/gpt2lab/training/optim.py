"""AdamW (Loshchilov & Hutter 2019), with weight decay on matrices only.

Biases and layer norms shift and scale; pulling them to zero has no meaning, and GPT-2's successors leave them out
(Brown et al. 2020, appendix B). Embeddings are matrices.
"""

from __future__ import annotations

import torch
from torch import nn

from gpt2lab.training.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return two groups, matrices with weight decay and vectors without, in the order of the model's parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return the optimiser for a model; fused, which is one pass over memory, on every device that has it."""
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device in ("cpu", "cuda", "mps"),
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Use a learning rate for the next update."""
    for group in optimiser.param_groups:
        group["lr"] = lr
