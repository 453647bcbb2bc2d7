"""What is asked of `gpt2lab plan`: a preset on GPUs of the data sheets, or a short run that is to become a long one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import torch

from gpt2lab import runtime
from gpt2lab.errors import InputError, one_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.flops import PEAK_FLOPS, data_sheet, flops_per_token, peak_flops
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint
from gpt2lab.training.config import TrainConfig, saved_config
from gpt2lab.training.memory import Memory, Shape, estimate, largest_micro_batch, n_params, parameter_shapes
from gpt2lab.training.parallel import mode_by_memory

GB = 10**9
GPU_MEMORY: dict[str, int] = {
    # Vendor's data sheets; of the A100 the larger. What the driver and the libraries take is in `plan.RESERVED`.
    "GB200": 186 * GB, "B200": 180 * GB, "H200": 141 * GB, "H100": 80 * GB, "H100 PCIe": 80 * GB, "H100 NVL": 94 * GB,
    "A100": 80 * GB, "A10G": 24 * GB, "A40": 48 * GB, "L40S": 48 * GB, "L4": 24 * GB, "RTX 4090": 24 * GB,
    "RTX 3090": 24 * GB, "V100": 32 * GB, "T4": 16 * GB,
}  # fmt: skip
TOKENS_A_PARAMETER = 20
MOST_TOKENS = 10**18
RECOMPUTED = 4 / 3
"""Work of a step under activation checkpointing: forward, forward again, backward (twice a forward)."""


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    model: GPTConfig
    gpu: str
    gpus: int
    precision: str
    parallel: str
    T: int
    batch_tokens: int
    tokens: int
    micro_batch: int | None
    """Sequences a pass of one GPU; None takes the most that fit and divide the batch."""
    mfu: float
    """Without activation checkpointing."""
    optimiser: str = "adamw"
    measured: float | None = None
    """Tokens a second of one GPU without activation checkpointing, by a run that was measured."""


def ask(
    preset: str, gpu: str, gpus: int, precision: str, parallel: str, seq_len: int | None, batch_tokens: int | None,
    tokens: int | None, micro_batch: int | None, mfu: float,
) -> Question:  # fmt: skip
    """Return the question that options ask.

    Raises:
        InputError: A name is unknown, a number out of range, or the machine cannot do the precision or the mode.
    """
    gpu = _known(gpu)
    config = TrainConfig(preset=preset, seq_len=seq_len, batch_tokens=batch_tokens)  # checks these
    if gpu == "cpu":
        runtime.resolve(gpu, precision)  # refuses what training would
    elif precision not in PEAK_FLOPS[gpu]:
        raise InputError(f"{gpu} has no peak rate for {precision}; choose from {', '.join(PEAK_FLOPS[gpu])}")
    _require_counts(gpus=gpus, tokens=tokens, micro_batch=micro_batch)
    _require_several(parallel, gpus)
    if not 0 < mfu <= 1:
        raise InputError(f"mfu is {mfu}; it is a share of the peak rate, above 0 and at most 1")
    recipe = config.recipe()
    return Question(
        *(recipe.model, gpu, gpus, precision, parallel, seq_len or recipe.model.n_ctx, recipe.batch_tokens),
        *(tokens or TOKENS_A_PARAMETER * n_params(recipe.model), micro_batch, mfu, recipe.optim.name),
    )


def count_of(text: str) -> int:
    """Return a number of tokens such as 10000000000, 1e10, 10B or 300M.

    >>> count_of("1.5B")
    1500000000

    Raises:
        InputError: It is no whole number, or more than `MOST_TOKENS`.
    """
    units = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    unit = units.get(text[-1:].upper())
    with contextlib.suppress(InvalidOperation):
        number = Decimal(text) if unit is None else unit * Decimal(text[:-1])
        if abs(number) <= MOST_TOKENS and number == int(number):
            return int(number)
    raise InputError(f'tokens is "{text}"; give a whole number such as 10000000000, 1e10, 10B or 300M, at most 1e18')


def _known(gpu: str) -> str:
    """Return a GPU's name as the tables have it, whichever way its letters are written."""
    name = next((known for known in (*GPU_MEMORY, "cpu") if known.lower() == gpu.lower()), gpu)
    one_of("GPU", name, (*GPU_MEMORY, "cpu"))
    return name


def _require_several(parallel: str, gpus: int) -> None:
    if parallel != "auto" and gpus == 1:
        raise InputError(
            f"parallel {parallel} is for several GPUs, and gpus is 1; give more by --gpus, or leave out --parallel"
        )


def _require_counts(**counts: int | None) -> None:
    """Raise `InputError` where a number that was given is below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def ask_run(run: Run, gpu: str | None, gpus: int | None, parallel: str, tokens: int | None) -> Question:
    """Return the question how a run would go on with more tokens or GPUs, at the speed that it had.

    What is not given is the run's: its GPU, how many, and how the model was spread over several. Where its micro-batch
    does not divide what each GPU gets, the next lower one that does takes its place.

    Raises:
        InputError: A name is unknown, a number out of range, the run was measured on another machine, or it has too few
            rows to tell its speed.
    """
    _require_counts(gpus=gpus, tokens=tokens)
    config, devices = saved_config(run), run_devices(run)
    gpus = devices if gpus is None else gpus
    _require_several(parallel, gpus)
    if parallel == "auto" and min(gpus, devices) > 1:
        parallel = config.parallel
    gpu = _measured_on(run, config.device, gpu)
    rows = [row for row in run.metrics()[1:] if row["tokens_per_s"]]  # the first holds the warm-up
    if not rows:
        raise InputError(f"{run.path} has fewer than two rows in metrics.csv: too few to tell its speed; train longer")
    slower = RECOMPUTED if config.activation_checkpointing else 1.0
    speed, mfu = (slower * statistics.median(row[name] or 0.0 for row in rows) for name in ("tokens_per_s", "mfu"))
    sequences = config.batch_tokens // (config.seq_len * gpus)
    return Question(
        *(config.model, gpu, gpus, config.precision, parallel, config.seq_len, config.batch_tokens),
        tokens or TOKENS_A_PARAMETER * n_params(config.model),
        *(largest_divisor(sequences, config.micro_batch), mfu, config.optim.name, speed / devices),
    )


def _measured_on(run: Run, device: str, asked: str | None) -> str:
    """Return the GPU that a run was measured on, or ``cpu``; the one asked for where it is in no table."""
    there = str(run.environment["gpus"]) if device.startswith("cuda") else "cpu"
    known = "cpu" if there == "cpu" else data_sheet(there)
    if asked is None and known is None:
        raise InputError(f"{run.path} was measured on {there}, which is in no table; name one like it by --gpu")
    gpu = known if asked is None else _known(asked)
    assert gpu is not None
    if known not in (None, gpu):
        raise InputError(f"{run.path} was measured on {known}, which tells nothing of {gpu}; leave out --gpu or --from")
    return gpu


def run_devices(run: Run) -> int:
    """Return how many processes a run was trained by."""
    checkpoints = checkpoint.list_checkpoints(run)
    return checkpoints[-1].state.get("world", 1) if checkpoints else 1


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most ``most``; 1 of 0."""
    return max((n for n in range(1, min(number, most) + 1) if number % n == 0), default=1)


RESERVED = 0.92
"""Share of a GPU's memory that tensors can have: the rest is the driver's, the libraries' and the allocator's holes."""


@dataclass(frozen=True)
class Way:
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

    question: Question
    n_params: int
    memory_of_a_gpu: int
    parallel: str
    steps: int
    flops: float
    dataset_bytes: int
    checkpoint_bytes: int
    plain: Way
    checkpointed: Way

    def as_json(self) -> dict[str, Any]:
        """Return every figure as plain values: bytes, seconds, operations."""
        return dataclasses.asdict(self)


def forecast(question: Question) -> Forecast:
    """Work out what a run takes.

    Raises:
        InputError: The batch does not divide by the GPUs, or the micro-batch does not divide what each gets.
    """
    room = int(GPU_MEMORY[question.gpu] * RESERVED) if question.gpu != "cpu" else _free_memory()
    parallel = _parallel(question)
    sequences, rest = divmod(question.batch_tokens, question.T * question.gpus)
    if rest or not sequences:
        near = [k * question.T * question.gpus for k in (sequences, sequences + 1) if k]
        raise InputError(
            f"batch_tokens {question.batch_tokens} is not a multiple of {question.gpus} GPUs x seq_len {question.T}; "
            f"nearest that fit: {' or '.join(map(str, near))}"
        )
    shapes = parameter_shapes(question.model)
    total = sum(size.numel() for size in shapes.values())
    matrices = sum(size.numel() for name, size in shapes.items() if name.startswith("h.") and len(size) == 2)
    rate = _rate(question)  # once: a CPU's is measured
    saved = 3 * total - (matrices if question.optimiser == "muon" else 0)
    return Forecast(
        question,
        n_params(question.model),
        room,
        parallel,
        math.ceil(question.tokens / question.batch_tokens),
        flops_per_token(question.model, question.T) * question.tokens,
        question.tokens * (2 if question.model.vocab_size <= 65_536 else 4),
        4 * saved,
        *(_way(question, parallel, room, sequences, rate, recompute) for recompute in (False, True)),
    )


def _way(question: Question, parallel: str, room: int, sequences: int, rate: float, recompute: bool) -> Way:
    shape = _shape(question, parallel, recompute)
    largest = largest_micro_batch(shape, room)
    micro_batch = question.micro_batch or largest_divisor(sequences, max(largest, 1))
    if sequences % micro_batch:
        fits = [n for n in range(1, sequences + 1) if sequences % n == 0]
        near = sorted(fits, key=lambda n: abs(n - micro_batch))[:2]
        raise InputError(
            f"micro_batch {micro_batch} does not divide the {sequences} sequences that a GPU has in a step; "
            f"nearest that do: {' or '.join(map(str, sorted(near)))}"
        )
    micro_steps = sequences // micro_batch
    memory = estimate(dataclasses.replace(shape, B=micro_batch, micro_steps=micro_steps))
    slower = RECOMPUTED if recompute else 1.0
    seconds = slower * question.tokens / rate
    return Way(
        *(memory, memory.peak <= room, largest, micro_batch, micro_steps),
        *(question.mfu / slower, slower * question.batch_tokens / rate, rate / slower),
        *(seconds / 86_400, question.gpus * seconds / 3_600),
    )


def _rate(question: Question) -> float:
    """Return the tokens a second of all GPUs together, without activation checkpointing."""
    if question.measured is not None:
        return question.measured * question.gpus
    if question.gpu == "cpu":
        peak = peak_flops(torch.device("cpu"), question.precision)[0]
    else:
        peak = PEAK_FLOPS[question.gpu][question.precision]
    return question.gpus * peak * question.mfu / flops_per_token(question.model, question.T)


def _parallel(question: Question) -> str:
    """Return how the model is spread, by the rule that training goes by."""
    if question.gpus == 1:
        return "single"
    if question.parallel != "auto":
        return question.parallel
    return "ddp" if question.gpu == "cpu" else mode_by_memory(question.model, GPU_MEMORY[question.gpu])[0]


def _shape(question: Question, parallel: str, recompute: bool) -> Shape:
    return Shape(
        *(question.model, question.T, 1, question.precision, "cpu" if question.gpu == "cpu" else "cuda", recompute),
        micro_steps=2,
        optimiser=question.optimiser,
        shards=question.gpus if parallel == "fsdp" else 1,
        buckets=parallel == "ddp",
    )


def _free_memory() -> int:
    return runtime.available_memory(torch.device("cpu"))
