"""The runs of a comparison: every combination of the varied options with every seed, as ordinary runs.

    DIR/position=rope,n_kv_head=1/seed_1337/        a run directory
    DIR/position=rope,n_kv_head=1/seed_1338/        ...

Runs of one seed read the same batches in the same order whatever their arm, so that their differences are paired.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import formatting
from gpt2lab.compare.results import short_names
from gpt2lab.data.shards import DataManifest
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_causal_mask
from gpt2lab.training.config import ResolvedConfig, TrainConfig, flags, flat, value_of, with_options
from gpt2lab.training.setup import total_steps

CANNOT_VARY = {
    "out": "give the directory of the comparison with --out",
    "seed": "give the number of seeds with --seeds",
    "resume": "an interrupted comparison resumes by itself",
    "preset": "give a base configuration for each preset",
}
"""Options that cannot vary, and what to use instead."""


class Job(NamedTuple):
    """One run of an arm."""

    arm: str
    config: TrainConfig
    """Complete, with ``out`` and ``seed``."""
    path: Path
    """The run directory."""

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        return shlex.join(["gpt2lab", "train", *flags(self.config)])


@dataclass(frozen=True)
class ComparisonPlan:
    """The arms and seeds of a comparison; the first arm is the reference."""

    arms: dict[str, TrainConfig]
    """What the runs of each arm have in common, by its name."""
    seeds: tuple[int, ...]
    out: Path

    @property
    def jobs(self) -> list[Job]:
        """The runs, seed by seed, so that an interrupted comparison has complete pairs."""
        jobs = []
        for seed in self.seeds:
            for (arm, config), folder in zip(self.arms.items(), _folders(list(self.arms)), strict=True):
                path = self.out / folder / f"seed_{seed}"
                jobs.append(Job(arm, dataclasses.replace(config, seed=seed, out=path), path))
        return jobs

    @property
    def remarks(self) -> list[str]:
        """What weakens the comparison."""
        configs = self.arms.values()
        recipes = [config.recipe() for config in configs]
        varied = {
            "data": [config.data for config in configs],
            "batch tokens": [recipe.batch_tokens for recipe in recipes],
            "sequence length": [c.seq_len or r.model.n_ctx for c, r in zip(configs, recipes, strict=True)],
        }
        differing = [name for name, values in varied.items() if len(set(values)) > 1]
        remarks = [f"The arms differ in {name}: runs of one seed do not read the same batches." for name in differing]
        if len({config.mask_documents for config in configs}) > 1:
            remarks.append(
                "The arms differ in mask documents, and each is measured as it was trained: with the mask, the first "
                "tokens of a document have less context."
            )
        if len(self.seeds) == 1:
            remarks.append("One seed: there is no interval, and a difference may be chance. Use at least three seeds.")
        return remarks


def make_plan(
    bases: TrainConfig | Sequence[TrainConfig],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    out: Path,
    named: Mapping[str, Mapping[str, Any]] | None = None,
) -> ComparisonPlan:
    """Combine base configurations (one for each preset that is compared) with every value of the varied options.

    Args:
        bases: What the runs have in common; their seed is the first one.
        vary: Values by the flat names of the options, such as ``{"model.n_kv_head": [4, 1]}``.
        seeds: Runs of each arm: the seed of the base and those that follow it.
        out: Directory of the comparison.
        named: Changes that belong together, by the name of their arm, such as
            ``{"window": {"model.mask": "window", "model.window": 64}}``; each is combined with every varied value.

    Raises:
        InputError: An option does not exist or cannot vary, a value is not allowed, there is nothing to compare, the
            data has no test split, or a mask looks ahead, so that the loss of its run could not be measured.
    """
    bases = [bases] if isinstance(bases, TrainConfig) else bases
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; give at least 1, and 3 or more for an interval")
    named = named or {"": {}}
    _check_options(vary, named)
    _require_distinct("preset", [base.preset for base in bases])
    names = short_names(list(vary))
    arms = {}
    for base, (arm_name, own), values in itertools.product(bases, named.items(), itertools.product(*vary.values())):
        changes = dict(zip(vary, values, strict=True))
        label = [f"preset={base.preset}"] if len(bases) > 1 else []
        label += [arm_name] if arm_name else []
        label += [f"{names[name]}={_text(value)}" for name, value in changes.items()]
        arms[", ".join(label)] = with_options(base, {**own, **changes})
    if len(arms) < 2:
        raise InputError("nothing to compare: one combination of options; give --vary OPTION=VALUE,VALUE, or two --arm")
    for config in arms.values():
        require_causal_mask(config.recipe().model)
    for data in {config.data for config in arms.values()}:
        if "test" not in DataManifest.load(data).splits:
            raise InputError(f"{data}: has no test split to compare on; prepare it with a --test-fraction above 0")
    first = bases[0].seed
    return ComparisonPlan(arms, tuple(range(first, first + seeds)), out)


def _check_options(vary: Mapping[str, Sequence[Any]], named: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `InputError` if an option cannot vary, or is varied twice."""
    changed = {name for own in named.values() for name in own}
    for name in [*vary, *changed]:
        if name in CANNOT_VARY:
            raise InputError(f"{name} cannot vary: {CANNOT_VARY[name]}")
    for name, values in vary.items():
        if name in changed:
            raise InputError(f"{name} is in both --vary and --arm; remove it from one of them")
        _require_distinct(name, values)


def _require_distinct(name: str, values: Sequence[Any]) -> None:
    if len(set(map(str, values))) < len(values):
        raise InputError(f"{name} has a value twice in {', '.join(map(str, values))}; give each value once")


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _folders(names: Sequence[str]) -> list[str]:
    """Return a folder name for each arm that is valid in every file system."""
    plain = [re.sub(r"[^\w.=+,-]+", "-", name.replace(", ", ",")) for name in names]
    return [name if plain.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(plain, start=1)]


def require_same_options(job: Job, saved: ResolvedConfig) -> None:
    """Raise `InputError` if an existing run was started with other options than its job has."""
    config = job.config.filled_in()
    recipe = config.recipe()
    seq_len = recipe.model.n_ctx if config.seq_len is None else config.seq_len
    steps = total_steps(config, recipe.batch_tokens, seq_len, DataManifest.load(config.data))
    chosen = {"seq_len": seq_len, "steps": steps, "epochs": None, "max_tokens": None, **config.intervals(steps)}
    asked = dataclasses.replace(config, **chosen)
    before = flat(saved)
    for name, value in flat(asked).items():
        free = name in ("data", "out", "resume", "model.vocab_size") or value == "auto"
        if not free and before[name] != value:
            was, now = formatting.setting(before[name]), formatting.setting(value)
            raise InputError(f"{job.path} was run with {name} {was}, this comparison has {now}; give another --out")


def parse_variations(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse ``OPTION=VALUE,VALUE`` of a command line into values by option; ``-`` and ``_`` are the same.

    Raises:
        InputError: A text has another form, or an option comes twice.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or "" in values.split(","):
            raise InputError(f'--vary "{text}" is not OPTION=VALUE,VALUE, such as model.position=learned,rope')
        if name in varied:
            raise InputError(f"--vary {name} is given twice; give its values once, separated by commas")
        varied[name] = [value_of(value) for value in values.split(",")]
    return varied


def parse_arms(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``NAME: OPTION=VALUE OPTION=VALUE`` of a command line into changes by the name of the arm.

    Raises:
        InputError: A text has another form, or a name or an option comes twice.
    """
    arms: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        pairs = [word.partition("=") for word in rest.split()]
        if not (name and colon) or not all(option and value for option, _, value in pairs):
            example = '"window: model.mask=window model.window=64"'
            raise InputError(f'--arm "{text}" is not NAME: OPTION=VALUE ..., such as {example}')
        changes = {option.replace("-", "_"): value_of(value) for option, _, value in pairs}
        if name in arms or len(changes) < len(pairs):
            raise InputError(f'--arm "{text}" repeats a name or an option; give each once')
        arms[name] = changes
    return arms
