"""The learning-rate schedule and the optimizers: AdamW, alone or with Muon for the blocks' matrices.

AdamW (Loshchilov & Hutter 2019) scales each parameter's step by the running size of its gradient. Weight decay applies
to matrices only: biases and layer norms shift and scale, and pulling them to zero has no meaning (Brown et al. 2020,
appendix B).

Muon (Jordan et al. 2024) treats the matrix of a hidden layer as one object: it replaces the momentum of its gradient by
the nearest orthogonal matrix, so that every direction moves equally far. Embeddings, biases and norms stay with AdamW.

muP (Yang et al. 2022, Tensor Programs V, table 8) scales a model with its width so that the best learning rate stays
the same. For a model m times as wide as the base (`GPTConfig.mup_scale`):

    matrices of the blocks                 standard deviation / sqrt(m)     AdamW's rate / m, its weight decay x m
    embeddings, head, biases, norms        as for the base                  as for the base
    logits                                 / m

So a matrix of the blocks, whose updates add up over m times as many inputs, moves its outputs as far as in the base.
The paper also divides the scores of attention by D instead of sqrt(D), for heads whose width D grows; give wider models
more heads of the same width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast, overload

import torch
from torch import nn

from gpt2lab.model.gpt import GPT
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.distributed import full_tensor, local_shard

WSD_DECAY_FRACTION = 0.2
"""Between the 10 % of Hu et al. 2024 and the longer decays that train slightly better."""


def warmup_steps(config: OptimConfig, steps: int, batch_tokens: int) -> int:
    """Return the warm-up steps of a run of ``steps`` updates: those configured, else 5 %, at most 2,000."""
    if config.warmup_tokens is not None:
        return min(-(-config.warmup_tokens // batch_tokens), steps)
    return min(2_000, steps // 20) if config.warmup_steps is None else min(config.warmup_steps, steps)


def learning_rate(config: OptimConfig, step: int, steps: int, batch_tokens: int) -> float:
    """Return the learning rate of update ``step`` (from 0) in a run of ``steps`` updates of ``batch_tokens`` tokens."""
    warmup = warmup_steps(config, steps, batch_tokens)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.final_lr + (config.lr - config.final_lr) * _shape(config, step, steps, warmup)


def _shape(config: OptimConfig, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate after the warm-up, scaled so that ``min_lr`` is 0 and ``lr`` is 1."""
    if config.schedule == "constant":
        return 1.0
    begin = warmup
    if config.schedule == "wsd":
        fraction = WSD_DECAY_FRACTION if config.decay_fraction is None else config.decay_fraction
        begin = max(warmup, steps - math.ceil(fraction * steps))
    progress = min(1.0, max(0, step - begin) / max(1, steps - 1 - begin))
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress


MUON_LR, MUON_MOMENTUM = 0.02, 0.95
"""From Jordan et al. 2024; the rate is for orthogonal updates, whose size does not depend on the gradient's."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial a x + b x^3 + c x^5, which maps singular values in (0, 1] to between 0.7 and 1.2."""


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = 5) -> torch.Tensor:
    """Return approximately U V^T of a matrix (rows, columns) with singular value decomposition U S V^T.

    Newton-Schulz iteration: x becomes a x + b (x x^T) x + c (x x^T)^2 x, after division by the norm, so that no
    singular value is above 1. The products run in ``dtype``: bf16 is accurate enough, but on a CPU without bf16 units
    it is 10 to 40 times slower than fp32.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices with weight decay, and vectors without."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: LanguageModel, config: OptimConfig, dtype: torch.dtype = torch.bfloat16
) -> torch.optim.Optimizer:
    """Return the configured optimizer for a model; Muon's products run in ``dtype``, its state is always fp32."""
    if config.name == "muon":
        return MuonWithAdamW(model, config, dtype)
    optimizer = adamw(list(model.parameters()), config)
    scale = model.config.mup_scale if isinstance(model, GPT) else 1.0
    if scale != 1.0:
        hidden = {p for name, p in model.named_parameters() if name.startswith("h.")}
        matrices = optimizer.param_groups[0]
        inside = [p for p in matrices["params"] if p in hidden]
        matrices["params"] = [p for p in matrices["params"] if p not in hidden]
        scaled = {"lr": config.lr / scale, "lr_scale": 1 / scale, "weight_decay": config.weight_decay * scale}
        optimizer.add_param_group({"params": inside} | scaled)
    return optimizer


def adamw(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW for parameters; fused (one pass over memory) on every device that supports it."""
    return torch.optim.AdamW(
        parameter_groups(parameters, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=parameters[0].device.type in ("cpu", "cuda", "mps"),
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks and AdamW on everything else, as one optimizer with one state.

    Muon's state is one ``momentum_buffer`` per matrix.
    """

    def __init__(self, model: LanguageModel, config: OptimConfig, dtype: torch.dtype) -> None:
        hidden = model.hidden_matrices()
        inside = {id(p) for p in hidden}
        super().__init__([{"params": list(model.parameters())}], {})
        self._adamw = adamw([p for p in model.parameters() if id(p) not in inside], config)
        self._adamw.state = self.state
        rate = MUON_LR if config.muon_lr is None else config.muon_lr
        muon = {"params": hidden, "lr": rate, "lr_scale": rate / config.lr, "weight_decay": config.weight_decay}
        self.param_groups = [muon | {"momentum": MUON_MOMENTUM}, *self._adamw.param_groups]
        self._dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter from its gradient."""
        loss = None if closure is None else closure()
        muon = self.param_groups[0]
        for parameter in muon["params"]:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, muon)
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _update(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = cast(dict[str, torch.Tensor], self.state[parameter])
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(full_tensor(gradient.lerp(momentum, group["momentum"])), self._dtype)
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(local_shard(update, parameter), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def state_names(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return the names of an optimizer's state tensors for each parameter."""
    adamw_keeps, muon_keeps = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
    return {
        parameter: muon_keeps if "momentum" in group else adamw_keeps
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next update; Muon's stays in proportion to it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
