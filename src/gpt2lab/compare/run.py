"""Running a plan: what is finished stays as it is, what was interrupted goes on, what fails does not stop the rest.

Each run has a process of its own, so that its peak memory is its own and a run that the system kills takes nothing with
it. When the parent goes, so does the run: it saves its state and can be gone on with.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gpt2lab import console, runtime
from gpt2lab.compare.output import write_comparison
from gpt2lab.compare.plan import Job, Plan, make_plan, remarks, require_same_options
from gpt2lab.compare.results import Comparison, compare_outcomes, is_measured, measure, outcome_of, text_prompts
from gpt2lab.errors import InputError
from gpt2lab.files import free_path
from gpt2lab.lab.train import train
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import list_checkpoints, newest_valid
from gpt2lab.training.config import TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted

log = logging.getLogger("gpt2lab")


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    error: str | None = None
    """What went wrong, in one line; None where nothing did."""
    signal: int | None = None
    """The signal that interrupted it; its state was saved."""


Worker = Callable[[TrainConfig, bool], Ended]
"""Trains and measures a run; with its texts or without."""


def run_plan(plan: Plan, work: Worker, texts: bool = False) -> dict[str, str]:
    """Bring every run of a plan to its end; return what went wrong, in a line, by the run's path.

    Args:
        plan: What to run.
        work: Trains and measures one run: `in_own_process`, or `in_this_process`.
        texts: Whether to measure what each run's texts are like.

    Raises:
        InputError: A test split is too short for texts, or a run of other options stands where one of the plan belongs;
            nothing was run.
        Interrupted: A signal came; what was finished stays, and the same call goes on.
    """
    jobs = plan.jobs
    for arm in plan.arms if texts else ():
        text_prompts(arm.config)
    for job in jobs:
        if (job.path / "config.json").is_file() and _is_sound(Run(job.path)):
            require_same_options(job, saved_config(Run(job.path)))
    failures: dict[str, str] = {}
    for number, job in enumerate(jobs, start=1):
        title = f"run {number} of {len(jobs)}: {job.arm}, seed {job.config.seed}"
        if _is_over(job, texts):
            log.info("%s: done before", title)
            continue
        log.info("%s", title)
        ended = work(job.config, texts)
        if ended.signal is not None:
            raise Interrupted(ended.signal, Run(job.path), _newest_step(job))
        if ended.error is not None:
            failures[str(job.path)] = ended.error
            log.error("%s: %s", title, ended.error)
    return failures


def in_this_process(config: TrainConfig, texts: bool = False) -> Ended:
    """Train a run, or go on with it, and measure it."""
    assert config.out is not None
    try:
        if _prepare_place(Run(config.out)):
            config = dataclasses.replace(config, resume="last")
        with console.training_bar() as on_step:
            run = train(config, on_step)
        if not is_measured(run, texts):
            measure(run, texts)
    except InputError as error:
        return Ended(error=str(error))
    except Interrupted as stop:
        return Ended(signal=stop.signal)
    return Ended()


def in_own_process(config: TrainConfig, texts: bool = False) -> Ended:
    """Do the same in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process) as pool:
        future = pool.submit(_in_child, config, texts)
        try:
            return future.result()
        except BrokenProcessPool:
            return Ended(error="its process was killed, perhaps for want of memory; try a lower --micro-batch")
        except KeyboardInterrupt:  # the terminal tells the run's process too, which saves and ends
            return Ended(signal=signal.SIGINT)


def _begin_process() -> None:
    runtime.tune_allocator()
    console.log_to_console()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _in_child(config: TrainConfig, texts: bool) -> Ended:
    ended = in_this_process(config, texts)
    if not _parent().is_alive():
        os._exit(1)  # nobody is left to be told, and the pool's process would wait for more work for ever
    return ended


def _end_with_parent() -> None:
    """Ask this process to save and end when the one that started it has gone."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parent() -> BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _is_over(job: Job, texts: bool) -> bool:
    """Return whether a run was trained to its end and measured."""
    checkpoints = list_checkpoints(Run(job.path))
    if not checkpoints or not (job.path / "config.json").is_file():
        return False
    return checkpoints[-1].state["finished"] is not None and is_measured(Run(job.path), texts)


def _prepare_place(run: Run) -> bool:
    """Return whether there is a run to go on with; what cannot be gone on with is put aside under another name."""
    if not run.path.exists():
        return False
    if (run.path / "config.json").is_file() and _is_sound(run):
        return True
    aside = run.path.rename(free_path(run.path.with_name(f"{run.path.name}.unusable")))
    log.warning("%s has no sound checkpoint to go on from: kept as %s, begun anew", run.path, aside.name)
    return False


def _is_sound(run: Run) -> bool:
    try:
        newest_valid(run, lambda _: None)
    except InputError:
        return False
    return True


def _newest_step(job: Job) -> int:
    checkpoints = list_checkpoints(Run(job.path))
    return checkpoints[-1].step if checkpoints else 0


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
