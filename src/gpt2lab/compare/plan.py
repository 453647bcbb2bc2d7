"""What a comparison runs: every combination of the varied options, each with every seed, as ordinary runs.

    DIR/position=rope,n_kv_head=1/seed_1337/        a run directory
    DIR/position=rope,n_kv_head=1/seed_1338/        ...

Runs of one seed read the same batches in the same order, whatever their arm, so that their differences are paired.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab import formatting
from gpt2lab.data.shards import DataManifest
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_no_leak
from gpt2lab.training.config import ResolvedConfig, TrainConfig, flags, flat, value_of, with_options
from gpt2lab.training.setup import total_steps

ELSEWHERE = {
    "out": "give the directory of the comparison by --out",
    "seed": "say how many seeds by --seeds",
    "resume": "a comparison goes on by itself where it was stopped",
    "preset": "give a base configuration of each preset",
}
"""Options that cannot vary, and what does it instead."""


@dataclass(frozen=True)
class Arm:
    """One combination of the varied options."""

    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Job:
    """One run of an arm."""

    arm: str
    config: TrainConfig
    """Complete, ``out`` and ``seed`` included."""

    @property
    def path(self) -> Path:
        """The run directory."""
        assert self.config.out is not None
        return self.config.out

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        return shlex.join(["gpt2lab", "train", *flags(self.config)])


@dataclass(frozen=True)
class Plan:
    """A comparison before it is run; the first arm is the one that the others are compared with."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    out: Path

    @property
    def jobs(self) -> list[Job]:
        """The runs, seed by seed, so that a comparison that is stopped has whole pairs."""
        folders = _folders([arm.name for arm in self.arms])
        return [
            Job(arm.name, dataclasses.replace(arm.config, seed=seed, out=self.out / folder / f"seed_{seed}"))
            for seed in self.seeds
            for arm, folder in zip(self.arms, folders, strict=True)
        ]


def make_plan(
    bases: TrainConfig | Sequence[TrainConfig],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    out: Path,
    named: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Combine base configurations (one for each preset that is compared) with every value of the varied options.

    Args:
        bases: What the runs have in common; their seed is the first.
        vary: Values by the options' flat names, such as ``{"model.n_kv_head": [4, 1]}``.
        seeds: Runs of each arm: the base's seed and those that follow it.
        out: Directory of the comparison.
        named: Changes that belong together, by the name of the arm that they make, such as
            ``{"window": {"model.mask": "window", "model.window": 64}}``; each is combined with every varied value.

    Raises:
        InputError: An option does not exist or cannot vary, a value is not allowed, there is nothing to compare, the
            data has no test split, or a mask looks ahead, so that its run's loss could not be measured.
    """
    bases = [bases] if isinstance(bases, TrainConfig) else bases
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; give at least 1, and 3 or more for an interval")
    named = named or {"": {}}
    _check_options(vary, named)
    names = _short(vary)
    arms = []
    for base, (own_name, own), values in itertools.product(bases, named.items(), itertools.product(*vary.values())):
        changes = dict(zip(vary, values, strict=True))
        spoken = [f"{names[name]}={_spoken(value)}" for name, value in changes.items()]
        label = [f"preset={base.preset}"] * (len(bases) > 1) + [own_name] * bool(own_name) + spoken
        arms.append(Arm(", ".join(label), with_options(base, {**own, **changes})))
    if len(arms) < 2:
        raise InputError("nothing to compare: one combination of options; give --vary OPTION=VALUE,VALUE, or two --arm")
    for arm in arms:
        require_no_leak(arm.config.recipe().model)
    for data in {arm.config.data for arm in arms}:
        _require_test_split(data)
    first = bases[0].seed
    return Plan(tuple(arms), tuple(range(first, first + seeds)), out)


def _check_options(vary: Mapping[str, Sequence[Any]], named: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `InputError` where an option cannot vary, or would vary in two ways."""
    changed = {name for own in named.values() for name in own}
    for name in [*vary, *changed]:
        if name in ELSEWHERE:
            raise InputError(f"{name} cannot vary: {ELSEWHERE[name]}")
    for name, values in vary.items():
        if name in changed:
            raise InputError(f"{name} is in --vary and in an --arm; leave it out of one")
        if len({str(value) for value in values}) < len(values):
            raise InputError(f"{name} has a value twice in {', '.join(map(str, values))}; give each once")


def parse_variations(given: Sequence[str]) -> dict[str, list[Any]]:
    """Turn ``OPTION=VALUE,VALUE`` of a command line into values by option; ``-`` and ``_`` are the same.

    Raises:
        InputError: It has another form, or an option comes twice.
    """
    varied: dict[str, list[Any]] = {}
    for text in given:
        name, sign, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and sign and values) or "" in values.split(","):
            raise InputError(f'--vary "{text}" is not OPTION=VALUE,VALUE, such as model.position=learned,rope')
        if name in varied:
            raise InputError(f"--vary {name} is given twice; give its values once, parted by commas")
        varied[name] = [value_of(value) for value in values.split(",")]
    return varied


def parse_arms(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn ``NAME: OPTION=VALUE OPTION=VALUE`` of a command line into changes by the arm's name.

    Raises:
        InputError: It has another form, or a name or an option comes twice.
    """
    arms: dict[str, dict[str, Any]] = {}
    for text in given:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        pairs = [word.partition("=") for word in rest.split()]
        if not (name and colon) or not all(option and value for option, _, value in pairs):
            raise InputError(
                f'--arm "{text}" is not NAME: OPTION=VALUE ..., such as "window: model.mask=window model.window=64"'
            )
        changes = {option.replace("-", "_"): value_of(value) for option, _, value in pairs}
        if name in arms or len(changes) < len(pairs):
            raise InputError(f'--arm "{text}" gives a name or an option that was given before; give each once')
        arms[name] = changes
    return arms


def require_same_options(job: Job, saved: ResolvedConfig) -> None:
    """Raise `InputError` where a run that exists was started with other options than its job has."""
    recipe = job.config.recipe()
    seq_len = recipe.model.n_ctx if job.config.seq_len is None else job.config.seq_len
    steps = total_steps(job.config, recipe.batch_tokens, seq_len, DataManifest.load(job.config.data))
    asked = dataclasses.replace(job.config.filled_in(), seq_len=seq_len, steps=steps, epochs=None, max_tokens=None)
    before = flat(saved)
    for name, value in flat(asked).items():
        free = name in ("data", "out", "resume", "model.vocab_size") or value == "auto"
        if not free and before[name] != value:
            raise InputError(
                f"{job.path} was run with {name} {formatting.setting(before[name])}, this comparison says "
                f"{formatting.setting(value)}; give another --out"
            )


def remarks(plan: Plan) -> list[str]:
    """Say what of a plan weakens the comparison."""
    said = []
    recipes = [arm.config.recipe() for arm in plan.arms]
    for name, values in {
        "data": {arm.config.data for arm in plan.arms},
        "batch tokens": {recipe.batch_tokens for recipe in recipes},
        "sequence length": {a.config.seq_len or r.model.n_ctx for a, r in zip(plan.arms, recipes, strict=True)},
    }.items():
        if len(values) > 1:
            said.append(f"The arms differ in {name}: runs of one seed do not read the same batches.")
    if len({arm.config.mask_documents for arm in plan.arms}) > 1:
        said.append(
            "The arms differ in mask documents and each is measured as it was trained: where documents are read apart, "
            "their first tokens have less before them."
        )
    if len(plan.seeds) == 1:
        said.append("One seed: there is no interval, and a difference may be chance. Three seeds or more give one.")
    return said


def _require_test_split(data: Path) -> None:
    if "test" not in DataManifest.load(data).splits:
        raise InputError(f"{data}: has no test split to compare on; prepare it with a --test-fraction above 0")


def _short(vary: Mapping[str, Any]) -> dict[str, str]:
    """Return the options' last names where those tell them apart, else their whole ones."""
    last = {name: name.rpartition(".")[2] for name in vary}
    return last if len(set(last.values())) == len(last) else {name: name for name in vary}


def _spoken(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _folders(names: Sequence[str]) -> list[str]:
    """Return a folder name for each arm that every file system takes."""
    plain = [re.sub(r"[^\w.=+,-]+", "-", name.replace(", ", ",")) for name in names]
    return [name if plain.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(plain, start=1)]
