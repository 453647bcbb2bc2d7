"""Every option of training, once: the command line's flags, its help and ``config.json`` are all made from this tree.

A preset names a recipe: an architecture together with the learning rate and batch that suit it. Options given on top
replace the recipe's values one by one. A run that begins from another's weights has that one's architecture.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from gpt2lab.data.dataset import HELD_OUT
from gpt2lab.data.download import size_of
from gpt2lab.errors import InputError, did_you_mean, one_of
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.runs import Run


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


T = TypeVar("T")
STREAM = "stream:"
LENGTHS = ("steps", "epochs", "max_tokens")
"""The options that say how long a run is: one of them at most is given."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-2 on a directory of token shards.

    Raises:
        InputError: An option is out of range, or the length is not given in exactly one way.
    """

    data: Path = Path("data")
    """Directory that gpt2lab data prepare wrote; or stream:CORPUS, prepared and deleted piece by piece meanwhile."""
    out: Path | None = None
    """Directory of the run, which must not exist; None makes one under runs/."""
    preset: str = "nano"
    """Recipe that the defaults come from: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl."""
    init: Path | None = None
    """Run whose best checkpoint gives the first weights, for fine-tuning; the architecture is then that run's."""
    steps: int | None = None
    """Length in optimiser steps; 1,000 where epochs and max_tokens are not given either."""
    epochs: float | None = None
    """Length in passes over the training split."""
    max_tokens: int | None = None
    """Length in tokens."""
    tokenizer: Path | None = None
    """Directory of the tokenizer that stream:CORPUS is prepared with."""
    column: str | None = None
    """Column with the text in the files of stream:CORPUS; the corpus's own, or text, unless given."""
    max_disk: str | None = None
    """What downloads and token files of stream:CORPUS may take at any moment, such as 20GB."""
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
    mask_documents: bool = False
    """Let attention and positions begin anew at each <|endoftext|>, in training and in its validation."""
    loader_workers: int = 2
    """Threads that read batches ahead; the batches are the same for any number."""
    seed: int = 1337
    """Decides the initial weights, the order of the data and dropout."""
    device: str = "auto"
    """auto cpu cuda cuda:1 mps."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """What the products run in; weights and optimiser are fp32. tf32 and fp16 are for CUDA."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the blocks; auto does where it can and the run is long enough to repay it."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How the processes that torchrun starts share the work: ddp copies the model, fsdp shares it out too; auto does
    where a copy would not leave half of a GPU free."""
    activation_checkpointing: bool = False
    """Keep only each block's input and run the block again in the backward pass: less memory, a third more work."""
    deterministic: bool = False
    """Use only algorithms that give the same bits at every run, slower on CUDA; a CPU always does."""
    on_spike: Literal["warn", "skip", "off"] = "warn"
    """When a step's loss spikes: say so, or skip its update as well."""
    spike_z: float = 6.0
    """A loss spikes when it is so many standard deviations above the mean of the last 100 steps."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where figures go besides metrics.csv; WANDB_MODE=offline keeps Weights & Biases off the network."""
    profile_steps: str | None = None
    """Write a trace of these steps, such as 10:15 for the tenth to the fifteenth, to RUN/trace.json."""
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
    hellaswag: Path | None = None
    """A HellaSwag .jsonl file, to measure on while the run goes on."""
    hellaswag_every: int = 0
    """Steps between measurements on it; 0 measures at the end only."""
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
        self._fill_in()
        self._check_length()
        self._check_stream()
        for name in ("log_every", "eval_every", "checkpoint_every", "keep_last", "batch_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eval_tokens", "sample_every", "hellaswag_every", "patience", "loader_workers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(not self.hellaswag_every or self.hellaswag is not None, "hellaswag", None, "a file to measure on")
        require(0 < self.spike_z < math.inf, "spike_z", self.spike_z, "above 0 and finite")
        require(
            self.profile_steps is None or self.profiled is not None,
            *("profile_steps", self.profile_steps, "FIRST:LAST, such as 10:15, with 1 <= FIRST <= LAST"),
        )
        require(self.micro_batch == "auto" or self.micro_batch >= 1, "micro_batch", self.micro_batch, "auto or 1 up")
        fits = 1 <= self.window <= self.model.n_ctx
        require(fits, "seq_len", self.seq_len, f"between 1 and the model's context of {self.model.n_ctx}")

    def _fill_in(self) -> None:
        """Take what is left out from the preset, or from the run whose weights are the first."""
        if self.init is not None and self.preset != "nano":
            raise InputError(f"preset {self.preset} and init {self.init} both say what the model is; give one of them")
        recipe = RECIPES[self.preset] if self.init is None else FINE_TUNING
        if self.model is None:
            model = PRESETS[self.preset] if self.init is None else saved_config(Run.open(self.init)).model
            object.__setattr__(self, "model", model)
        for name in ("optim", "batch_tokens"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(recipe, name))

    def _check_length(self) -> None:
        given = {name: value for name in LENGTHS if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            raise InputError(f"the length is given twice: {given}; give one of {', '.join(LENGTHS)}")
        for name, value in given.items():
            require(0 < value < math.inf, name, value, "above 0 and finite")

    def _check_stream(self) -> None:
        if self.stream is None:
            for name in ("tokenizer", "column", "max_disk"):
                if (value := getattr(self, name)) is not None:
                    raise InputError(f"{name} {value} is for --data stream:CORPUS, not for {self.data}; leave it out")
            return
        if self.tokenizer is None:
            raise InputError(f"data {self.data} needs --tokenizer DIR, the tokenizer that it is prepared with")
        if self.epochs is not None:
            raise InputError(f"epochs {self.epochs}: {self.data} has no length; give steps or max_tokens")
        if self.max_disk is not None:
            size_of(self.max_disk)

    @property
    def stream(self) -> str | None:
        """The corpus of ``--data stream:CORPUS``; None where the data is a directory."""
        name = self.data.as_posix()
        return name.removeprefix(STREAM) if name.startswith(STREAM) else None

    @property
    def given_length(self) -> str | None:
        """Which of steps, epochs and max_tokens is given, if any."""
        return next((name for name in LENGTHS if getattr(self, name) is not None), None)

    @property
    def profiled(self) -> range | None:
        """The steps to trace, counted from 1."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps or "")
        steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
        return steps if steps and steps[0] >= 1 else None

    @property
    def window(self) -> int:
        """Tokens a sequence."""
        return self.model.n_ctx if self.seq_len is None else self.seq_len


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the tree as plain values, for JSON."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items}
    )


def saved_config(run: Run) -> TrainConfig:
    """Return the configuration that a run was started with, each ``auto`` resolved."""
    return from_dict(run.config, where=str(run.path / "config.json"))


def held_out_data(run: Run, config: TrainConfig) -> Path:
    """Return the directory of prepared data that holds the validation split of a run."""
    return config.data if config.stream is None else run.stream / HELD_OUT


def from_dict(values: Any, where: str = "config.json") -> TrainConfig:
    """Build the tree from plain values, such as JSON gives; what is left out has its default.

    Args:
        values: A dictionary of options.
        where: The file they are from, for messages.

    Raises:
        InputError: An option is unknown (the nearest is suggested), or has a value that it does not allow.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} holds {type(values).__name__}, not the options of a run by name; it is damaged")
    try:
        return _build(TrainConfig, values, "")
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _build(kind: type[T], values: dict[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f'unknown option "{prefix}{name}"{did_you_mean(name, hints)}')
    return kind(**{name: _parse(hints[name], value, prefix + name) for name, value in values.items()})


def _parse(hint: Any, value: Any, name: str) -> Any:
    """Return a value as the type hint wants it; JSON knows neither paths nor the difference of 1 and 1.0."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(cast(type, hint), value, f"{name}.")
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and type(value) is int and abs(value) < 2**53:
            return float(value)
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if isinstance(option, type) and type(value) is option:
            return value
    raise InputError(f"{name} is {value!r}; it must be {' or '.join(map(_spoken, options))}")


def _spoken(option: Any) -> str:
    """Return what a type is called in a message."""
    if typing.get_origin(option) is Literal:
        return ", ".join(map(str, typing.get_args(option)))
    return {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}.get(
        option, "null" if option is types.NoneType else "options by name"
    )


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every option by the name that its flag has, in the order of the tree."""
    values: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        values |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return values


def with_options(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with options replaced, by their flat names.

    Raises:
        InputError: There is no such option (the nearest is named), or it does not allow the value.
    """
    values = flat(config)
    for name in changes:
        if name not in values:
            raise InputError(f'there is no option "{name}"{did_you_mean(name, values)}; see gpt2lab train --help')
    tree: dict[str, Any] = {}
    for name, value in (values | dict(changes)).items():
        group, _, key = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = value
    return from_dict(tree, where=", ".join(f"{name}={value}" for name, value in changes.items()))


def value_of(text: str) -> Any:
    """Return what a value written on a command line means: ``4``, ``1e-3``, ``true``, ``none``, or text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) else text


def flags(config: TrainConfig) -> list[str]:
    """Return the arguments of ``gpt2lab train`` that make this configuration: what differs from where it starts."""
    start = flat(TrainConfig(preset=config.preset, init=config.init))
    words = ["--preset", config.preset] if config.init is None else ["--init", str(config.init)]
    for name, value in flat(config).items():
        if value == start[name]:
            continue
        group, _, key = name.replace("_", "-").rpartition(".")
        above = f"{group}." if group else ""
        if isinstance(value, bool):
            words.append(f"--{above}{key}" if value else f"--{above}no-{key}")
        else:
            words += [f"--{above}{key}", str(value)]
    return words
