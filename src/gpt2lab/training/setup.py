"""From what a user asked to what a run does: every ``auto`` resolved once, every mismatch found before step 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.download import size_of
from gpt2lab.data.loader import Loader, count_windows, micro_steps
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.streaming import SegmentStore, StreamingDataset, StreamLoader, require_one_step
from gpt2lab.errors import InputError
from gpt2lab.model.attention import choose_kernel
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.config import TrainConfig, flat, saved_config
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator
from gpt2lab.training.memory import Shape, largest_micro_batch
from gpt2lab.training.parallel import choose_mode


@dataclass(frozen=True)
class Data:
    """What a run reads, checked; and what it must be again when the run goes on."""

    train: TokenStream | SegmentStore
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and of its ``tokenizer``."""
    eot: int | None = None
    """The id that documents begin with, where attention stays within them."""

    @classmethod
    def open(cls, dataset: TokenDataset | StreamingDataset, config: TrainConfig, every_byte: bool = True) -> Data:
        """Check and open the splits that training uses; ``every_byte`` is that of `TokenDataset.stream`.

        Raises:
            InputError: One is damaged or shorter than a window, or patience has no validation split to go by; of a
                corpus that is prepared meanwhile, what preparing the first round refuses.
        """
        with dataset.discard_if_refused() if isinstance(dataset, StreamingDataset) else nullcontext():
            return cls._open(dataset, config, every_byte)

    @classmethod
    def _open(cls, dataset: TokenDataset | StreamingDataset, config: TrainConfig, every_byte: bool) -> Data:
        held_out = dataset.held_out() if isinstance(dataset, StreamingDataset) else dataset
        val = held_out.stream("val", every_byte) if "val" in held_out.manifest.splits else None
        if val is None and config.patience:
            raise InputError(
                f"patience is {config.patience}, but {dataset.directory} has no val split to go by; leave it out, or "
                "prepare the data with a val fraction"
            )
        train = dataset.segments() if isinstance(dataset, StreamingDataset) else dataset.stream("train", every_byte)
        for stream in (train, val):
            if isinstance(stream, SegmentStore):
                assert config.batch_tokens is not None  # filled in by TrainConfig
                require_one_step(stream, 0, config.batch_tokens)
            elif stream is not None:
                count_windows(stream, config.window)
        eot = dataset.manifest.tokenizer.eot if config.mask_documents else None
        return cls(train, val, cls.fingerprints_of(dataset), eot)

    def loader(self, config: TrainConfig, where: Runtime) -> Loader | StreamLoader:
        """Return the batches of one process of a resolved run."""
        assert isinstance(config.micro_batch, int) and config.batch_tokens is not None  # resolved
        sequences = config.batch_tokens // config.window
        how = (config.window, sequences, config.micro_batch, config.seed, where.world, where.rank, self.eot)
        return StreamLoader(self.train, *how) if isinstance(self.train, SegmentStore) else Loader(self.train, *how)

    @staticmethod
    def fingerprints_of(dataset: TokenDataset | StreamingDataset) -> dict[str, str]:
        """Return what tells this data and its tokenizer from others, without reading them."""
        return {"data": dataset.fingerprint, "tokenizer": dataset.manifest.tokenizer.fingerprint}


@dataclass
class Progress:
    """The scalars of the training state."""

    step: int = 0
    loss_sum: float = 0.0
    """Sum and count of the steps' losses since the last row of metrics.csv."""
    loss_count: int = 0
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """Losses of the last steps, which a spike stands out from."""
    val_loss: float | None = None
    """Validation loss at this step; None where it was not taken."""
    best_val_loss: float | None = None
    evals_since_best: int = 0
    seconds: float = 0.0
    finished: str | None = None
    """Why the run is over; None while it is not."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """The state of the gradient scaler, where the precision is fp16."""


class Update(NamedTuple):
    """Figures of an optimiser step: its batch's mean loss in nats, its rate, the gradient's norm before clipping."""

    loss: float
    lr: float
    grad_norm: float


AnyDataset: TypeAlias = TokenDataset | StreamingDataset
DEFAULT_STEPS = 1_000
CPU_PASS_TOKENS = 4_096
"""Tokens a forward pass on a CPU: products are efficient, activations still small."""
GPU_PASS_TOKENS = 65_536
MEMORY_SHARE = 0.8
"""Of the memory that is free: the rest is for validation, samples and other programs."""
MAY_CHANGE_ON_INIT = {"dropout", "kernel"}
"""Options of the architecture that may differ from those of the run whose weights are the first."""


@dataclass(frozen=True)
class Plan:
    """A run with nothing left to choose."""

    config: TrainConfig
    runtime: Runtime
    steps: int
    notes: tuple[str, ...]
    """What was chosen and why, for the log."""


def open_data(config: TrainConfig, run: Path, comm: Communicator) -> AnyDataset:
    """Open the data of a run, which is to be in the directory ``run``, or is.

    Raises:
        InputError: There is none, or it cannot be had by several processes.
    """
    if config.stream is None:
        return TokenDataset(config.data)
    if comm.world_size > 1:
        raise InputError(
            f"{config.data} is prepared by the one process that trains, not by {comm.world_size}; start one, or "
            "prepare the data first, with gpt2lab data prepare"
        )
    kept, beside = Run(run).stream, run.with_name(f"{run.name}.stream")
    tokenizer = Run(run).tokenizer if kept.exists() else config.tokenizer
    assert tokenizer is not None  # required by TrainConfig
    max_disk = None if config.max_disk is None else size_of(config.max_disk)
    directory = kept if kept.exists() else beside
    return StreamingDataset(config.stream, Tokenizer.load(tokenizer), directory, max_disk, config.column)


def resolve(config: TrainConfig, dataset: AnyDataset, comm: Communicator = SINGLE_PROCESS) -> Plan:
    """Resolve a configuration for a dataset, this machine and the processes that share the work.

    Raises:
        InputError: Something asked for cannot be had, or does not fit the data.
    """
    where = runtime.resolve(config.device, config.precision)
    where = dataclasses.replace(where, rank=comm.rank, world=comm.world_size)
    model = _with_vocabulary(config.model, config.preset, dataset)
    config = dataclasses.replace(config, model=model, device=str(where.device), precision=where.precision)
    steps = total_steps(config, dataset)
    if config.profiled is not None and config.profiled[-1] > steps:
        raise InputError(f"profile_steps is {config.profile_steps}, but the run ends after step {steps}")
    compiled, why = runtime.resolve_compile(config.compile, where.device, steps)
    parallel, why_parallel = choose_mode(config.parallel, model, where, comm)
    _require_shareable(config, where.world)
    micro_batch = config.micro_batch
    if micro_batch == "auto":
        micro_batch = choose_micro_batch(config, where)
    micro_steps(batch_tokens(config), config.window, micro_batch, where.world)
    config = dataclasses.replace(
        config, compile="on" if compiled else "off", parallel=parallel, micro_batch=micro_batch
    )
    passes = batch_tokens(config) // config.window // micro_batch // where.world
    shared = f"{where.world} processes x " if where.world > 1 else ""
    notes = (
        f"device {where.device} ({runtime.device_name(where.device)})",
        f"precision {where.precision}: {where.precision_reason}",
        f"compile {config.compile}: {why}",
        *attention_notes(config, where),
        f"parallel {config.parallel}: {why_parallel}",
        f"batch {batch_tokens(config):,} tokens = {shared}{passes} x {micro_batch} sequences of {config.window}",
    )
    return Plan(config, where, steps, notes)


def initial_weights(config: TrainConfig, dataset: AnyDataset) -> Checkpoint | None:
    """Return the checkpoint that a run begins from, verified; None where it begins from random weights.

    Raises:
        InputError: It is of another architecture (what differs is listed), or the data of another tokenizer.
    """
    if config.init is None:
        return None
    run = Run.open(config.init)
    found = checkpoint.find(run, "best")
    checkpoint.verify(found)
    made_with, needed = dataset.manifest.tokenizer.fingerprint, found.state["fingerprints"]["tokenizer"]
    if made_with != needed:
        raise InputError(
            f"{dataset.directory} was made with tokenizer {made_with[:16]}, and {run.path} has {needed[:16]}; "
            f"prepare the data with --tokenizer {run.path}"
        )
    theirs, ours = (dataclasses.asdict(model) for model in (saved_config(run).model, config.model))
    fixed = theirs.keys() - MAY_CHANGE_ON_INIT
    if different := [f"{n} {ours[n]} (there {theirs[n]})" for n in theirs if n in fixed and ours[n] != theirs[n]]:
        raise InputError(f"model options are not those of {run.path}, which gives the weights: {', '.join(different)}")
    return found


def attention_notes(config: TrainConfig, where: Runtime) -> tuple[str, ...]:
    """Say which kernel computes attention and why, and warn of a mask under which the loss leaks.

    Raises:
        InputError: The kernel has no gradient here.
    """
    model, T = config.model, config.window
    kernel, why = model.kernel, "asked for"
    if kernel == "flex" and where.device.type == "cpu":
        raise InputError("model.kernel flex has no gradient on a CPU; train there with auto, sdpa, matmul or banded")
    if kernel == "auto":
        kernel, why = choose_kernel(model.attention_mask, where.device, where.dtype, T, T, training=True)
    notes = (f"attention kernel {kernel} under mask {model.mask}: {why}",)
    if not model.attention_mask.looks_ahead:
        return notes
    leak = f"warning: mask {model.mask} lets tokens read what they are to predict; the loss leaks and says nothing"
    return (*notes, leak)


def agreed(plan: Plan, config: TrainConfig, dataset: AnyDataset, comm: Communicator) -> Plan:
    """Return a plan that all processes have: where each chose a micro-batch by its memory, with the smallest.

    Raises:
        InputError: One has other options, versions or data.
    """
    if comm.world_size == 1:
        return plan
    assert isinstance(plan.config.micro_batch, int)  # resolved
    smallest = -comm.all_reduce_max(-plan.config.micro_batch)
    plan = resolve(dataclasses.replace(config, micro_batch=smallest), dataset, comm)
    comm.require_same("data set", Data.fingerprints_of(dataset))
    versions = {name: runtime.environment()[name] for name in ("gpt2lab", "torch")}
    options = flat(plan.config)
    for place in ("data", "out"):  # may lie elsewhere on each machine
        options.pop(place)
    comm.require_same("configuration", options | versions)
    return plan


def batch_tokens(config: TrainConfig) -> int:
    """Tokens an optimiser step; the recipe's unless given."""
    assert config.batch_tokens is not None  # filled in by TrainConfig
    return config.batch_tokens


def total_steps(config: TrainConfig, dataset: AnyDataset) -> int:
    """Return the run's length in steps, from whichever of steps, epochs and tokens is given.

    Raises:
        InputError: ``max_tokens`` is less than a step takes.
    """
    if config.max_tokens is not None:
        if config.max_tokens < batch_tokens(config):
            raise InputError(
                f"max_tokens is {config.max_tokens}, less than the {batch_tokens(config)} of one step; give at least "
                "those, or a smaller batch_tokens"
            )
        return config.max_tokens // batch_tokens(config)
    if config.epochs is not None:
        windows = (dataset.manifest.splits["train"].tokens - 1) // config.window
        return max(1, math.ceil(config.epochs * windows * config.window / batch_tokens(config)))
    return config.steps or DEFAULT_STEPS


def _require_shareable(config: TrainConfig, world: int) -> None:
    """Raise `InputError` unless each process gets as many whole sequences of a step as any other."""
    sequences, rest = divmod(batch_tokens(config), config.window)
    if rest or sequences % world == 0:
        return  # what is no whole number of sequences is `micro_steps`' to refuse
    if world > sequences:
        raise InputError(
            f"{world} processes, but a step of {batch_tokens(config)} tokens has only {sequences} sequences of "
            f"{config.window}; start at most {sequences}, or give a larger --batch-tokens"
        )
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    below, above = max(n for n in divisors if n < world), min(n for n in divisors if n > world)
    raise InputError(
        f"{world} processes cannot share the {sequences} sequences of a step evenly; start {below} or {above}, the "
        f"nearest that can, or give another --batch-tokens, such as {-(-sequences // world) * world * config.window}"
    )


def _with_vocabulary(model: GPTConfig, preset: str, dataset: AnyDataset) -> GPTConfig:
    n_vocab = dataset.manifest.tokenizer.n_vocab
    if model.vocab_size not in (n_vocab, PRESETS[preset].vocab_size):
        raise InputError(
            f"model.vocab_size is {model.vocab_size}, but the data's tokenizer has {n_vocab} entries; leave it out"
        )
    return dataclasses.replace(model, vocab_size=n_vocab)


def choose_micro_batch(config: TrainConfig, where: Runtime) -> int:
    """Return the most sequences a pass that divide the step, are fast on the device and fit into its memory.

    Raises:
        InputError: The step is not made of whole sequences.
    """
    sequences = micro_steps(batch_tokens(config), config.window, 1, where.world)
    limit = (CPU_PASS_TOKENS if where.device.type == "cpu" else GPU_PASS_TOKENS) // config.window
    room = int(runtime.available_memory(where.device) * MEMORY_SHARE)
    limit = max(1, min(limit, largest_micro_batch(memory_shape(config, where), room)))
    return max(n for n in range(1, min(sequences, limit) + 1) if sequences % n == 0)


def memory_shape(config: TrainConfig, where: Runtime) -> Shape:
    """Return what the memory of a run depends on, with one sequence a pass."""
    return Shape(
        *(config.model, config.window, 1, where.precision, where.device.type, config.activation_checkpointing),
        micro_steps=2,
        optimiser=config.optim.name,
    )


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn the many ways of saying that memory ran out into an `InputError` that names what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory with {config.micro_batch} sequences of {config.window} tokens a pass; start anew with a "
            "lower --micro-batch (the batch stays the same, more is accumulated), then --seq-len, or a smaller model"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error)
    by_name = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return by_name or "DefaultCPUAllocator" in said or "MPS backend out of memory" in said
