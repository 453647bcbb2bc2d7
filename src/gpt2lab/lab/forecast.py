"""What a training run takes, computed before a machine is rented: memory per rank, operations, time, disk space.

    FLOPs          model.flops_per_token(T) * tokens          6 N + 12 L C T per token (Chowdhery et al. 2022, app. B)
    step time      FLOPs of a step / (GPUs * peak rate * MFU). The second forward pass of activation checkpointing is no
                   useful work, so the same machine reaches 3/4 of the MFU. Communication lowers the MFU and is not
                   modeled
    memory         training/memory.py
    tokens         20 per parameter unless given (Hoffmann et al. 2022, section 3)
    data           2 bytes per token, 4 if the vocabulary exceeds 65,536 (data/shards.py)
    checkpoint     weights and optimizer state in fp32

From a run, the measured speed replaces peak rate and MFU. More GPUs are assumed to be as fast each, and a run with
activation checkpointing to have run at 3/4 of the speed without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from bisect import bisect_left
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import torch

from gpt2lab import runtime
from gpt2lab.data.loader import micro_steps, size_at, sum_before
from gpt2lab.errors import InputError, one_of, require
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import GPUS, data_sheet, peak_flops
from gpt2lab.training.checkpoint import list_checkpoints
from gpt2lab.training.config import GROWING, RECIPES, TrainConfig, doublings, saved_config
from gpt2lab.training.distributed import mode_by_memory
from gpt2lab.training.memory import Memory, Shape, estimate, largest_micro_batch, n_params

USABLE_MEMORY = 0.92
"""Fraction of a GPU's memory that tensors can use; driver, libraries and fragmentation take the rest."""
TOKENS_PER_PARAMETER = 20
MAX_TOKENS = 10**18
RECOMPUTE = 4 / 3
"""Work of a step under activation checkpointing (forward, forward again, backward), relative to a step without."""


@dataclass(frozen=True)
class Workload:
    """A training run and the machine that it is planned for."""

    model: GPTConfig
    gpu: str
    gpus: int
    precision: str
    parallel: str
    T: int
    batch_tokens: int
    tokens: int
    micro_batch: int | None
    """Sequences per forward pass of one GPU; None takes the largest that fits and divides the batch."""
    mfu: float
    """Without activation checkpointing."""
    optimizer: str = "adamw"
    measured: float | None = None
    """Measured tokens per second of one GPU, without activation checkpointing."""
    documents: bool = False
    """Whether attention stays within documents."""
    grow_batch: str = "off"
    grow_seq_len: str = "off"
    """When batch and context double, as in `TrainConfig`."""

    @property
    def steps(self) -> int:
        """The fewest steps that read all tokens."""

        def read(steps: int) -> int:
            return sum_before(steps, self.batch_tokens, doublings(self.grow_batch, steps))

        full = math.ceil(self.tokens / self.batch_tokens)
        return 1 + bisect_left(range(1, full << len(doublings(self.grow_batch, 0))), self.tokens, key=read)

    @property
    def flops_per_token(self) -> float:
        """The mean over the run: a short context costs less."""
        steps = self.steps
        batch, length = (doublings(growth, steps) for growth in (self.grow_batch, self.grow_seq_len))
        edges = sorted({0, *(step for step in (*batch, *length) if step < steps), steps})
        read = [sum_before(edge, self.batch_tokens, batch) for edge in edges]
        costs = [self.model.flops_per_token(size_at(edge, self.T, length)) for edge in edges[:-1]]
        return sum(cost * (b - a) for cost, a, b in zip(costs, read, read[1:], strict=False)) / read[-1]

    @classmethod
    def from_preset(
        cls, preset: str = "gpt2", recipe: str = "gpt2", gpu: str = "H100", gpus: int = 1, precision: str = "auto",
        parallel: str = "auto", seq_len: int | None = None, batch_tokens: int | None = None, tokens: int | None = None,
        micro_batch: int | None = None, mfu: float = 0.4,
    ) -> Workload:  # fmt: skip
        """Describe a run of a preset by a recipe.

        Raises:
            InputError: A name is unknown, a number out of range, or the machine lacks the precision or the mode.
        """
        gpu = _known(gpu)
        asked = TrainConfig(preset=preset, recipe=recipe, seq_len=seq_len, batch_tokens=batch_tokens).essentials()
        if gpu == "cpu":
            precision = runtime.resolve(gpu, precision).precision  # refuses what training would
        elif precision == "auto":
            precision = "bf16" if "bf16" in GPUS[gpu].flops else "fp16"
        elif precision not in GPUS[gpu].flops:
            raise InputError(f"{gpu} has no peak rate for {precision}; choose from {', '.join(GPUS[gpu].flops)}")
        _require_counts(parallel, gpus, tokens=tokens, micro_batch=micro_batch)
        require(0 < mfu <= 1, "mfu", mfu, "a fraction of the peak rate, above 0 and at most 1")
        tokens = tokens or TOKENS_PER_PARAMETER * n_params(asked.model)
        machine = (gpu, gpus, precision, parallel)
        batch = (seq_len or asked.model.n_ctx, asked.batch_tokens, tokens, micro_batch)
        growth = {name: getattr(RECIPES[recipe], name) for name in GROWING}
        return cls(asked.model, *machine, *batch, mfu, asked.optim.name, **growth)

    @classmethod
    def from_run(
        cls, run: Run, gpu: str | None = None, gpus: int | None = None, parallel: str = "auto",
        tokens: int | None = None,
    ) -> Workload:  # fmt: skip
        """Describe a measured run with more tokens or GPUs, at the speed that it had.

        By default GPU, number of GPUs and parallel mode are those of the run. If its micro-batch does not divide the
        sequences of a GPU, the next smaller one that does is used.

        Raises:
            InputError: A name is unknown, a number out of range, the run was measured on another machine, or it has too
                few rows to tell its speed.
        """
        config, checkpoints = saved_config(run), list_checkpoints(run)
        devices: int = checkpoints[-1].state.get("world", 1) if checkpoints else 1
        gpus = devices if gpus is None else gpus
        _require_counts(parallel, gpus, tokens=tokens)
        if parallel == "auto" and min(gpus, devices) > 1:
            parallel = config.parallel
        gpu = _measured_on(run, config.device, gpu)
        rows = [row for row in run.metrics()[1:] if row["tokens_per_s"]]  # the first holds the warm-up
        if not rows:
            raise InputError(
                f"{run.path} has fewer than two rows in metrics.csv, too few to tell its speed; train longer"
            )
        slowdown = RECOMPUTE if config.activation_checkpointing else 1.0
        speed, mfu = (
            slowdown * statistics.median(row[name] or 0.0 for row in rows) for name in ("tokens_per_s", "mfu")
        )
        micro_batch = _largest_divisor(config.batch_tokens // (config.seq_len * gpus), config.micro_batch)
        tokens = tokens or TOKENS_PER_PARAMETER * n_params(config.model)
        machine = (gpu, gpus, config.precision, parallel)
        batch = (config.seq_len, config.batch_tokens, tokens, micro_batch)
        how = (config.mask_documents, config.grow_batch, config.grow_seq_len)
        return cls(config.model, *machine, *batch, mfu, config.optim.name, speed / devices, *how)


def parse_tokens(text: str) -> int:
    """Return a number of tokens such as 10000000000, 1e10, 10B or 300M.

    >>> parse_tokens("1.5B")
    1500000000

    Raises:
        InputError: It is not a whole number, or more than `MAX_TOKENS`.
    """
    units = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    unit = units.get(text[-1:].upper())
    with contextlib.suppress(InvalidOperation):
        number = Decimal(text) if unit is None else unit * Decimal(text[:-1])
        if abs(number) <= MAX_TOKENS and number == int(number):
            return int(number)
    raise InputError(f'tokens is "{text}"; give a whole number such as 10000000000, 1e10, 10B or 300M, at most 1e18')


def _known(gpu: str) -> str:
    """Return a GPU's name as in the tables, in any capitalization."""
    name = next((known for known in (*GPUS, "cpu") if known.lower() == gpu.lower()), gpu)
    one_of("GPU", name, (*GPUS, "cpu"))
    return name


def _require_counts(parallel: str, gpus: int, **counts: int | None) -> None:
    for name, value in {"gpus": gpus, **counts}.items():
        require(value is None or value >= 1, name, value, "at least 1")
    if parallel != "auto" and gpus == 1:
        raise InputError(
            f"parallel {parallel} needs several GPUs, but gpus is 1; raise --gpus, or leave out --parallel"
        )


def _measured_on(run: Run, device: str, asked: str | None) -> str:
    """Return the GPU that a run was measured on, or ``cpu``; the one asked for if the run's is in no table."""
    actual = str(run.environment["gpus"]) if device.startswith("cuda") else "cpu"
    known = "cpu" if actual == "cpu" else data_sheet(actual)
    gpu = known if asked is None else _known(asked)
    if gpu is None:
        raise InputError(f"{run.path} was measured on {actual}, which is in no table; name a similar GPU with --gpu")
    if known not in (None, gpu):
        raise InputError(
            f"{run.path} was measured on {known}, which says nothing about {gpu}; leave out --gpu or --from"
        )
    return gpu


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most ``limit``; 1 of 0."""
    return max((n for n in range(1, min(number, limit) + 1) if number % n == 0), default=1)


@dataclass(frozen=True)
class Scenario:
    """The run with, or without, activation checkpointing."""

    memory: Memory
    fits: bool
    largest_micro_batch: int
    micro_batch: int
    micro_steps: int
    mfu: float
    step_seconds: float
    tokens_per_s: float
    days: float
    gpu_hours: float


@dataclass(frozen=True)
class Forecast:
    """What a run takes."""

    workload: Workload
    n_params: int
    usable_memory: int
    """Bytes that tensors can use, on one GPU."""
    parallel: str
    steps: int
    flops: float
    dataset_bytes: int
    checkpoint_bytes: int
    cache_bytes: int
    """Of keys and values that a text as long as the context keeps while it is generated."""
    plain: Scenario
    checkpointed: Scenario


def forecast(workload: Workload) -> Forecast:
    """Compute what a run takes.

    Raises:
        InputError: The batch does not divide into sequences on each GPU, or into micro-batches.
    """
    model, gpus = workload.model, workload.gpus
    on_cpu = workload.gpu == "cpu"
    room = runtime.available_memory(torch.device("cpu")) if on_cpu else int(GPUS[workload.gpu].memory * USABLE_MEMORY)
    parallel = workload.parallel
    if gpus == 1:
        parallel = "single"
    elif parallel == "auto":  # as training chooses
        parallel = "ddp" if on_cpu else mode_by_memory(model, GPUS[workload.gpu].memory)[0]
    rate = _tokens_per_s(workload)  # once: a CPU's peak rate is measured
    shape = Shape(
        *(model, workload.T, 1, workload.precision, "cpu" if on_cpu else "cuda"),
        micro_steps=2,
        optimizer=workload.optimizer,
        shards=gpus if parallel == "fsdp" else 1,
        buckets=parallel == "ddp",
        documents=workload.documents,
    )
    recomputing = dataclasses.replace(shape, activation_checkpointing=True)
    whole = estimate(dataclasses.replace(shape, shards=1))
    return Forecast(
        *(workload, n_params(model), room, parallel),
        steps=workload.steps,
        flops=workload.flops_per_token * workload.tokens,
        dataset_bytes=workload.tokens * (2 if model.vocab_size <= 65_536 else 4),
        checkpoint_bytes=whole.weights + whole.optimizer,
        cache_bytes=model.cache_bytes(model.n_ctx, runtime.DTYPES[workload.precision]),
        plain=_scenario(workload, shape, room, rate),
        checkpointed=_scenario(workload, recomputing, room, rate),
    )


def _scenario(workload: Workload, shape: Shape, room: int, rate: float) -> Scenario:
    largest = largest_micro_batch(shape, room)
    sequences = micro_steps(workload.batch_tokens, workload.T, 1, workload.gpus)
    micro_batch = workload.micro_batch or _largest_divisor(sequences, max(largest, 1))
    steps = micro_steps(workload.batch_tokens, workload.T, micro_batch, workload.gpus)
    memory = estimate(dataclasses.replace(shape, B=micro_batch, micro_steps=steps))
    slowdown = RECOMPUTE if shape.activation_checkpointing else 1.0
    seconds = slowdown * workload.tokens / rate
    return Scenario(
        *(memory, memory.peak <= room, largest, micro_batch, steps),
        mfu=workload.mfu / slowdown,
        step_seconds=slowdown * workload.batch_tokens / rate,
        tokens_per_s=rate / slowdown,
        days=seconds / 86_400,
        gpu_hours=workload.gpus * seconds / 3_600,
    )


def _tokens_per_s(workload: Workload) -> float:
    """Return the speed of all GPUs together, without activation checkpointing."""
    if workload.measured is not None:
        return workload.measured * workload.gpus
    if workload.gpu == "cpu":
        peak = peak_flops(torch.device("cpu"), workload.precision)[0]
    else:
        peak = GPUS[workload.gpu].flops[workload.precision]
    return workload.gpus * peak * workload.mfu / workload.flops_per_token
