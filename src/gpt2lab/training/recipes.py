"""Learning rates and batches that suit a model, and the options of the optimiser that they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpt2lab.errors import InputError, one_of


def require(true: bool, name: str, value: object, allowed: str) -> None:
    """Raise `InputError` unless an option's value is allowed. Compare so that NaN is not."""
    if not true:
        raise InputError(f"{name} is {value}; it must be {allowed}")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule; the defaults are those of Brown et al. 2020, appendix B."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon on the blocks' matrices with adamw on the rest."""
    lr: float = 6e-4
    """AdamW's learning rate at the end of the warm-up."""
    muon_lr: float | None = None
    """Muon's learning rate there; None is 0.02. It follows the same schedule."""
    min_lr: float | None = None
    """Learning rate at the last step; None is a tenth of lr."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the warm-up: cosine or linear decay to min_lr, constant, or wsd: constant, then decay at the end."""
    decay_fraction: float | None = None
    """Share of the run in which wsd decays; None is 0.2."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None is 5 % of the run, at most 2,000."""
    warmup_tokens: int | None = None
    """The warm-up in tokens, in place of warmup_steps; rounded up to whole steps."""
    beta1: float = 0.9
    """Decay of the gradient's running mean."""
    beta2: float = 0.95
    """Decay of the squared gradient's running mean."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, ("adamw", "muon"))
        if self.muon_lr is not None:
            require(0 < self.muon_lr < 1, "optim.muon_lr", self.muon_lr, "above 0 and below 1, such as 0.02")
            require(self.name == "muon", "optim.name", self.name, "muon where optim.muon_lr is given")
        require(0 < self.lr < 1, "optim.lr", self.lr, "above 0 and below 1, such as 6e-4")
        require(0 <= self.final_lr <= self.lr, "optim.min_lr", self.min_lr, f"between 0 and optim.lr {self.lr}")
        self._check_schedule()
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "at least 0 and below 1")
        for name in ("eps", "grad_clip"):
            require(0 < getattr(self, name) < math.inf, f"optim.{name}", getattr(self, name), "above 0 and finite")
        require(0 <= self.weight_decay < math.inf, "optim.weight_decay", self.weight_decay, "at least 0 and finite")

    def _check_schedule(self) -> None:
        one_of("optim.schedule", self.schedule, ("cosine", "linear", "constant", "wsd"))
        for name in ("warmup_steps", "warmup_tokens"):
            require((getattr(self, name) or 0) >= 0, f"optim.{name}", getattr(self, name), "at least 0")
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise InputError(
                f"the warm-up is given twice: optim.warmup_steps {self.warmup_steps} and optim.warmup_tokens "
                f"{self.warmup_tokens}; give one of them"
            )
        if self.schedule == "constant" and self.min_lr is not None:
            raise InputError(f"optim.min_lr is {self.min_lr}, but a constant schedule has no decay; leave it out")
        if self.decay_fraction is not None:
            require(0 < self.decay_fraction <= 1, "optim.decay_fraction", self.decay_fraction, "above 0 and at most 1")
            require(self.schedule == "wsd", "optim.schedule", self.schedule, "wsd where optim.decay_fraction is given")

    @property
    def final_lr(self) -> float:
        """Learning rate that a decay ends at."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


@dataclass(frozen=True)
class Recipe:
    """What suits a preset besides its architecture."""

    optim: OptimConfig
    batch_tokens: int


RECIPES: dict[str, Recipe] = {
    # Ours, tuned on a CPU.
    "nano": Recipe(OptimConfig(lr=3e-3), batch_tokens=4_096),
    "tiny": Recipe(OptimConfig(lr=2e-3), batch_tokens=8_192),
    # Batches and learning rates of Brown et al. 2020, table 2.1, for the sizes nearest to GPT-2's.
    "distilgpt2": Recipe(OptimConfig(), batch_tokens=524_288),
    "gpt2": Recipe(OptimConfig(), batch_tokens=524_288),
    "gpt2-medium": Recipe(OptimConfig(lr=3e-4), batch_tokens=524_288),
    "gpt2-large": Recipe(OptimConfig(lr=2.5e-4), batch_tokens=524_288),
    "gpt2-xl": Recipe(OptimConfig(lr=2e-4), batch_tokens=1_048_576),
}

FINE_TUNING = Recipe(OptimConfig(lr=5e-5), batch_tokens=8_192)
"""For a run that begins from trained weights: small steps (GPT-1 was fine-tuned at 6.25e-5, Radford et al. 2018)."""
