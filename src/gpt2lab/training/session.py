"""Starting a run, and going on with one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.files import remove_temporary, write_json
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint
from gpt2lab.training.config import TrainConfig, saved_config, to_dict
from gpt2lab.training.hooks import HooksFor
from gpt2lab.training.loop import Data, Trainer
from gpt2lab.training.setup import (
    Plan,
    explain_out_of_memory,
    initial_weights,
    merge_for_resume,
    require_same_data,
    resolve,
    total_steps,
)

log = logging.getLogger("gpt2lab")


def start(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Train a new run to its end and return it.

    Raises:
        InputError: An option cannot be honoured, the directory exists, memory ran out or training diverged.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    dataset = TokenDataset(config.data)
    begin = initial_weights(config, dataset)
    plan = resolve(config, dataset)
    name = config.preset if config.init is None else config.init.resolve().name
    path = config.out or Run.unused(Path("runs") / f"{name}-{config.data.resolve().name}")
    Run.require_unused(path)
    data, tokenizer = Data.open(dataset, config), dataset.tokenizer()  # all is checked before anything is written
    kept = dataclasses.replace(plan.config, out=path, data=config.data.resolve(), profile_steps=None)
    if config.init is not None:
        kept = dataclasses.replace(kept, init=config.init.resolve())
    run = Run.create(path, to_dict(kept), runtime.environment())
    tokenizer.save(run.tokenizer)
    with _log_file(run), explain_out_of_memory(plan.config), plan.runtime.numerics(plan.config.deterministic):
        trainer = Trainer(plan, data, run, hooks_for(run))
        _describe(trainer)
        if begin is not None:
            checkpoint.load_into(begin, trainer.model)
            log.info("weights of %s", begin.path)
        trainer.fit()
    return run


def resume(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Go on with the run in ``config.out`` from the checkpoint ``config.resume`` and return it.

    ``config.resume`` is ``last``, ``best`` or a step. The last is the newest that is not damaged. Checkpoints of later
    steps are kept under another name. A run that is finished is left as it is, unless it was given more steps.

    Raises:
        InputError: There is no run or no such checkpoint, or the data or an option is another.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    if config.out is None:
        raise InputError("--resume needs --out RUN, the directory of the run to go on with")
    run = Run.open(config.out)
    saved = saved_config(run)
    merged = merge_for_resume(config, saved)
    found, warnings = _checkpoint_to_resume(run, config.resume or "last")
    if found.data_fingerprint is None:
        raise InputError(
            f"{run.path} was imported: there is no training to go on with; begin one with --init {run.path}"
        )
    dataset = TokenDataset(config.data)
    require_same_data(found.state["fingerprints"], Data.fingerprints_of(dataset))
    plan = resolve(merged, dataset)
    if why := _why_over(found, plan, saved, total_steps(saved, dataset)):
        log.info("%s is finished (%s): nothing to do", run.path, why)
        return run
    _require_ahead(plan.config, found.step)
    data = Data.open(dataset, plan.config)
    with _log_file(run), explain_out_of_memory(plan.config), plan.runtime.numerics(plan.config.deterministic):
        trainer = Trainer(plan, data, run, hooks_for(run))
        trainer.restore(found)
        for warning in warnings:
            log.warning("%s", warning)
        _go_back(run, found.step)
        kept = dataclasses.replace(plan.config, out=run.path, data=config.data.resolve())
        kept = dataclasses.replace(kept, resume=None, profile_steps=None)  # of this start only
        write_json(run.path / "config.json", to_dict(kept))
        log.info("resumed %s at step %d of %d", run.path, found.step, plan.steps)
        trainer.fit()
    return run


def _checkpoint_to_resume(run: Run, which: str) -> tuple[checkpoint.Checkpoint, list[str]]:
    """The newest sound checkpoint by default, with what is wrong with newer ones; one that was named must be sound."""
    if which == "last":
        warnings: list[str] = []
        return checkpoint.find_newest_sound(run, warnings.append), warnings
    found = checkpoint.find(run, which)
    checkpoint.verify(found)
    return found, []


def _why_over(found: checkpoint.Checkpoint, plan: Plan, saved: TrainConfig, saved_steps: int) -> str | None:
    """Return why a run was over at a checkpoint; None where it was not, or was given more steps or patience.

    Raises:
        InputError: It is asked to end before where it stands.
    """
    if found.step > plan.steps:
        raise InputError(
            f"the run stands at step {found.step}, past the {plan.steps} asked for; give more steps, or --resume an "
            "earlier one"
        )
    if found.step == plan.steps:
        return f"{plan.steps:,} steps done"
    unchanged = (plan.steps, plan.config.patience) == (saved_steps, saved.patience)
    return found.state["finished"] if unchanged else None


def _require_ahead(config: TrainConfig, step: int) -> None:
    """Raise `InputError` where the steps to be traced are done already."""
    if config.profiled is not None and config.profiled[0] <= step:
        raise InputError(
            f"profile_steps is {config.profile_steps}, but the run goes on after step {step}; name later ones"
        )


def _go_back(run: Run, step: int) -> None:
    """Bring a run's files to where they were at a step; later checkpoints are kept, and what a kill left is removed."""
    for folder in (run.path, run.checkpoints):
        remove_temporary(folder)
    for name in checkpoint.set_aside(run, step):
        log.warning("a later checkpoint is kept as %s", name)
    run.cut_back(step)


def _describe(trainer: Trainer) -> None:
    config = trainer.config
    log.info(
        "%s: %s parameters, %s steps",
        config.preset if config.init is None else "fine-tuning",
        f"{trainer.model.n_params:,}",
        f"{trainer.plan.steps:,}",
    )
    for note in trainer.plan.notes:
        log.info("%s", note)
    log.info("peak %.0f GFLOP/s: %s", trainer.peak / 1e9, trainer.peak_source)


@contextmanager
def _log_file(run: Run) -> Iterator[None]:
    """Write what is logged to the run's train.log as well."""
    handler = logging.FileHandler(run.path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
