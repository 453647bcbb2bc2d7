"""`compare`: a whole comparison in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2lab.lab.compare.execute import Worker, in_this_process, run_plan
from gpt2lab.lab.compare.outcome import outcome_of
from gpt2lab.lab.compare.plan import make_plan, remarks
from gpt2lab.lab.compare.results import Comparison, compare_outcomes
from gpt2lab.lab.compare.write import write_comparison
from gpt2lab.runs import Run
from gpt2lab.training import TrainConfig


def compare(
    bases: TrainConfig | Sequence[TrainConfig],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    out: Path,
    target_loss: float | None = None,
    work: Worker = in_this_process,
    named: Mapping[str, Mapping[str, Any]] | None = None,
    texts: bool = False,
) -> Comparison:
    """Run every combination of options with every seed, compare them, and write what was found into ``out``.

    The same as ``gpt2lab compare``, which gives each run a process of its own (``work=in_own_process``), without which
    the peak memory of a run is the highest of those before it too. What is finished is not repeated.

    Args:
        bases: What the runs have in common: one configuration, or one for each preset that is compared.
        vary: Values of each varied option, such as ``{"model.n_kv_head": [4, 1]}``.
        seeds: Runs of each arm.
        out: Directory of the comparison.
        target_loss: Validation loss to count steps and seconds to; None is the lowest that every run reached.
        work: How a run is done.
        named: Arms of several changes each, by name; see `make_plan`.
        texts: Whether to measure what each run's texts are like, by strategy, which takes time.

    Raises:
        InputError: See `make_plan` and `run_plan`; a run that fails does not raise, it is named in the remarks.
        Interrupted: A signal came; the same call goes on.
    """
    plan = make_plan(bases, vary, seeds, out, named)
    failures = run_plan(plan, work, texts)
    outcomes = [outcome_of(Run(j.path), j.arm, j.config.seed, failures.get(str(j.path))) for j in plan.jobs]
    comparison = compare_outcomes(outcomes, target_loss, remarks(plan))
    write_comparison(comparison, out)
    return comparison
