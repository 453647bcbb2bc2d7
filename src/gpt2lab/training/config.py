"""Every option of training, once: the flags of the command line, its help and ``config.json`` come from this tree.

    TrainConfig       what was asked for: options may be None or "auto"
    ResolvedConfig    what it was resolved to (see setup.py): every value is concrete; this is config.json

A preset is an architecture, with the batch size and GPT-2's learning rate for it. A recipe is a way to train any of
them: the options that it sets instead of the preset's. Options given on top replace single values of both. Fine-tuning
(``init``) takes the architecture of the run it starts from.
This module imports without torch, so that ``--help`` is fast.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from gpt2lab.errors import InputError, did_you_mean, one_of, require
from gpt2lab.files import from_json, parse_size
from gpt2lab.imports import FILES, import_from, import_model
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.runs import Run

LEAVE_OUT = "leave it out, or set it to None if the recipe sets it"


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule; the defaults are those of Brown et al. 2020, appendix B."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon on the blocks' matrices with adamw on the rest."""
    lr: float = 6e-4
    """AdamW's learning rate at the end of the warm-up."""
    muon_lr: float | None = None
    """Muon's learning rate at the end of the warm-up; None is 0.02. It follows the same schedule."""
    min_lr: float | None = None
    """Learning rate at the last step; None is a tenth of lr."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the warm-up: cosine or linear decay to min_lr, constant, or wsd: constant, then decay at the end."""
    decay_fraction: float | None = None
    """Fraction of the run in which wsd decays; None is 0.2."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None is 5 % of the run, at most 2,000."""
    warmup_tokens: int | None = None
    """Warm-up in tokens instead of warmup_steps; rounded up to whole steps."""
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
            if self.name != "muon":
                raise InputError(
                    f"optim.muon_lr {self.muon_lr} with optim.name {self.name}; only muon takes it: {LEAVE_OUT}"
                )
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
            raise InputError(f"optim.min_lr is {self.min_lr}, but a constant schedule has no decay: {LEAVE_OUT}")
        if (fraction := self.decay_fraction) is not None:
            require(0 < fraction <= 1, "optim.decay_fraction", fraction, "above 0 and at most 1")
            if self.schedule != "wsd":
                raise InputError(
                    f"optim.decay_fraction {fraction} with optim.schedule {self.schedule}; only wsd takes it: "
                    f"{LEAVE_OUT}"
                )

    @property
    def final_lr(self) -> float:
        """Learning rate that a decay ends at."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


@dataclass(frozen=True)
class Recipe:
    """How any preset is trained: the options that a recipe sets, as in ``config.json``."""

    optim: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    grow_batch: str = "off"
    grow_seq_len: str = "off"


RECIPES: dict[str, Recipe] = {
    "gpt2": Recipe(),
    "fast": Recipe(
        optim={"name": "muon", "lr": 0.02, "muon_lr": 0.02, "schedule": "linear", "min_lr": 0.0},
        model={"dropout": 0.0, "position": "rope", "qk_norm": True},
        grow_batch="0.4",
    ),
}
"""``gpt2`` trains as GPT-2 was trained; ``fast`` reaches a loss in the least time (docs/optimizers.md)."""


@dataclass(frozen=True)
class Essentials:
    """An architecture, and the optimizer and batch size that it is trained with."""

    model: GPTConfig
    optim: OptimConfig
    batch_tokens: int

    def trained_by(self, recipe: Recipe) -> Essentials:
        """Return what they are under a recipe."""
        optim = dataclasses.replace(self.optim, **recipe.optim)
        return Essentials(dataclasses.replace(self.model, **recipe.model), optim, self.batch_tokens)


BY_PRESET: dict[str, Essentials] = {
    # Tuned for this project on a CPU.
    "nano": Essentials(PRESETS["nano"], OptimConfig(lr=3e-3), 4_096),
    "tiny": Essentials(PRESETS["tiny"], OptimConfig(lr=2e-3), 8_192),
    # Batch sizes and learning rates of Brown et al. 2020, table 2.1, for the sizes nearest to GPT-2's.
    "distilgpt2": Essentials(PRESETS["distilgpt2"], OptimConfig(), 524_288),
    "gpt2": Essentials(PRESETS["gpt2"], OptimConfig(), 524_288),
    "gpt2-medium": Essentials(PRESETS["gpt2-medium"], OptimConfig(lr=3e-4), 524_288),
    "gpt2-large": Essentials(PRESETS["gpt2-large"], OptimConfig(lr=2.5e-4), 524_288),
    "gpt2-xl": Essentials(PRESETS["gpt2-xl"], OptimConfig(lr=2e-4), 1_048_576),
    "gpt2-modern": Essentials(PRESETS["gpt2-modern"], OptimConfig(), 524_288),
    # The batch of the assignment's run on a CPU; it leaves the learning rate to the student.
    "cs336": Essentials(PRESETS["cs336"], OptimConfig(lr=1e-3), 8_192),
}
FINE_TUNING_OPTIM, FINE_TUNING_BATCH_TOKENS = OptimConfig(lr=5e-5), 8_192
"""For a run that starts from trained weights: small steps (GPT-1 was fine-tuned at 6.25e-5, Radford et al. 2018)."""

GROWING = ("grow_batch", "grow_seq_len")
POINT = r"(0\.\d*[1-9]\d*|[1-9]\d*)"
STREAM = "stream:"
LENGTHS = ("steps", "epochs", "max_tokens")
"""The options that set the length of a run; at most one of them is given."""
INTERVALS = {"log_every": (20, 10), "eval_every": (10, 250), "checkpoint_every": (10, 1_000)}
"""Options that default to a part of the run: how many parts it has, and the most steps."""
LEAST = dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "keep_last", "batch_tokens", "micro_batch"), 1)
LEAST |= dict.fromkeys(("eval_tokens", "sample_every", "hellaswag_every", "patience", "loader_workers"), 0)
"""The smallest value that an option allows."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-2 on a directory of token shards.

    Raises:
        InputError: An option is out of range, or two options contradict each other.
    """

    data: Path = Path("data")
    """Directory written by gpt2lab data prepare; or stream:CORPUS, prepared on the fly and deleted after use."""
    out: Path | None = None
    """Run directory, which must not exist; None creates one under runs/."""
    preset: str = "nano"
    """Architecture and batch size: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl gpt2-modern cs336."""
    recipe: str = "gpt2"
    """How to train it: gpt2, as GPT-2 was trained, or fast, the options that reach a loss in the least time."""
    init: Path | None = None
    """Fine-tune: start from the best checkpoint of this run, with its architecture."""
    steps: int | None = None
    """Length in optimizer steps; 1,000 if neither epochs nor max_tokens is given."""
    epochs: float | None = None
    """Length in passes over the training split."""
    max_tokens: int | None = None
    """Length in tokens."""
    tokenizer: Path | None = None
    """Tokenizer to prepare stream:CORPUS with: a directory, or a name on the Hub."""
    column: str | None = None
    """Text column in the files of stream:CORPUS; None is the corpus's default."""
    max_disk: str | None = None
    """Disk space that stream:CORPUS may use for downloads and token files, such as 20GB."""
    seq_len: int | None = None
    """Tokens per sequence; None is the model's context."""
    batch_tokens: int | None = None
    """Tokens per optimizer step; None is the preset's."""
    grow_batch: str | None = None
    """Fractions of the run (or steps) at which the batch doubles, up to batch_tokens: 0.25:0.5, or off."""
    grow_seq_len: str | None = None
    """Fractions of the run (or steps) at which sequences double in length, up to seq_len: 0.25:0.5, or off."""
    micro_batch: int | Literal["auto"] = "auto"
    """Sequences per forward pass; auto takes as many as are fast and fit. Gradients accumulate over the batch."""
    model: GPTConfig | None = None
    """Architecture; None is that of preset and recipe."""
    optim: OptimConfig | None = None
    """Optimizer; None is that of preset and recipe."""
    sampling: Literal["permutation", "random"] = "permutation"
    """Windows of a step: a permutation of consecutive windows each epoch, or random offsets, as nanoGPT draws them."""
    mask_documents: bool = False
    """Keep attention and positions within each document, in training and validation."""
    loader_workers: int = 2
    """Threads that read batches ahead; the batches do not depend on it."""
    seed: int = 1337
    """Seed of the initial weights, the data order and dropout."""
    device: str = "auto"
    """auto cpu cuda cuda:1 mps."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of matrix products; weights and optimizer state are fp32. tf32 and fp16 need CUDA."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the blocks and, on a GPU, the loss; auto does if a compiler exists and the run is long enough."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """Across torchrun processes: ddp replicates, fsdp shards; auto: fsdp if a replica exceeds half of GPU memory."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more compute."""
    deterministic: bool = False
    """Use deterministic algorithms only, slower on CUDA; CPUs are always deterministic."""
    on_spike: Literal["warn", "skip", "off"] = "warn"
    """What to do when the loss spikes: warn, or warn and skip the update."""
    spike_z: float = 6.0
    """A spike is a loss this many standard deviations above the mean of the last 100 steps."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log metrics here as well as to metrics.csv; WANDB_MODE=offline keeps Weights & Biases off the network."""
    profile_steps: str | None = None
    """Steps to trace with torch.profiler into the run directory, such as 10:15 (inclusive)."""
    log_every: int | None = None
    """Steps between rows of metrics.csv; None is a twentieth of the run, at most 10."""
    eval_every: int | None = None
    """Steps between validations; None is a tenth of the run, at most 250."""
    eval_tokens: int = 65_536
    """Validation tokens to use, spread evenly over the split; 0 uses all."""
    sample_every: int = 0
    """Steps between samples; 0 samples at the end only."""
    sample_prompt: str = ""
    """Prompt of the samples."""
    hellaswag: Path | None = None
    """HellaSwag .jsonl file to evaluate on during training."""
    hellaswag_every: int = 0
    """Steps between HellaSwag evaluations; 0 evaluates at the end only."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None is a tenth of the run, at most 1,000."""
    keep_last: int = 2
    """Checkpoints to keep in addition to the best."""
    patience: int = 0
    """Stop after this many validations without improvement; 0 never stops early."""
    resume: str | None = None
    """Resume the run in --out from this checkpoint: last, best or a step."""

    def __post_init__(self) -> None:
        one_of("preset", self.preset, PRESETS)
        one_of("recipe", self.recipe, RECIPES)
        if self.init is not None and self.preset != "nano":
            raise InputError(f"preset {self.preset} and init {self.init} both determine the model; give only one")
        if self.init is not None and self.recipe != "gpt2":
            raise InputError(
                f"recipe {self.recipe} with init {self.init}: a recipe is for training from random weights; leave out "
                "one of them"
            )
        self._check_length()
        self._check_stream()
        for name, least in LEAST.items():
            value = getattr(self, name)
            require(value in (None, "auto") or value >= least, name, value, f"at least {least}")
        if self.hellaswag_every and self.hellaswag is None:
            raise InputError("hellaswag_every needs --hellaswag FILE")
        one_of("sampling", self.sampling, ("permutation", "random"))
        for name in GROWING:
            value = getattr(self, name)
            fits = value is None or re.fullmatch(rf"off|{POINT}(:{POINT})*", value)
            require(bool(fits), name, value, "fractions of the run or steps, such as 0.25:0.5 or 100:200, or off")
        if self.optim is not None and self.optim.warmup_tokens is not None and self.grow_batch not in (None, "off"):
            raise InputError(
                f"optim.warmup_tokens {self.optim.warmup_tokens} with grow_batch {self.grow_batch}: the steps of a "
                "growing batch differ in tokens; give optim.warmup_steps"
            )
        require(0 < self.spike_z < math.inf, "spike_z", self.spike_z, "above 0 and finite")
        prompt = ascii(self.sample_prompt)
        require(not re.search(r"\\ud[89a-f]", prompt), "sample_prompt", prompt, "text in the encoding of the terminal")
        traced = self.profile_steps is None or self.profiled is not None
        require(traced, "profile_steps", self.profile_steps, "FIRST:LAST, such as 10:15, with 1 <= FIRST <= LAST")
        model = PRESETS[self.preset] if self.model is None and self.init is None else self.model
        if model is not None and self.seq_len is not None:
            fits = 1 <= self.seq_len <= model.n_ctx
            require(fits, "seq_len", self.seq_len, f"between 1 and the model's context of {model.n_ctx}")

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
            raise InputError(f"data {self.data} needs --tokenizer DIR, the tokenizer to prepare it with")
        if self.epochs is not None:
            raise InputError(f"epochs {self.epochs}: {self.data} has no known length; give steps or max_tokens")
        if self.max_disk is not None:
            parse_size(self.max_disk)

    def essentials(self) -> Essentials:
        """Return the architecture, optimizer and batch size: those given, else those of preset and recipe or ``init``.

        Raises:
            InputError: ``init`` is not a run.
        """
        if self.init is None:
            default = BY_PRESET[self.preset].trained_by(RECIPES[self.recipe])
        else:
            model = self.model or saved_model(Run.open(self.init))
            default = Essentials(model, FINE_TUNING_OPTIM, FINE_TUNING_BATCH_TOKENS)
        batch_tokens = default.batch_tokens if self.batch_tokens is None else self.batch_tokens
        return Essentials((self.model or default.model).with_import(), self.optim or default.optim, batch_tokens)

    def filled_in(self) -> TrainConfig:
        """Return the configuration with the options of `essentials` and the recipe's growth given."""
        recipe = RECIPES[self.recipe]
        growth = {name: getattr(self, name) or getattr(recipe, name) for name in GROWING}
        return dataclasses.replace(self, **vars(self.essentials()), **growth)

    def growth(self, steps: int) -> dict[str, str]:
        """Return the options of growth with fractions turned into steps, for a run of this length."""
        recipe = RECIPES[self.recipe]
        found = {name: doublings(getattr(self, name) or getattr(recipe, name), steps) for name in GROWING}
        return {name: ":".join(map(str, steps)) or "off" for name, steps in found.items()}

    def intervals(self, steps: int) -> dict[str, int]:
        """Return the options in `INTERVALS` as given, or else their defaults for a run of this length."""
        return {
            name: getattr(self, name) or max(1, min(most, steps // parts)) for name, (parts, most) in INTERVALS.items()
        }

    @property
    def stream(self) -> str | None:
        """The corpus of ``--data stream:CORPUS``; None if the data is a directory."""
        name = self.data.as_posix()
        return name.removeprefix(STREAM) if name.startswith(STREAM) else None

    @property
    def profiled(self) -> range | None:
        """The steps to trace, counted from 1."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps or "")
        steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
        return steps if steps and steps[0] >= 1 else None


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """What a `TrainConfig` was resolved to: every value is concrete. A run's ``config.json`` holds it."""

    out: Path = field()
    steps: int = field()
    epochs: None = None
    max_tokens: None = None
    seq_len: int = field()
    batch_tokens: int = field()
    grow_batch: str = "off"
    grow_seq_len: str = "off"
    micro_batch: int = field()
    model: GPTConfig = field()
    optim: OptimConfig = field()
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = field()
    compile: Literal["on", "off"] = field()
    parallel: Literal["none", "ddp", "fsdp"] = field()
    log_every: int = field()
    eval_every: int = field()
    checkpoint_every: int = field()

    @property
    def grows(self) -> bool:
        """Whether batch or context grow during training."""
        return (self.grow_batch, self.grow_seq_len) != ("off", "off")

    def as_asked(self) -> TrainConfig:
        """Return the same values as a `TrainConfig`, whose options may be None or ``auto`` again."""
        return TrainConfig(**vars(self))


def doublings(growth: str, steps: int) -> tuple[int, ...]:
    """Return the steps at which a size doubles, ascending, in a run of this length; see ``TrainConfig.grow_batch``.

    >>> doublings("0.25:0.5", 1000)
    (250, 500)
    """
    points = [] if growth == "off" else growth.split(":")
    return tuple(sorted(math.ceil(float(p) * steps) if p.startswith("0.") else int(p) for p in points))


def saved_config(run: Run) -> ResolvedConfig:
    """Return the configuration in a run's ``config.json``.

    Raises:
        InputError: It is damaged, of another version, or needs code that is not trusted, or the run holds an imported
            model and was never trained.
    """
    import_from(run)
    if run.config.keys() == {"model"}:
        raise InputError(f"{run.path} holds an imported model, not a training run; train it with --init {run.path}")
    return from_json(ResolvedConfig, run.config, run.path / "config.json")


def saved_model(run: Run) -> GPTConfig:
    """Return the architecture in a run's ``config.json``; an imported model has one, too. Raises as `saved_config`."""
    import_from(run)
    return from_json(GPTConfig, run.config.get("model"), run.path / "config.json", "model")


def held_out_data(run: Run, config: TrainConfig) -> Path:
    """Return the directory of prepared data that holds the validation split of a run."""
    from gpt2lab.data.dataset import HELD_OUT

    return config.data if config.stream is None else run.stream / HELD_OUT


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the tree as plain values, for JSON."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items}
    )


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every option by the name that its flag has, in the order of the tree."""
    return flatten(to_dict(config))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ``config.json`` by the names that their flags have, such as ``model.n_layer``."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return values


def with_options(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with options replaced, by their flat names; ``model`` is a class of the user's own.

    Raises:
        InputError: There is no such option (the nearest is named), or it does not allow the value.
    """
    tree, names = to_dict(config.filled_in()), flat(config.filled_in())
    for name, value in changes.items():
        if name == "model":
            tree["model"] |= import_model(str(value))
            continue
        if name not in names:
            raise InputError(f'there is no option "{name}"{did_you_mean(name, names)}; see gpt2lab train --help')
        group, _, key = name.rpartition(".")
        (tree[group] if group else tree)[key] = value
    return from_json(TrainConfig, tree, ", ".join(f"{name}={value}" for name, value in changes.items()))


def value_of(text: str, option: str) -> Any:
    """Return what a value on a command line means: a choice of the option, ``4``, ``1e-3``, ``none``, or text."""
    word = text.strip().lower()
    group, _, key = option.rpartition(".")
    hints = get_type_hints({"model": GPTConfig, "optim": OptimConfig}.get(group, TrainConfig))
    if word in get_args(hints.get(key)):
        return word  # "none" may be one
    try:
        value = json.loads("null" if word == "none" else word)
    except json.JSONDecodeError:
        return text
    is_text = value is not None and str in get_args(hints.get(key))
    return text if is_text or isinstance(value, str | list | dict) else value


def flags(config: TrainConfig) -> list[str]:
    """Return the arguments of ``gpt2lab train`` that make this configuration: what differs from preset and recipe."""
    start = flat(TrainConfig(preset=config.preset, recipe=config.recipe, init=config.init).filled_in())
    words = ["--preset", config.preset] if config.init is None else ["--init", str(config.init)]
    words += ["--recipe", config.recipe] if config.recipe != "gpt2" else []
    options = flat(config.filled_in())
    file, network = FILES.get(options["model.import_sha256"]), options["model.network"]
    for name, value in options.items():
        if value == start[name]:
            continue
        group, dot, key = name.replace("_", "-").rpartition(".")
        if name == "model.import_sha256":
            words += ["--import", str(file.path)] if file is not None and network is None else []
        elif name == "model.network" and file is not None:
            words += ["--model", f"{file.path}:{value}"]
        elif isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{key}")
        else:
            words += [f"--{group}{dot}{key}", str(value)]
    return words
