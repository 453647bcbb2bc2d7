"""Runs as the arms of a comparison: those that it names so, else those whose options differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.lab.compare.outcome import Outcome, outcome_of
from gpt2lab.lab.compare.write import FILE
from gpt2lab.runs import Run

ALIKE = {"seed", "out", "resume"}
"""Options by which runs of one arm differ."""
MOST_OPTIONS = 6
"""Runs that differ in more options are no variants of each other, and each is called by its path."""


def recorded_outcomes(directory: Path) -> list[Outcome]:
    """Read the runs of a comparison anew, under the arms and seeds that its comparison.json names.

    Raises:
        InputError: The file is damaged. A run that is missing or damaged does not raise, its status says so.
    """
    outcomes = []
    try:
        for run in read_json(directory / FILE)["runs"]:
            kind, _, failure = str(run["status"]).partition(": ")
            failed = failure if kind == "failed" else None
            outcomes.append(outcome_of(Run(directory / run["path"]), str(run["arm"]), int(run["seed"]), failed))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / FILE}: damaged ({error!r}); start the comparison again") from error
    return outcomes


def outcomes_of(runs: Sequence[Run]) -> list[Outcome]:
    """Read runs and name their arms by the options in which they differ; a run without options is an arm of its own."""
    options = [_options(run) for run in runs]
    names = dict.fromkeys(name for given in options for name in given if name not in ALIKE)
    varied = [name for name in names if len({given.get(name, "") for given in options if given}) > 1]
    short = {name: name.rpartition(".")[2] for name in varied}
    if len(set(short.values())) < len(short):
        short = {name: name for name in varied}
    outcomes = []
    for run, given in zip(runs, options, strict=True):
        arm = ", ".join(f"{short[name]}={given.get(name, 'not set')}" for name in varied)
        if not given or len(varied) > MOST_OPTIONS:
            arm = str(run.path)
        seed = given.get("seed", "0")
        outcomes.append(outcome_of(run, arm or "every run", int(seed) if seed.isdecimal() else 0))
    return outcomes


def _options(run: Run) -> dict[str, str]:
    try:
        tree = read_json(run.path / "config.json")
    except InputError:
        return {}
    flat: dict[str, str] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        below = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: str(v) for key, v in below.items()}
    return flat
