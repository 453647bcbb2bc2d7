"""Starting a run, and going on with one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data import RollingDataset
from gpt2lab.errors import InputError
from gpt2lab.files import remove_temporary, write_json
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint
from gpt2lab.training.config import TrainConfig, saved_config, to_dict
from gpt2lab.training.elastic import began, default_path, of_launch, started_before
from gpt2lab.training.going_on import merge_for_resume, moved, require_same_data
from gpt2lab.training.hooks import Hooks, HooksFor
from gpt2lab.training.lock import held
from gpt2lab.training.loop import Data, Trainer
from gpt2lab.training.processes import Processes, joined
from gpt2lab.training.setup import (
    Plan,
    agreed,
    explain_out_of_memory,
    initial_weights,
    open_data,
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
    with _processes(config.device) as processes:
        if (own := started_before(config, processes)) is not None:
            return _resume(dataclasses.replace(config, out=own.path, resume="last"), hooks_for, processes)
        return _start(config, hooks_for, processes)


def _start(config: TrainConfig, hooks_for: HooksFor, processes: Processes) -> Run:
    path = Path(processes.from_main(str(config.out or Run.unused(default_path(config)))))
    with processes.together():
        dataset = open_data(config, path, processes)
        begin = initial_weights(config, dataset)
        plan = resolve(config, dataset, processes)
    plan = agreed(plan, config, dataset, processes)
    processes.on_main(lambda: Run.require_unused(path))
    checks = processes.is_first_with(str(dataset.directory.resolve()))
    with processes.together():  # all is checked before anything is written
        data, tokenizer = Data.open(dataset, plan.config, checks), dataset.tokenizer()
    kept = dataclasses.replace(plan.config, out=path, data=_absolute(config), profile_steps=None)
    if config.init is not None:
        kept = dataclasses.replace(kept, init=config.init.resolve())
    run = Run(path)

    def create() -> None:
        Run.create(path, to_dict(kept), runtime.environment() | of_launch(processes))
        tokenizer.save(run.tokenizer)
        if isinstance(dataset, RollingDataset):
            dataset.move_to(run.stream)

    processes.on_main(create)
    if isinstance(dataset, RollingDataset):
        data = Data.open(dataset, plan.config)  # where it lies now
    with held(run, processes), _running(run, plan, processes):
        trainer = Trainer(plan, data, run, hooks_for(run) if processes.main else Hooks(), processes)
        _describe(trainer)
        _begin_from(begin, trainer, processes)
        trainer.fit()
    return run


def resume(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Go on with the run in ``config.out`` from the checkpoint ``config.resume`` and return it.

    ``config.resume`` is ``last``, ``best`` or a step. The last is the newest that is not damaged. Checkpoints of later
    steps are kept under another name. A run that is finished is left as it is, unless it was given more steps.

    Raises:
        InputError: There is no run or no such checkpoint, the data or an option is another, or a process trains it now.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    with _processes(config.device) as processes:
        return _resume(config, hooks_for, processes)


def _resume(config: TrainConfig, hooks_for: HooksFor, processes: Processes) -> Run:
    with processes.together():
        if config.out is None:
            raise InputError("--resume needs --out RUN, the directory of the run to go on with")
        run = Run.open(config.out)
    with held(run, processes):
        return _go_on(run, config, hooks_for, processes)


def _go_on(run: Run, config: TrainConfig, hooks_for: HooksFor, processes: Processes) -> Run:
    with processes.together():
        saved = saved_config(run)
        merged = merge_for_resume(config, saved, processes)
        own = began(run, processes)
    found, warnings = _checkpoint_for_all(run, "last" if own else config.resume or "last", own, processes)
    with processes.together():
        if found is not None and found.data_fingerprint is None:
            raise InputError(
                f"{run.path} was imported: there is no training to go on with; begin one with --init {run.path}"
            )
        dataset = open_data(merged, run.path, processes)
        if found is not None:
            require_same_data(found.state["fingerprints"], Data.fingerprints_of(dataset))
        begin = initial_weights(merged, dataset) if found is None else None
        plan = resolve(merged, dataset, processes)
        why_over = found and _why_over(found, plan, saved, total_steps(saved, dataset))
    if why_over:
        log.info("%s is finished (%s): nothing to do", run.path, why_over)
        return run
    plan = agreed(plan, merged, dataset, processes)
    step = 0 if found is None else found.step
    checks = processes.is_first_with(str(dataset.directory.resolve()))
    with processes.together():
        _require_ahead(plan.config, step)
        data = Data.open(dataset, plan.config, checks)
    with _running(run, plan, processes):
        trainer = Trainer(plan, data, run, hooks_for(run) if processes.main else Hooks(), processes)
        _begin_from(begin, trainer, processes)
        with processes.together():
            if found is not None:
                trainer.restore(found)
        for warning in [*warnings, *_no_longer_equal(saved, plan, found)]:
            log.warning("%s", warning)
        processes.on_main(lambda: _take_up(run, plan, config, step, processes))
        log.info("resumed %s at step %d of %d", run.path, step, plan.steps)
        trainer.fit()
    return run


def _begin_from(begin: checkpoint.Checkpoint | None, trainer: Trainer, processes: Processes) -> None:
    """Take the weights that a run begins from, where it does not begin from random ones."""
    if begin is not None:
        with processes.together():
            checkpoint.load_into(begin, trainer.model)
        log.info("weights of %s", begin.path)


def _take_up(run: Run, plan: Plan, config: TrainConfig, step: int, processes: Processes) -> None:
    """Bring a run's files to where they were at a step, and write down how it goes on from there."""
    _go_back(run, step)
    kept = dataclasses.replace(plan.config, out=run.path, data=_absolute(config))
    kept = dataclasses.replace(kept, resume=None, profile_steps=None)  # of this start only
    write_json(run.path / "config.json", to_dict(kept))
    if processes.launched:
        write_json(run.path / "environment.json", run.environment | of_launch(processes))


def _absolute(config: TrainConfig) -> Path:
    return config.data.resolve() if config.stream is None else config.data


def _no_longer_equal(saved: TrainConfig, plan: Plan, found: checkpoint.Checkpoint | None) -> list[str]:
    """Return the warning that a run has moved, where it has."""
    changes = moved(saved, plan.config)
    world = plan.runtime.world if found is None else found.state.get("world", 1)
    if world != plan.runtime.world:
        changes = ", ".join(filter(None, [changes, f"processes were {world} and are {plan.runtime.world}"]))
    return [f"{changes}: from here on equal to an unbroken run but for rounding, not bit for bit"] if changes else []


def _checkpoint_for_all(
    run: Run, which: str, own: bool, processes: Processes
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Return the checkpoint that rank 0 finds, with what is wrong with newer ones.

    None where there is none yet, and this call of torchrun started the run itself: it begins anew.
    """
    found: list[tuple[checkpoint.Checkpoint, list[str]]] = []
    anew = processes.from_main("anew" if own and not checkpoint.complete(run) else "")
    if anew:
        return None, []
    processes.on_main(lambda: found.append(_checkpoint_to_resume(run, which)))
    step = processes.from_main(str(found[0][0].step) if found else "")
    if processes.main:
        return found[0]
    return checkpoint.Checkpoint(run.checkpoints / f"step_{int(step):08d}", int(step), None), []


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
def _processes(device: str) -> Iterator[Processes]:
    """Meet the other processes, and let rank 0 alone print."""
    with joined(device) as processes:
        disabled, log.disabled = log.disabled, not processes.main
        try:
            yield processes
        finally:
            log.disabled = disabled


@contextmanager
def _running(run: Run, plan: Plan, processes: Processes) -> Iterator[None]:
    """Set up what a training loop runs in."""
    log_file = _log_file(run) if processes.main else nullcontext()
    with log_file, explain_out_of_memory(plan.config), plan.runtime.numerics(plan.config.deterministic):
        yield


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
