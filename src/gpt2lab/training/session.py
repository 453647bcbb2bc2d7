"""Start a run or resume one: check everything, bring the run directory into its state, and train."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gpt2lab import runtime
from gpt2lab.data.streaming import StreamingDataset
from gpt2lab.errors import InputError
from gpt2lab.files import free_path, locked, remove_temporary, write_checked_json
from gpt2lab.formatting import plural
from gpt2lab.imports import copy_to
from gpt2lab.model.config import PRESETS
from gpt2lab.model.language_model import LanguageModel, OwnModel
from gpt2lab.model.quantized import QuantizedGPT
from gpt2lab.runs import SEGMENTS, Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.config import (
    INTERVALS,
    OptimConfig,
    ResolvedConfig,
    TrainConfig,
    flat,
    saved_config,
    saved_model,
    to_dict,
)
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator, process_group
from gpt2lab.training.loop import Hooks, Progress, Trainer
from gpt2lab.training.optim import make_optimizer
from gpt2lab.training.setup import (
    AnyDataset,
    Data,
    Setup,
    agreed,
    explain_out_of_memory,
    initial_weights,
    open_data,
    resolve,
)

log = logging.getLogger("gpt2lab")
MAY_CHANGE_ON_RESUME = {
    "data", "out", "resume", "steps", "epochs", "max_tokens", "log_every", "eval_every", "sample_every",
    "sample_prompt", "hellaswag", "hellaswag_every", "checkpoint_every", "keep_last", "patience", "on_spike", "spike_z",
    "tracker", "profile_steps", "loader_workers", "tokenizer", "max_disk",
}  # fmt: skip
"""Options that may differ when a run resumes; any other would make it another run."""
MAY_MOVE = ("device", "precision", "compile", "micro_batch", "parallel")
"""Options that may differ as well, so that a run can move to another machine; its numbers then differ by rounding."""


def train(config: TrainConfig, hooks: Hooks | None = None) -> Run:
    """Train a new run to its end, or resume the run in ``config.out`` if ``config.resume`` is given; return it.

    ``config.resume`` is ``last``, ``best`` or a step. The last is the newest that is not damaged. Checkpoints of later
    steps are kept under another name. A finished run is left as it is, unless it was given more steps.

    Raises:
        InputError: An option cannot be honored or would make it another run, the directory exists or is in use, there
            is no such checkpoint, memory ran out, or training diverged.
        Interrupted: A signal ended it; the state was saved.
    """
    runtime.tune_allocator()
    with process_group(config.device) as comm:
        disabled, log.disabled = log.disabled, not comm.is_main
        try:
            if config.resume is None and (path := _path_before_restart(config, comm)) is not None:
                config = dataclasses.replace(config, out=path, resume="last")
            return (_start if config.resume is None else _resume)(config, hooks or Hooks(), comm)
        finally:
            log.disabled = disabled


def _start(config: TrainConfig, hooks: Hooks, comm: Communicator) -> Run:
    path = Path(comm.broadcast(str(config.out or free_path(default_path(config)))))
    config, run = dataclasses.replace(config, out=path), Run(path)
    with comm.raise_on_all_ranks():
        dataset = open_data(config, path, comm)
        weights = initial_weights(config, dataset)
        setup = resolve(config, dataset, comm)
        hooks.check(dataset.tokenizer(), setup.config.model)
    setup = agreed(setup, config, dataset)
    comm.run_on_main(lambda: Run.require_new(path))
    data, directory = _open_checked(dataset, setup), dataset.directory

    def create() -> None:
        tokenizer = dataset.tokenizer()
        Run.create(path, _to_save(setup.config), runtime.environment() | _launch(comm))
        tokenizer.save(run.tokenizer)
        copy_to(run, setup.config.model.import_sha256)
        if isinstance(dataset, StreamingDataset):
            dataset.move_to(run.stream)

    comm.run_on_main(create)
    trainer: Trainer | None = None
    try:
        if isinstance(dataset, StreamingDataset):
            data = Data.open(dataset, setup.config)  # at its new path
        with held(run, comm), _training(run, setup, data, hooks) as trainer:
            _begin(trainer, weights)
            trainer.fit()
    except BaseException:
        untrained = trainer is None or trainer.progress.step == 0
        if comm.is_main and untrained:
            if isinstance(dataset, StreamingDataset) and dataset.directory != directory:
                with suppress(OSError):
                    dataset.move_to(directory)  # keep what was prepared
            shutil.rmtree(run.path, ignore_errors=True)  # so that the corrected command can have it
        raise
    return run


def _resume(config: TrainConfig, hooks: Hooks, comm: Communicator) -> Run:
    with comm.raise_on_all_ranks():
        if config.out is None:
            raise InputError("--resume needs --out RUN, the directory of the run to resume")
        run = Run.open(config.out)
    with held(run, comm):
        _resume_held(run, config, hooks, comm)
    return run


def _resume_held(run: Run, config: TrainConfig, hooks: Hooks, comm: Communicator) -> None:
    with comm.raise_on_all_ranks():
        saved = saved_config(run)
        merged = merge_for_resume(config, saved, comm)
        restarted = _is_restart_of(run, comm)
    which = "last" if restarted else config.resume or "last"
    found, warnings = comm.run_on_main(lambda: _find_checkpoint(run, which, restarted))
    if found is not None:
        found = Checkpoint(run.checkpoints / found.path.name)  # machines may have the run in other places
    with comm.raise_on_all_ranks():
        dataset = open_data(merged, run.path, comm)
        if found is not None:
            _require_same_data(found.state["fingerprints"], Data.fingerprints_of(dataset))
        weights = initial_weights(merged, dataset) if found is None else None
        setup = resolve(merged, dataset, comm)
        finished = found and _why_finished(found, setup.config, saved)
    if finished:
        log.info("%s is finished (%s): nothing to do", run.path, finished)
        return
    setup = agreed(setup, merged, dataset)
    step = 0 if found is None else found.step
    with comm.raise_on_all_ranks():
        if setup.config.profiled is not None and setup.config.profiled[0] <= step:
            raise InputError(
                f"profile_steps is {setup.config.profile_steps}, but the run resumes after step {step}; give later "
                "steps"
            )
        tokenizer = Tokenizer.load(run.tokenizer) if found is None else checkpoint.load_tokenizer(run, found)
        hooks.check(tokenizer, setup.config.model)
    data = _open_checked(dataset, setup)
    with _training(run, setup, data, hooks) as trainer:
        if found is None:
            _begin(trainer, weights)
        else:
            with comm.raise_on_all_ranks():
                trainer.restore(found)
        for warning in warnings:
            log.warning("%s", warning)
        _warn_if_moved(saved, setup, found)
        comm.run_on_main(lambda: _go_back(run, step, setup))
        log.info("resumed %s at step %d of %d", run.path, step, setup.config.steps)
        trainer.fit()


def merge_for_resume(asked: TrainConfig, saved: ResolvedConfig, comm: Communicator = SINGLE_PROCESS) -> TrainConfig:
    """Return the configuration to resume a run with: the saved one, with those changes that are allowed.

    An option that is None or ``auto`` keeps its saved value. One that was resolved for another number of processes and
    does not suit this one is ``auto`` again, unless it was given.

    Raises:
        InputError: An option differs that would make it another run (named, with both values).
    """
    changes = {name: getattr(asked, name) for name in MAY_CHANGE_ON_RESUME}
    changes |= {name: getattr(asked, name) or getattr(saved, name) for name in INTERVALS}
    changes |= {name: value for name in MAY_MOVE if (value := getattr(asked, name)) != "auto"}
    if asked.steps is asked.epochs is asked.max_tokens is None:
        changes["steps"] = saved.steps
    merged = dataclasses.replace(saved.as_asked(), **changes)
    if merged.parallel == saved.parallel and (merged.parallel == "none") != (comm.world_size == 1):
        merged = dataclasses.replace(merged, parallel="auto")
    sequences = saved.batch_tokens // saved.seq_len
    if merged.micro_batch == saved.micro_batch and sequences % (saved.micro_batch * comm.world_size):
        merged = dataclasses.replace(merged, micro_batch="auto")
    before = flat(merged.filled_in())
    growth = {name: value for name, value in asked.growth(saved.steps).items() if getattr(asked, name) is not None}
    asked = dataclasses.replace(asked, model=asked.model and asked.model.with_import(), **growth)
    for name, value in flat(asked).items():
        unset = name in MAY_MOVE or (value is None and "." not in name)
        if unset or value == before[name] or (name == "model.vocab_size" and value == PRESETS[asked.preset].vocab_size):
            continue
        raise InputError(
            f"{name} was {before[name]} when the run started and cannot be {value} when it resumes; leave it out"
        )
    return merged


def default_path(config: TrainConfig) -> Path:
    """Return the default directory of a run; if it exists, a number is appended."""
    name = config.preset if config.init is None else config.init.resolve().name
    data = config.data.resolve().name if config.stream is None else Path(config.stream).name
    return Path("runs") / f"{name}-{data}"


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


def _launch(comm: Communicator) -> dict[str, str]:
    """Return the entry of environment.json by which a restarted process recognizes its run."""
    return {} if comm.launch_id is None else {"launch": comm.launch_id}


def _is_restart_of(run: Run, comm: Communicator) -> bool:
    """Return whether torchrun has restarted processes that worked on this run."""
    return comm.restarts > 0 and run.environment.get("launch") == comm.launch_id


def _path_before_restart(config: TrainConfig, comm: Communicator) -> Path | None:
    """Return the run that these processes had started before torchrun restarted them, if any."""
    if comm.restarts == 0:
        return None
    base = default_path(config)
    paths = [config.out] if config.out is not None else [base, *base.parent.glob(f"{base.name}-*")]
    started = (path for path in paths if (path / "config.json").is_file() and _is_restart_of(Run(path), comm))
    return comm.run_on_main(lambda: next(started, None))


def _find_checkpoint(run: Run, which: str, restarted: bool) -> tuple[Checkpoint | None, list[str]]:
    """Return the verified checkpoint to resume from, and warnings of damaged newer ones.

    None if torchrun restarted the processes before the first checkpoint: the run then starts over.
    """
    if which != "last":
        found = checkpoint.find(run, which)
        checkpoint.verify(found)
        return found, []
    if restarted and not checkpoint.list_checkpoints(run):
        return None, []
    return checkpoint.newest_valid(run)


def _require_same_data(before: dict[str, str], now: dict[str, str]) -> None:
    """Raise `InputError` unless the data and tokenizer are those that the run began with."""
    for what in ("tokenizer", "data"):  # the data's fingerprint covers the tokenizer's
        if before[what] != now[what]:
            raise InputError(
                f"the {what} given is not the run's: its fingerprint is {now[what][:16]}, the run began with "
                f"{before[what][:16]}; give the --data that it began with"
            )


def _why_finished(found: Checkpoint, config: ResolvedConfig, saved: ResolvedConfig) -> str | None:
    """Return why a run is finished at a checkpoint; None if it is not, or was given more steps or patience.

    Raises:
        InputError: It has done more steps than it was given.
    """
    if found.step > config.steps:
        raise InputError(
            f"the run is at step {found.step}, past the {config.steps} asked for; give more steps, or --resume an "
            "earlier one"
        )
    if found.step == config.steps:
        return f"{config.steps:,} steps done"
    unchanged = (config.steps, config.patience) == (saved.steps, saved.patience)
    return found.state["finished"] if unchanged else None


def _open_checked(dataset: AnyDataset, setup: Setup) -> Data:
    """Check and open the data; one rank of each machine reads every byte."""
    every_byte = setup.comm.is_first_on_node(str(dataset.directory.resolve()))
    with setup.comm.raise_on_all_ranks():
        return Data.open(dataset, setup.config, every_byte)


def _to_save(config: ResolvedConfig) -> dict[str, Any]:
    """Return the content of config.json: paths are absolute, and a trace is of one start only."""
    data = config.data.resolve() if config.stream is None else config.data
    return to_dict(
        dataclasses.replace(config, data=data, init=config.init and config.init.resolve(), profile_steps=None)
    )


@contextmanager
def _training(run: Run, setup: Setup, data: Data, hooks: Hooks) -> Iterator[Trainer]:
    """Make the trainer of a run, and set up logging, numerics and errors for the loop."""
    with ExitStack() as stack:
        if setup.comm.is_main:
            stack.enter_context(_log_file(run))
        stack.enter_context(explain_out_of_memory(setup.config))
        stack.enter_context(setup.runtime.numerics(setup.config.deterministic))
        if setup.comm.is_main:
            hooks.begin(run, setup.runtime)
        yield Trainer(setup, data, run, hooks if setup.comm.is_main else Hooks())


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


def _begin(trainer: Trainer, weights: Checkpoint | None) -> None:
    """Describe the run in the log, and load the weights that it starts from unless they are random."""
    config = trainer.config
    name = f"{config.model.network or config.preset}, recipe {config.recipe}" if config.init is None else "fine-tuning"
    log.info("%s: %s parameters, %s steps", name, f"{trainer.model.n_params:,}", f"{config.steps:,}")
    for note in trainer.setup.notes:
        log.info("%s", note)
    if isinstance(trainer.model, OwnModel):
        matrices, all_of_it = (sum(p.dim() >= least for p in trainer.model.parameters()) for least in (2, 0))
        log.info(
            "weight decay applies to the %d of %d parameters that have two dimensions or more", matrices, all_of_it
        )
        if not trainer.model.loss_is_cross_entropy:
            log.warning(
                "the loss of model %s is not the mean cross-entropy of its logits, which validation measures",
                trainer.model.config.network,
            )
    log.info("peak %.0f GFLOP/s: %s", trainer.peak / 1e9, trainer.peak_source)
    if weights is not None:
        with trainer.comm.raise_on_all_ranks():
            theirs = saved_model(Run(weights.path.parents[1])).vocab_size
            checkpoint.load_into(weights, trainer.model, vocab_size=theirs)
        log.info("weights of %s", weights.path)
        if added := config.model.vocab_size - theirs:
            log.info("the embedding has %s: each starts as the mean of the others", plural(added, "new row"))


def _warn_if_moved(saved: ResolvedConfig, setup: Setup, found: Checkpoint | None) -> None:
    """Warn if the run has moved to another device, precision or number of processes."""
    pairs = ((name, getattr(saved, name), getattr(setup.config, name)) for name in MAY_MOVE)
    changes = [f"{name} was {before} and is {after}" for name, before, after in pairs if before != after]
    now = setup.comm.world_size
    world = now if found is None else found.state.get("world", 1)
    if world != now:
        changes.append(f"processes were {world} and are {now}")
    if changes:
        log.warning("%s: from here on equal to an unbroken run but for rounding, not bit for bit", ", ".join(changes))


def _go_back(run: Run, step: int, setup: Setup) -> None:
    """Return a run's files to their state at a step, without losing later checkpoints, and save its configuration."""
    for folder in (run.path, run.checkpoints, run.path / SEGMENTS):
        remove_temporary(folder)
    for name in checkpoint.set_aside(run, step):
        log.warning("a later checkpoint is kept as %s", name)
    run.truncate(step)
    copy_to(run, setup.config.model.import_sha256)  # the run may have begun with a mask of that process only
    if not run.segments:
        run.add_segment(0, run.config, run.environment)
    config, launch = _to_save(setup.config), _launch(setup.comm)
    run.add_segment(step, config, runtime.environment() | launch)
    write_checked_json(run.path / "config.json", config)
    if launch:
        write_checked_json(run.path / "environment.json", run.environment | launch)


def save_imported(model: LanguageModel, tokenizer: Tokenizer, path: Path, origin: str) -> Run:
    """Create the directory of a run whose only checkpoint holds an imported model; return the run.

    Its config.json holds the architecture only: nothing is known of its training.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: The directory, which must not exist.
        origin: Where the weights are from, in words.

    Raises:
        InputError: ``path`` exists, the tokenizer is another model's, or the disk is full.
    """
    V = model.config.vocab_size
    if tokenizer.n_vocab != V:
        raise InputError(
            f"the model of {origin} has a vocabulary of {V:,}, its tokenizer one of {tokenizer.n_vocab:,}; give the "
            "right --tokenizer, or fit the model to it with transformers' resize_token_embeddings"
        )
    state = dataclasses.asdict(Progress(finished=f"imported from {origin}"))
    state |= {"fingerprints": {"tokenizer": tokenizer.fingerprint}}
    return _save_alone(model, tokenizer, path, {}, state)


def save_quantized(model: QuantizedGPT, tokenizer: Tokenizer, path: Path, source: Checkpoint, config: Any) -> Run:
    """Create the directory of a run whose only checkpoint holds quantized weights; return the run.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: The directory, which must not exist.
        source: Checkpoint that the weights were made from.
        config: What the config.json of its run holds.

    Raises:
        InputError: ``path`` exists, or the disk is full.
    """
    return _save_alone(model, tokenizer, path, config, source.state | {"width": model.width})


def _save_alone(model: LanguageModel, tokenizer: Tokenizer, path: Path, config: Any, state: dict[str, Any]) -> Run:
    """Create the directory of a run with one checkpoint, which no training precedes."""
    run = Run.create(path, {**config, "model": dataclasses.asdict(model.config)}, runtime.environment())
    try:
        copy_to(run, model.config.import_sha256)
        tokenizer.save(run.tokenizer)
        optimizer = make_optimizer(model, OptimConfig())  # has no state before its first step
        checkpoint.save(run, model, optimizer, state)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run
