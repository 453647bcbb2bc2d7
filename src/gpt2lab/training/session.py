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
from gpt2lab.files import write_json
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint
from gpt2lab.training.config import TrainConfig, from_dict, to_dict
from gpt2lab.training.loop import Data, HooksFor, Trainer
from gpt2lab.training.setup import Plan, merge_for_resume, require_same_data, resolve

log = logging.getLogger("gpt2lab")


def saved_config(run: Run) -> TrainConfig:
    """Return the configuration that a run was started with, each ``auto`` resolved."""
    return from_dict(run.config, where=str(run.path / "config.json"))


def start(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Train a new run to its end and return it.

    Raises:
        InputError: An option cannot be honoured, or the directory exists.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    dataset = TokenDataset(config.data)
    plan = resolve(config, dataset)
    path = config.out or Run.unused(Path("runs") / f"{config.preset}-{config.data.name}")
    Run.require_unused(path)
    data, tokenizer = Data.open(dataset), dataset.tokenizer()  # every byte is checked before anything is written
    run = Run.create(path, to_dict(dataclasses.replace(plan.config, out=path)), runtime.environment())
    tokenizer.save(run.tokenizer)
    with _log_file(run):
        trainer = Trainer(plan, data, run, hooks_for(run))
        _describe(trainer)
        trainer.fit()
    return run


def resume(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Go on with the run in ``config.out`` from the checkpoint ``config.resume`` (``last`` or a step) and return it.

    A run that is finished is left as it is.

    Raises:
        InputError: There is no run or no such checkpoint, or the data or an option is another.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    if config.out is None:
        raise InputError("--resume needs --out RUN, the directory of the run to go on with")
    run = Run.open(config.out)
    saved = saved_config(run)
    dataset = TokenDataset(config.data)
    plan = resolve(merge_for_resume(config, saved), dataset)
    data = Data.open(dataset)
    with _log_file(run):
        checkpoint.clean(run)
        found = _checkpoint_to_resume(run, config.resume or "last")
        require_same_data(found.state["fingerprints"], data.fingerprints)
        if _is_finished(found, plan, saved):
            log.info("%s is finished (%s): nothing to do", run.path, found.state["finished"])
            return run
        trainer = Trainer(plan, data, run, hooks_for(run))
        trainer.restore(found)
        for name in checkpoint.set_aside(run, found.step):
            log.warning("a later checkpoint is kept as %s", name)
        run.cut_back(found.step)
        write_json(run.path / "config.json", to_dict(dataclasses.replace(plan.config, out=run.path, resume=None)))
        log.info("resumed %s at step %d of %d", run.path, found.step, plan.steps)
        trainer.fit()
    return run


def _checkpoint_to_resume(run: Run, which: str) -> checkpoint.Checkpoint:
    """The newest sound checkpoint by default; one that was named must be sound itself."""
    if which == "last":
        return checkpoint.find_newest_sound(run, log.warning)
    found = checkpoint.find(run, which)
    checkpoint.verify(found)
    return found


def _is_finished(found: checkpoint.Checkpoint, plan: Plan, saved: TrainConfig) -> bool:
    """Whether a run was over at a checkpoint and nothing was given that makes it longer.

    Raises:
        InputError: It is asked to end before where it stands.
    """
    if found.step > plan.steps:
        raise InputError(
            f"the run stands at step {found.step}, past the {plan.steps} asked for; give more steps, or --resume an "
            "earlier one"
        )
    stopped_early = found.state["finished"] is not None and plan.config.patience == saved.patience
    return found.step == plan.steps or stopped_early


def _describe(trainer: Trainer) -> None:
    config = trainer.config
    log.info("%s: %s parameters, %s steps", config.preset, f"{trainer.model.n_params:,}", f"{trainer.plan.steps:,}")
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
