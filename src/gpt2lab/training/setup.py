"""Resolve what was asked for to what a run does: every ``auto`` once, with its reason; mismatches before step 1."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gpt2lab import runtime
from gpt2lab.data.dataset import DataManifest, TokenDataset
from gpt2lab.data.loader import (
    BatchLoader,
    Loader,
    StreamLoader,
    count_windows,
    micro_steps,
    size_at,
    spread_windows,
    sum_before,
)
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.streaming import StreamingDataset
from gpt2lab.errors import InputError, out_of_memory
from gpt2lab.files import parse_size
from gpt2lab.imports import FILES
from gpt2lab.model.attention import choose_kernel
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.language_model import profile
from gpt2lab.model.parts import MODULES
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.config import RECIPES, ResolvedConfig, TrainConfig, doublings, flat, saved_model
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator, choose_mode
from gpt2lab.training.memory import Shape, largest_micro_batch

AnyDataset: TypeAlias = TokenDataset | StreamingDataset
DEFAULT_STEPS = 1_000
CPU_PASS_TOKENS = 4_096
"""Tokens of a forward pass on a CPU: enough for efficient products, with activations still small."""
GPU_PASS_TOKENS = 65_536
MEMORY_FRACTION = 0.8
"""Of the free memory: the rest is for validation, samples and other programs."""
MAY_CHANGE_ON_INIT = {
    "dropout",
    "kernel",
    "z_loss",
    "mtp_weight",
    "rope_base",
    "rope_scaling",
    "rope_factor",
    "rope_original_ctx",
}
"""Model options that may differ from those of the run whose weights are loaded; n_ctx too, without a position table."""


SIZES = ("n_layer", "n_head", "n_embd", "n_ctx", "dropout")
"""What every preset sets: a class of the user's own need not read all of them."""
SET_BY_US = frozenset({"n_ctx", "vocab_size", "network", "import_sha256"})
"""What is followed whether or not the class reads it: sequences have at most n_ctx tokens."""
NO_BLOCKS = "its blocks are not known; put them into an nn.ModuleList of n_layer entries"


@dataclass(frozen=True)
class Data:
    """The splits that a run reads, checked, and the fingerprints that they must have when it resumes."""

    train: TokenStream | StreamingDataset
    val: TokenStream | None
    fingerprints: dict[str, str]
    """Of the ``data`` and its ``tokenizer``."""
    eot: int | None = None
    """The id that documents begin with, if attention stays within them."""

    @classmethod
    def open(cls, dataset: AnyDataset, config: ResolvedConfig, every_byte: bool = True) -> Data:
        """Check and open the splits that training uses; ``every_byte`` is that of `TokenDataset.stream`.

        Raises:
            InputError: A split is damaged or shorter than a window, patience needs a validation split, or the first
                segment of a streamed corpus cannot be prepared.
        """
        with dataset.discard_if_refused() if isinstance(dataset, StreamingDataset) else nullcontext():
            if isinstance(dataset, StreamingDataset):
                held_out, train = dataset.held_out(), dataset
                train.require_one_step(0, config.batch_tokens)
            else:
                held_out, train = dataset, dataset.stream("train", every_byte)
                count_windows(train, config.seq_len)
                train.require_counted()
            val = held_out.stream("val", every_byte) if "val" in held_out.manifest.splits else None
            if val is not None:
                spread_windows(val, config.seq_len, config.eval_tokens)
            elif config.patience:
                raise InputError(
                    f"patience is {config.patience}, but {dataset.directory} has no val split; leave it out, or "
                    "prepare the data with a val fraction"
                )
            eot = dataset.manifest.tokenizer.eot if config.mask_documents else None
            return cls(train, val, cls.fingerprints_of(dataset), eot)

    def loader(self, config: ResolvedConfig, comm: Communicator) -> BatchLoader[Any]:
        """Return the loader of one process's batches."""
        sequences = config.batch_tokens // config.seq_len
        how = (
            *(config.seq_len, sequences, config.micro_batch, config.seed, comm.world_size, comm.rank, self.eot),
            config.sampling == "random",
            *(doublings(growth, config.steps) for growth in (config.grow_batch, config.grow_seq_len)),
        )
        return StreamLoader(self.train, *how) if isinstance(self.train, StreamingDataset) else Loader(self.train, *how)

    @staticmethod
    def fingerprints_of(dataset: AnyDataset) -> dict[str, str]:
        """Return the fingerprints of a dataset and its tokenizer, without reading them."""
        return {"data": dataset.fingerprint, "tokenizer": dataset.manifest.tokenizer.fingerprint}


@dataclass(frozen=True)
class Setup:
    """A resolved run."""

    config: ResolvedConfig
    runtime: Runtime
    notes: tuple[str, ...]
    """What was chosen and why, for the log."""
    comm: Communicator = SINGLE_PROCESS
    """The processes of the run."""


def open_data(config: TrainConfig, run: Path, comm: Communicator) -> AnyDataset:
    """Open the data of the run in the directory ``run``, which need not exist yet.

    Raises:
        InputError: There is no data, or several processes would have to stream it.
    """
    if config.stream is None:
        return TokenDataset(config.data)
    if comm.world_size > 1:
        raise InputError(
            f"{config.data} can be streamed by one process only, not by {comm.world_size}; start one, or prepare the "
            "data first with gpt2lab data prepare"
        )
    tokenizer, directory = config.tokenizer, run.with_name(f"{run.name}.stream")
    if Run(run).stream.exists() or tokenizer is None:
        tokenizer, directory = Run(run).tokenizer, Run(run).stream
    max_disk = None if config.max_disk is None else parse_size(config.max_disk)
    return StreamingDataset(config.stream, Tokenizer.load(tokenizer), directory, max_disk, config.column)


def resolve(
    asked: TrainConfig, dataset: AnyDataset, comm: Communicator = SINGLE_PROCESS, why_precision: str | None = None
) -> Setup:
    """Resolve a configuration for a dataset, this machine and the processes of the run.

    Raises:
        InputError: An option cannot be honored here, or does not fit the data.
    """
    where, world = runtime.resolve(asked.device, asked.precision), comm.world_size
    if why_precision is not None:
        where = dataclasses.replace(where, precision_reason=why_precision)
    essentials = asked.essentials()
    optim, batch_tokens = essentials.optim, essentials.batch_tokens
    model = _with_vocabulary(essentials.model, asked, dataset)
    if optim.name == "muon" and model.mup_base_width is not None:
        raise InputError(
            f"optim.name muon with model.mup_base_width {model.mup_base_width}: muP's rates are for adamw; take adamw, "
            "or leave out the base width"
        )
    if model.network is not None:
        require_own_model(model, asked)
    seq_len = model.n_ctx if asked.seq_len is None else asked.seq_len
    steps = total_steps(asked, batch_tokens, seq_len, dataset.manifest)
    growth = asked.growth(steps)
    shortest = size_at(0, seq_len, doublings(growth["grow_seq_len"], steps))
    if model.mtp_depth >= shortest:
        raise InputError(f"model.mtp_depth {model.mtp_depth} with seq_len {shortest}: no token is that far ahead")
    if asked.profiled is not None and asked.profiled[-1] > steps:
        raise InputError(f"profile_steps is {asked.profile_steps}, but the run ends after step {steps}")
    compiled, why_compiled = runtime.resolve_compile(asked.compile, where.device, steps)
    if model.network is not None and not profile(model).blocks:
        compiled, why_compiled = False, f"blocks are compiled, and model {model.network} has none that are known"
    parallel, why_parallel = choose_mode(asked.parallel, model, where, comm)
    _require_divisible(batch_tokens, seq_len, world)
    _require_halves(growth, batch_tokens, seq_len, world)
    micro_batch = asked.micro_batch
    if micro_batch == "auto":
        shape = Shape(
            *(model, seq_len, 1, where.precision, where.device.type, asked.activation_checkpointing),
            micro_steps=2,
            optimizer=optim.name,
            documents=asked.mask_documents,
        )
        micro_batch = choose_micro_batch(shape, batch_tokens, where.device, world)
    passes = micro_steps(batch_tokens, seq_len, micro_batch, world)
    chosen: dict[str, Any] = {
        "model": model, "optim": optim, "seq_len": seq_len, "batch_tokens": batch_tokens,
        "micro_batch": micro_batch, "steps": steps, "epochs": None, "max_tokens": None, "resume": None,
        "device": str(where.device), "precision": where.precision, "parallel": parallel,
        "compile": "on" if compiled else "off", **asked.intervals(steps), **growth,
    }  # fmt: skip
    config = ResolvedConfig(**(vars(asked) | chosen))
    shared = f"{world} processes x " if world > 1 else ""
    notes = (
        f"device {where.device} ({runtime.device_name(where.device)})",
        f"precision {where.precision}: {where.precision_reason}",
        f"compile {config.compile}: {why_compiled}",
        *(attention_notes(config, where) if model.network is None else own_model_notes(model)),
        *own_part_notes(model),
        f"parallel {parallel}: {why_parallel}",
        f"batch {batch_tokens:,} tokens = {shared}{passes} x {micro_batch} sequences of {seq_len}",
        *(f"{name} {growth[name]}: {what} double at these steps" for name, what in GROWTHS if growth[name] != "off"),
    )
    return Setup(config, where, notes, comm)


def initial_weights(config: TrainConfig, dataset: AnyDataset) -> Checkpoint | None:
    """Return the checkpoint whose weights a run starts from, verified; None if it starts from random weights.

    Raises:
        InputError: The architecture differs (how is listed), or the data was prepared with another tokenizer. One with
            more special tokens is allowed: the vocabulary then grows.
    """
    if config.init is None:
        return None
    run = Run.open(config.init)
    found = checkpoint.find(run, "best")
    checkpoint.verify(found)
    made_with, needed = dataset.manifest.tokenizer.fingerprint, found.state["fingerprints"]["tokenizer"]
    grows = made_with != needed
    if grows and saved_model(run).network is not None:
        raise InputError(
            f"the vocabulary of {run.path} cannot grow, since its model is a class given by --model; prepare the data "
            f"with --tokenizer {run.path}"
        )
    if grows and not dataset.tokenizer().extends(checkpoint.load_tokenizer(run, found)):
        raise InputError(
            f"{dataset.directory} was made with tokenizer {made_with[:16]}, and {run.path} has {needed[:16]}; "
            f"prepare the data with --tokenizer {run.path}, or with what gpt2lab tokenizer add-special makes of it"
        )
    theirs, ours = (dataclasses.asdict(model) for model in (saved_model(run), config.essentials().model))
    fixed = theirs.keys() - MAY_CHANGE_ON_INIT - ({"n_ctx"} if ours["position"] != "learned" else set())
    fixed -= {"vocab_size"} if grows else set()
    if different := [f"{n} {ours[n]} (there {theirs[n]})" for n in theirs if n in fixed and ours[n] != theirs[n]]:
        raise InputError(f"model options are not those of {run.path}, which gives the weights: {', '.join(different)}")
    return found


def attention_notes(config: ResolvedConfig, where: Runtime) -> tuple[str, ...]:
    """Return which kernel computes attention and why, with a warning if the mask leaks the targets.

    Raises:
        InputError: The kernel has no gradient on this device.
    """
    model, T = config.model, config.seq_len
    kernel, why = model.kernel, "asked for"
    if kernel == "flex" and where.device.type == "cpu":
        raise InputError("model.kernel flex has no gradient on a CPU; train there with auto, sdpa, matmul or banded")
    notes: tuple[str, ...] = ()
    for name, mask in dict(zip(model.mask_names, model.masks, strict=False)).items():
        if model.kernel == "auto":
            kernel, why = choose_kernel(mask, where.device, where.dtype, T, T, True, model.changes_scores)
        notes += (f"attention kernel {kernel} under mask {name}: {why}",)
        if mask.looks_ahead:
            leak = "lets tokens read what they are to predict; the loss leaks and says nothing"
            notes += (f"warning: mask {name} {leak}",)
    return notes


def require_own_model(model: GPTConfig, asked: TrainConfig) -> None:
    """Raise `InputError` unless the class of the user's own that a configuration names can follow all options.

    What it follows of the model's options is what it reads of its configuration: any other may not be changed.
    """
    found, name = profile(model), f"model {model.network}"
    if asked.mask_documents:
        raise InputError(f"mask_documents with {name}: a class of your own takes tokens and targets only; leave it out")
    if asked.activation_checkpointing:
        raise InputError(
            f"activation_checkpointing with {name}: it is for gpt2lab's own blocks; call torch.utils.checkpoint in "
            "your class"
        )
    if not found.blocks and asked.compile == "on":
        raise InputError(f"compile on with {name}: {NO_BLOCKS}, or take compile off")
    if not found.matrices and asked.essentials().optim.name == "muon":
        why = "its blocks have no matrices, trained parameters of two dimensions" if found.blocks else NO_BLOCKS
        raise InputError(f"optim.name muon with {name}: {why}, or take adamw")
    usual = model if asked.init is not None else dataclasses.replace(asked, model=None).essentials().model
    plain = dataclasses.replace(GPTConfig(), **{size: getattr(usual, size) for size in SIZES})
    for option in dataclasses.fields(GPTConfig):
        value = getattr(model, option.name)
        if option.name not in found.read | SET_BY_US and value != getattr(plain, option.name):
            reads = ", ".join(own.name for own in dataclasses.fields(GPTConfig) if own.name in found.read - SET_BY_US)
            out = "it" if option.name not in RECIPES[asked.recipe].model else f"recipe {asked.recipe}, which sets it"
            raise InputError(
                f"model.{option.name} {value} with {name}, which does not read config.{option.name} (it reads "
                f"{reads}); leave out {out}, or read it in the class"
            )


def own_model_notes(model: GPTConfig) -> Iterator[str]:
    """Yield what is known of a class of the user's own, and what is estimated."""
    found = profile(model)
    read, unread = ([size for size in SIZES if (size in found.read) == known] for known in (True, False))
    yield f"model {model.network} reads {', '.join(read)}" + (f", and not {', '.join(unread)}" if unread else "")
    yield f"FLOPs of model {model.network} are estimated as 6 per parameter and token"
    if found.blocks:
        yield f"{found.blocks} blocks: the entries of its list of n_layer modules"


def own_part_notes(model: GPTConfig) -> Iterator[str]:
    """Yield where each part of the user's own is from, and how it is counted."""
    file = FILES.get(model.import_sha256 or "")
    for kind, name in model.own_parts:
        if file is None:
            yield f"warning: {kind} {name} is known to this process only; define it in a file for --import"
        else:
            yield f"{kind} {name}: {file.path}, SHA-256 {file.sha256}"
        if kind in MODULES:
            yield f"FLOPs and memory of {kind} {name} are estimated from its matrices"


def agreed(setup: Setup, asked: TrainConfig, dataset: AnyDataset) -> Setup:
    """Return the setup of all processes: the smallest micro-batch that any of them chose, and rank 0's precision.

    Raises:
        InputError: A process has other options, versions or data.
    """
    comm = setup.comm
    if comm.world_size == 1:
        return setup
    smallest = -comm.all_reduce_max(-setup.config.micro_batch)
    # auto is decided by timing, which may differ between ranks
    precision, why = comm.broadcast((setup.config.precision, setup.runtime.precision_reason))
    setup = resolve(dataclasses.replace(asked, micro_batch=smallest, precision=precision), dataset, comm, why)
    comm.require_same("data set", Data.fingerprints_of(dataset))
    versions = {name: runtime.environment()[name] for name in ("gpt2lab", "torch")}
    options = flat(setup.config)
    for path in ("data", "out"):  # may differ between machines
        options.pop(path)
    comm.require_same("configuration", options | versions)
    return setup


def total_steps(asked: TrainConfig, batch_tokens: int, seq_len: int, manifest: DataManifest) -> int:
    """Return the length of a run in steps, from steps, epochs or tokens.

    Raises:
        InputError: ``max_tokens`` is less than one step.
    """

    def read(steps: int) -> int:
        """Return the tokens of a run of this length."""
        return sum_before(steps, batch_tokens, doublings(growth, steps))

    growth = asked.grow_batch or RECIPES[asked.recipe].grow_batch
    most = 2 << len(doublings(growth, 0))  # times the steps of a full batch
    if asked.max_tokens is not None:
        if asked.max_tokens < read(1):
            raise InputError(
                f"max_tokens is {asked.max_tokens}, less than the {read(1)} of one step; give at least that, or "
                "a smaller batch_tokens"
            )
        return bisect_right(range(1, most * (asked.max_tokens // batch_tokens + 1)), asked.max_tokens, key=read)
    if asked.epochs is not None:
        windows = (manifest.splits["train"].tokens - 1) // seq_len
        batches = asked.epochs * windows * seq_len / batch_tokens
        return 1 + bisect_left(range(1, most * math.ceil(batches)), batches, key=lambda n: read(n) / batch_tokens)
    return DEFAULT_STEPS if asked.steps is None else asked.steps


def _require_divisible(batch_tokens: int, seq_len: int, world: int) -> None:
    """Raise `InputError` unless a step divides into the same number of sequences for every process."""
    sequences, rest = divmod(batch_tokens, seq_len)
    if rest or sequences % world == 0:
        return  # `micro_steps` refuses what is not a whole number of sequences
    if world > sequences:
        raise InputError(
            f"{world} processes, but a step of {batch_tokens} tokens has only {sequences} sequences of {seq_len}; "
            f"start at most {sequences}, or give a larger --batch-tokens"
        )
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    below, above = max(n for n in divisors if n < world), min(n for n in divisors if n > world)
    raise InputError(
        f"{world} processes cannot share the {sequences} sequences of a step evenly; start {below} or {above}, the "
        f"nearest that can, or give another --batch-tokens, such as {-(-sequences // world) * world * seq_len}"
    )


GROWTHS = (("grow_batch", "the tokens of a step"), ("grow_seq_len", "the tokens of a sequence"))


def _require_halves(growth: dict[str, str], batch_tokens: int, seq_len: int, world: int) -> None:
    """Raise `InputError` unless batch and context can be halved as often as they double."""
    sizes = {"grow_batch": (batch_tokens // seq_len, "sequences", world), "grow_seq_len": (seq_len, "tokens", 1)}
    for name, (full, unit, share) in sizes.items():
        times = len(doublings(growth[name], 0))
        if times and full % (share << times):
            shared = f" over {share} processes" if share > 1 else ""
            raise InputError(
                f"{name} {growth[name]}: {full} {unit}{shared} cannot be halved {times} times; give fewer doublings, "
                f"or a multiple of {share << times} {unit}"
            )


def _with_vocabulary(model: GPTConfig, asked: TrainConfig, dataset: AnyDataset) -> GPTConfig:
    n_vocab = dataset.manifest.tokenizer.n_vocab
    if model.vocab_size != n_vocab:
        default = PRESETS[asked.preset] if asked.init is None else saved_model(Run.open(asked.init))
        if model.vocab_size != default.vocab_size:
            raise InputError(
                f"model.vocab_size is {model.vocab_size}, but the data's tokenizer has {n_vocab} entries; leave it out"
            )
    return dataclasses.replace(model, vocab_size=n_vocab)


def choose_micro_batch(shape: Shape, batch_tokens: int, device: torch.device, world: int = 1) -> int:
    """Return the most sequences per forward pass that divide the step, are fast on the device, and fit its memory.

    Args:
        shape: The shape of a pass with one sequence.
        batch_tokens: Tokens of a step, over all processes.
        device: The device of this process.
        world: The number of processes.

    Raises:
        InputError: The step is not made of whole sequences.
    """
    sequences = micro_steps(batch_tokens, shape.T, 1, world)
    limit = (CPU_PASS_TOKENS if device.type == "cpu" else GPU_PASS_TOKENS) // shape.T
    room = int(runtime.available_memory(device) * MEMORY_FRACTION)
    limit = max(1, min(limit, largest_micro_batch(shape, room)))
    return max(n for n in range(1, min(sequences, limit) + 1) if sequences % n == 0)


@contextmanager
def explain_out_of_memory(config: ResolvedConfig) -> Iterator[None]:
    """Turn every kind of out-of-memory error into an `InputError` that names what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        raise InputError(
            f"out of memory with {config.micro_batch} sequences of {config.seq_len} tokens per pass; start again with "
            "a lower --micro-batch (the batch stays the same, more is accumulated), then --seq-len, or a smaller model"
        ) from error
