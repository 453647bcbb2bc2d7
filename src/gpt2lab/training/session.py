"""Starting a run, and going on with one."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from gpt2lab import runtime
from gpt2lab.data.streaming import StreamingDataset
from gpt2lab.errors import InputError
from gpt2lab.files import free_path, locked, remove_temporary, write_json
from gpt2lab.model.config import PRESETS
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.config import OptimConfig, ResolvedConfig, TrainConfig, flat, saved_config, to_dict
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator, process_group
from gpt2lab.training.loop import Hooks, HooksFor, Trainer
from gpt2lab.training.optim import make_optimizer
from gpt2lab.training.setup import (
    Data,
    Progress,
    Setup,
    agreed,
    explain_out_of_memory,
    initial_weights,
    open_data,
    resolve,
)


@contextmanager
def held(run: Run, comm: Communicator) -> Iterator[None]:
    """Keep other processes from training a run. Every rank must call it.

    Raises:
        InputError: Another process trains it.
    """
    taken = InputError(f"{run.path} is being trained by another process; wait for it, or end it")
    with ExitStack() as stack:
        comm.run_on_main(lambda: stack.enter_context(locked(run.path / "train.log", taken)))
        yield


MAY_CHANGE_ON_RESUME = {
    "data", "out", "resume", "steps", "epochs", "max_tokens", "log_every", "eval_every", "sample_every",
    "sample_prompt", "hellaswag", "hellaswag_every", "checkpoint_every", "keep_last", "patience", "on_spike", "spike_z",
    "tracker", "profile_steps", "loader_workers", "tokenizer", "max_disk",
}  # fmt: skip
"""Options that may differ when a run goes on; every other one would make it another run."""
MAY_MOVE = ("device", "precision", "compile", "micro_batch", "parallel")
"""Options that may differ too, so that a run can move to another machine; its numbers then differ in the last bits."""


def merge_for_resume(asked: TrainConfig, saved: ResolvedConfig, comm: Communicator = SINGLE_PROCESS) -> TrainConfig:
    """Return the configuration to resume a run with: the saved one, with those changes that are allowed.

    An option that is None or ``auto`` keeps its saved value. What nobody changed, but was resolved for another number
    of processes and does not suit this one, is ``auto`` again.

    Raises:
        InputError: An option differs that would make it another run (named, with both values).
    """
    changes = {name: getattr(asked, name) for name in MAY_CHANGE_ON_RESUME}
    changes |= {name: value for name in MAY_MOVE if (value := getattr(asked, name)) != "auto"}
    if asked.steps is asked.epochs is asked.max_tokens is None:
        changes["steps"] = saved.steps
    merged = dataclasses.replace(saved.as_asked(), **changes)
    if merged.parallel == saved.parallel and (merged.parallel == "none") != (comm.world_size == 1):
        merged = dataclasses.replace(merged, parallel="auto")
    sequences = saved.batch_tokens // saved.seq_len
    if merged.micro_batch == saved.micro_batch and sequences % (saved.micro_batch * comm.world_size):
        merged = dataclasses.replace(merged, micro_batch="auto")
    before = flat(merged)
    for name, value in flat(asked).items():
        unset = name in MAY_MOVE or (value is None and "." not in name)
        if unset or value == before[name] or (name == "model.vocab_size" and value == PRESETS[asked.preset].vocab_size):
            continue
        raise InputError(
            f"{name} was {before[name]} when the run started and cannot be {value} when it resumes; leave it out"
        )
    return merged


def moved(saved: ResolvedConfig, now: ResolvedConfig) -> str:
    """Return what differs of `MAY_MOVE`, such as ``device was cuda and is cpu``; empty if nothing does."""
    pairs = ((name, getattr(saved, name), getattr(now, name)) for name in MAY_MOVE)
    return ", ".join(f"{name} was {before} and is {after}" for name, before, after in pairs if before != after)


def require_same_data(before: dict[str, str], now: dict[str, str]) -> None:
    """Compare the fingerprints of data and tokenizer that a run began with to those it would go on with.

    Raises:
        InputError: They differ (both fingerprints are shown).
    """
    for what in ("tokenizer", "data"):  # the data's fingerprint covers the tokenizer's
        if before[what] != now[what]:
            raise InputError(
                f"the {what} given is not the run's: its fingerprint is {now[what][:16]}, the run began with "
                f"{before[what][:16]}; give the --data that it began with"
            )


def default_path(config: TrainConfig) -> Path:
    """Return the directory of a run that was given none, to which a number is added where it exists."""
    name = config.preset if config.init is None else config.init.resolve().name
    data = config.data.resolve().name if config.stream is None else Path(config.stream).name
    return Path("runs") / f"{name}-{data}"


def of_launch(comm: Communicator) -> dict[str, str]:
    """Return what environment.json says of the call of torchrun that works on a run, for `began`."""
    return {} if comm.launch_id is None else {"launch": comm.launch_id}


def began(run: Run, comm: Communicator) -> bool:
    """Return whether this very call of torchrun has worked on a run before it restarted its processes."""
    return comm.restarts > 0 and run.environment.get("launch") == comm.launch_id


def started_before(config: TrainConfig, comm: Communicator) -> Run | None:
    """Return the run that this call of torchrun started before it restarted its comm, if any."""
    if comm.restarts == 0:
        return None
    base = default_path(config)
    paths = [config.out] if config.out is not None else [base, *base.parent.glob(f"{base.name}-*")]
    own = ""
    if comm.is_main:
        own = next((str(p) for p in paths if (p / "config.json").is_file() and began(Run(p), comm)), "")
    own = comm.broadcast(own)
    return Run(Path(own)) if own else None


def save_imported(model: GPT, tokenizer: Tokenizer, path: Path, origin: str) -> Run:
    """Make the directory of a run whose only checkpoint holds the model; return the run.

    Its configuration says what is known, the architecture, and nothing of a training.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: Where; it must not exist.
        origin: Where the weights are from, in words.

    Raises:
        InputError: Something of that name exists, the tokenizer is another model's, or the disk is full.
    """
    V = model.config.vocab_size
    if tokenizer.n_vocab != V:
        raise InputError(
            f"the model of {origin} has a vocabulary of {V:,}, its tokenizer one of {tokenizer.n_vocab:,}; give the "
            "right --tokenizer, or fit the model to it with transformers' resize_token_embeddings"
        )
    run = Run.create(path, {"model": dataclasses.asdict(model.config)}, runtime.environment())
    state = dataclasses.asdict(Progress(finished=f"imported from {origin}"))
    try:
        tokenizer.save(run.tokenizer)
        optimizer = make_optimizer(model, OptimConfig())  # one that has not stepped has no state
        checkpoint.save(run, model, optimizer, state | {"fingerprints": {"tokenizer": tokenizer.fingerprint}})
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


log = logging.getLogger("gpt2lab")


def start(config: TrainConfig, hooks_for: HooksFor) -> Run:
    """Train a new run to its end and return it.

    Raises:
        InputError: An option cannot be honoured, the directory exists, memory ran out or training diverged.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    with _processes(config.device) as comm:
        if (own := started_before(config, comm)) is not None:
            return _resume(dataclasses.replace(config, out=own.path, resume="last"), hooks_for, comm)
        return _start(config, hooks_for, comm)


def _start(config: TrainConfig, hooks_for: HooksFor, comm: Communicator) -> Run:
    path = Path(comm.broadcast(str(config.out or free_path(default_path(config)))))
    config = dataclasses.replace(config, out=path)
    with comm.raise_on_all_ranks():
        dataset = open_data(config, path, comm)
        begin = initial_weights(config, dataset)
        setup = resolve(config, dataset, comm)
    setup = agreed(setup, config, dataset, comm)
    comm.run_on_main(lambda: Run.require_new(path))
    checks = comm.is_first_on_node(str(dataset.directory.resolve()))
    with comm.raise_on_all_ranks():  # all is checked before anything is written
        data, tokenizer = Data.open(dataset, setup.config, checks), dataset.tokenizer()
    kept = dataclasses.replace(setup.config, data=_absolute(config), profile_steps=None)
    if config.init is not None:
        kept = dataclasses.replace(kept, init=config.init.resolve())
    run = Run(path)

    def create() -> None:
        Run.create(path, to_dict(kept), runtime.environment() | of_launch(comm))
        tokenizer.save(run.tokenizer)
        if isinstance(dataset, StreamingDataset):
            dataset.move_to(run.stream)

    comm.run_on_main(create)
    if isinstance(dataset, StreamingDataset):
        data = Data.open(dataset, setup.config)  # where it lies now
    with held(run, comm), _running(run, setup, comm):
        trainer = Trainer(setup, data, run, hooks_for(run) if comm.is_main else Hooks(), comm)
        _describe(trainer)
        _begin_from(begin, trainer, comm)
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
    with _processes(config.device) as comm:
        return _resume(config, hooks_for, comm)


def _resume(config: TrainConfig, hooks_for: HooksFor, comm: Communicator) -> Run:
    with comm.raise_on_all_ranks():
        if config.out is None:
            raise InputError("--resume needs --out RUN, the directory of the run to go on with")
        run = Run.open(config.out)
    with held(run, comm):
        return _go_on(run, config, hooks_for, comm)


def _go_on(run: Run, config: TrainConfig, hooks_for: HooksFor, comm: Communicator) -> Run:
    with comm.raise_on_all_ranks():
        saved = saved_config(run)
        merged = merge_for_resume(config, saved, comm)
        own = began(run, comm)
    found, warnings = _checkpoint_for_all(run, "last" if own else config.resume or "last", own, comm)
    with comm.raise_on_all_ranks():
        dataset = open_data(merged, run.path, comm)
        if found is not None:
            require_same_data(found.state["fingerprints"], Data.fingerprints_of(dataset))
        begin = initial_weights(merged, dataset) if found is None else None
        setup = resolve(merged, dataset, comm)
        why_over = found and _why_over(found, setup, saved)
    if why_over:
        log.info("%s is finished (%s): nothing to do", run.path, why_over)
        return run
    setup = agreed(setup, merged, dataset, comm)
    step = 0 if found is None else found.step
    checks = comm.is_first_on_node(str(dataset.directory.resolve()))
    with comm.raise_on_all_ranks():
        _require_ahead(setup.config, step)
        data = Data.open(dataset, setup.config, checks)
    with _running(run, setup, comm):
        trainer = Trainer(setup, data, run, hooks_for(run) if comm.is_main else Hooks(), comm)
        _begin_from(begin, trainer, comm)
        with comm.raise_on_all_ranks():
            if found is not None:
                trainer.restore(found)
        for warning in [*warnings, *_no_longer_equal(saved, setup, found)]:
            log.warning("%s", warning)
        comm.run_on_main(lambda: _take_up(run, setup, config, step, comm))
        log.info("resumed %s at step %d of %d", run.path, step, setup.config.steps)
        trainer.fit()
    return run


def _begin_from(begin: checkpoint.Checkpoint | None, trainer: Trainer, comm: Communicator) -> None:
    """Take the weights that a run begins from, where it does not begin from random ones."""
    if begin is not None:
        with comm.raise_on_all_ranks():
            checkpoint.load_into(begin, trainer.model)
        log.info("weights of %s", begin.path)


def _take_up(run: Run, setup: Setup, config: TrainConfig, step: int, comm: Communicator) -> None:
    """Bring a run's files to where they were at a step, and write down how it goes on from there."""
    _go_back(run, step)
    kept = dataclasses.replace(setup.config, out=run.path, data=_absolute(config), profile_steps=None)
    write_json(run.path / "config.json", to_dict(kept))
    if comm.launched:
        write_json(run.path / "environment.json", run.environment | of_launch(comm))


def _absolute(config: TrainConfig) -> Path:
    return config.data.resolve() if config.stream is None else config.data


def _no_longer_equal(saved: ResolvedConfig, setup: Setup, found: checkpoint.Checkpoint | None) -> list[str]:
    """Return the warning that a run has moved, where it has."""
    changes = moved(saved, setup.config)
    world = setup.runtime.world if found is None else found.state.get("world", 1)
    if world != setup.runtime.world:
        changes = ", ".join(filter(None, [changes, f"processes were {world} and are {setup.runtime.world}"]))
    return [f"{changes}: from here on equal to an unbroken run but for rounding, not bit for bit"] if changes else []


def _checkpoint_for_all(
    run: Run, which: str, own: bool, comm: Communicator
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Return the checkpoint that rank 0 finds, with what is wrong with newer ones.

    None where there is none yet, and this call of torchrun started the run itself: it begins anew.
    """
    found: list[tuple[checkpoint.Checkpoint, list[str]]] = []
    anew = comm.broadcast("anew" if own and not checkpoint.list_checkpoints(run) else "")
    if anew:
        return None, []
    comm.run_on_main(lambda: found.append(_checkpoint_to_resume(run, which)))
    step = comm.broadcast(str(found[0][0].step) if found else "")
    if comm.is_main:
        return found[0]
    return checkpoint.Checkpoint(run.checkpoints / f"step_{int(step):08d}", int(step), None), []


def _checkpoint_to_resume(run: Run, which: str) -> tuple[checkpoint.Checkpoint, list[str]]:
    """The newest sound checkpoint by default, with what is wrong with newer ones; one that was named must be sound."""
    if which == "last":
        warnings: list[str] = []
        return checkpoint.newest_valid(run, warnings.append), warnings
    found = checkpoint.find(run, which)
    checkpoint.verify(found)
    return found, []


def _why_over(found: checkpoint.Checkpoint, setup: Setup, saved: ResolvedConfig) -> str | None:
    """Return why a run was over at a checkpoint; None where it was not, or was given more steps or patience.

    Raises:
        InputError: It is asked to end before where it stands.
    """
    if found.step > setup.config.steps:
        raise InputError(
            f"the run is at step {found.step}, past the {setup.config.steps} asked for; give more steps, or --resume "
            "an earlier one"
        )
    if found.step == setup.config.steps:
        return f"{setup.config.steps:,} steps done"
    unchanged = (setup.config.steps, setup.config.patience) == (saved.steps, saved.patience)
    return found.state["finished"] if unchanged else None


def _require_ahead(config: ResolvedConfig, step: int) -> None:
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
    run.truncate(step)


def _describe(trainer: Trainer) -> None:
    config = trainer.config
    log.info(
        "%s: %s parameters, %s steps",
        config.preset if config.init is None else "fine-tuning",
        f"{trainer.model.n_params:,}",
        f"{trainer.config.steps:,}",
    )
    for note in trainer.setup.notes:
        log.info("%s", note)
    log.info("peak %.0f GFLOP/s: %s", trainer.peak / 1e9, trainer.peak_source)


@contextmanager
def _processes(device: str) -> Iterator[Communicator]:
    """Meet the other comm, and let rank 0 alone print."""
    with process_group(device) as comm:
        disabled, log.disabled = log.disabled, not comm.is_main
        try:
            yield comm
        finally:
            log.disabled = disabled


@contextmanager
def _running(run: Run, setup: Setup, comm: Communicator) -> Iterator[None]:
    """Set up what a training loop runs in."""
    log_file = _log_file(run) if comm.is_main else nullcontext()
    with log_file, explain_out_of_memory(setup.config), setup.runtime.numerics(setup.config.deterministic):
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
