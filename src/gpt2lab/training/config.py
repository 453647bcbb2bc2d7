"""Every option of training, once: the command line's flags, its help and ``config.json`` are all made from this tree.

A preset names a recipe: an architecture together with the learning rate and batch that suit it. Options given on top
replace the recipe's values one by one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from gpt2lab.errors import InputError, did_you_mean, one_of
from gpt2lab.model.config import PRESETS, GPTConfig

T = TypeVar("T")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then cosine decay (Brown et al. 2020, appendix B)."""

    lr: float = 6e-4
    """Learning rate at the end of the warm-up."""
    min_lr: float | None = None
    """Learning rate at the last step; None is a tenth of lr."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None is 5 % of the run, at most 2,000."""
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
        if not 0 < self.lr < 1:
            raise InputError(f"optim.lr is {self.lr}; it must be above 0 and below 1, such as 6e-4")
        if not 0 <= self.final_lr <= self.lr:
            raise InputError(f"optim.min_lr is {self.min_lr}; it must be between 0 and optim.lr {self.lr}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise InputError(f"optim.warmup_steps is {self.warmup_steps}; it must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name in ("eps", "grad_clip"):
            if getattr(self, name) <= 0:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        if self.weight_decay < 0:
            raise InputError(f"optim.weight_decay is {self.weight_decay}; it must be at least 0")

    @property
    def final_lr(self) -> float:
        """Learning rate at the last step."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


@dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-2 on a directory of token shards.

    Raises:
        InputError: An option is out of range, or the length is not given in exactly one way.
    """

    data: Path = Path("data")
    """Directory that gpt2lab data prepare wrote."""
    out: Path | None = None
    """Directory of the run, which must not exist; None makes one under runs/."""
    preset: str = "nano"
    """Recipe that the defaults come from: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl."""
    steps: int | None = None
    """Length in optimiser steps."""
    epochs: float | None = None
    """Length in passes over the training split."""
    max_tokens: int | None = None
    """Length in tokens."""
    seq_len: int | None = None
    """Tokens a sequence; None is the model's context."""
    batch_tokens: int | None = None
    """Tokens an optimiser step; None is the recipe's."""
    micro_batch: int | Literal["auto"] = "auto"
    """Sequences a forward pass; auto takes as many as are fast and fit. What is left of the batch is accumulated."""
    model: GPTConfig = cast(GPTConfig, None)  # noqa: RUF009  filled in from the preset
    """Architecture."""
    optim: OptimConfig = cast(OptimConfig, None)  # noqa: RUF009  filled in from the preset
    """Optimiser."""
    seed: int = 1337
    """Decides the initial weights, the order of the data and dropout."""
    device: str = "auto"
    """auto cpu cuda cuda:1 mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the products run in; weights and optimiser are fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the blocks; auto does where it can and the run is long enough to repay it."""
    log_every: int = 10
    """Steps between rows of metrics.csv."""
    eval_every: int = 250
    """Steps between validations."""
    eval_tokens: int = 65_536
    """Tokens of the validation split that are used, spread evenly over it; 0 uses all."""
    sample_every: int = 0
    """Steps between samples; 0 writes them at the end only."""
    sample_prompt: str = ""
    """What samples begin with."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept besides the best."""
    patience: int = 0
    """Validations without a new best before stopping; 0 never stops early."""
    resume: str | None = None
    """Go on with the run in --out: from its last checkpoint, or from that of a given step."""

    def __post_init__(self) -> None:
        one_of("preset", self.preset, PRESETS)
        recipe = RECIPES[self.preset]
        for name, value in (("model", PRESETS[self.preset]), ("optim", recipe.optim)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.batch_tokens is None:
            object.__setattr__(self, "batch_tokens", recipe.batch_tokens)
        self._check_length()
        for name in ("log_every", "eval_every", "checkpoint_every", "keep_last", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("eval_tokens", "sample_every", "patience"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.micro_batch != "auto" and self.micro_batch < 1:
            raise InputError(f"micro_batch is {self.micro_batch}; give at least 1, or auto")
        if not 1 <= self.window <= self.model.n_ctx:
            raise InputError(f"seq_len is {self.seq_len}; the model's context allows 1 to {self.model.n_ctx}")

    def _check_length(self) -> None:
        lengths = {name: getattr(self, name) for name in ("steps", "epochs", "max_tokens")}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) > 1:
            raise InputError(f"the length is given twice: {given}; give one of steps, epochs and max_tokens")
        for name, value in given.items():
            if value <= 0:
                raise InputError(f"{name} is {value}; it must be above 0")

    @property
    def window(self) -> int:
        """Tokens a sequence."""
        return self.model.n_ctx if self.seq_len is None else self.seq_len


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


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the tree as plain values, for JSON."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items}
    )


def from_dict(values: dict[str, Any], kind: type[T] = TrainConfig, where: str = "config.json") -> T:
    """Build the tree from plain values.

    Raises:
        InputError: An option is unknown (the nearest is suggested), or has a value that it does not allow.
    """
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(f'{where}: unknown option "{name}"{did_you_mean(name, hints)}')
        given[name] = _parse(hints[name], value, f"{where}: {name}")
    return kind(**given)


def _parse(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(value, cast(type, hint), where)
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for option in options:
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and type(value) is int:
            return float(value)
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if isinstance(option, type) and type(value) is option:
            return value
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise InputError(f"{where} is {value!r}; it must be {wanted}")
