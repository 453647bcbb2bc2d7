"""What a run will take, worked out before a machine is rented: memory of a rank, operations, time, space on disk.

    operations     flops_per_token(model, T) * tokens          6 N + 12 L C T a token (Chowdhery et al. 2022, app. B)
    step time      operations of a step / (GPUs * peak rate * MFU); the backward pass's second forward pass under
                   activation checkpointing is not useful work, so the same machine reaches 3/4 of the MFU
    memory         training/memory.py
    tokens         20 for each parameter where none are given (Hoffmann et al. 2022, section 3)
    data set       2 bytes a token, 4 where the vocabulary is over 65,536 (data/shards.py)
    checkpoint     weights and the optimiser's state in fp32

With a run to go by, its measured speed takes the place of peak rate and MFU; more GPUs are taken to be as fast each.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from gpt2lab import runtime
from gpt2lab.errors import InputError, one_of
from gpt2lab.model import GPTConfig, flops_per_token, peak_flops
from gpt2lab.model.flops import PEAK_FLOPS
from gpt2lab.runs import Run
from gpt2lab.training import RECIPES, TrainConfig, checkpoint, saved_config
from gpt2lab.training.memory import Memory, Shape, estimate, largest_micro_batch, parameters

GB = 10**9
GPU_MEMORY: dict[str, int] = {
    # Vendor's data sheets; of the A100 the larger. What the driver and the libraries take is in RESERVED.
    "GB200": 186 * GB, "B200": 180 * GB, "H200": 141 * GB, "H100": 80 * GB, "H100 PCIe": 80 * GB, "H100 NVL": 94 * GB,
    "A100": 80 * GB, "A10G": 24 * GB, "A40": 48 * GB, "L40S": 48 * GB, "L4": 24 * GB, "RTX 4090": 24 * GB,
    "RTX 3090": 24 * GB, "V100": 32 * GB, "T4": 16 * GB,
}  # fmt: skip
RESERVED = 0.92
"""Share of a GPU's memory that tensors can have: the rest is the driver's, the libraries' and the allocator's holes."""
TOKENS_A_PARAMETER = 20
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
    optimiser: str = "adamw"
    measured: float | None = None
    """Tokens a second of one GPU in a run that was measured."""


@dataclass(frozen=True)
class Way:
    """The run with, or without, activation checkpointing."""

    memory: Memory
    fits: bool
    largest_micro_batch: int
    micro_batch: int
    micro_steps: int
    step_seconds: float
    tokens_per_s: float
    days: float


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


def ask(
    preset: str, gpu: str, gpus: int, precision: str, parallel: str, seq_len: int | None, batch_tokens: int | None,
    tokens: int | None, micro_batch: int | None, mfu: float,
) -> Question:  # fmt: skip
    """Return the question that options ask.

    Raises:
        InputError: A name is unknown, a number out of range, or the machine cannot do the precision.
    """
    one_of("GPU", gpu, (*GPU_MEMORY, "cpu"))
    config = TrainConfig(preset=preset, seq_len=seq_len, batch_tokens=batch_tokens)  # checks these
    if gpu != "cpu" and precision not in PEAK_FLOPS[gpu]:
        raise InputError(f"{gpu} has no peak rate for {precision}; choose from {', '.join(PEAK_FLOPS[gpu])}")
    _require_counts(gpus=gpus, tokens=tokens, micro_batch=micro_batch)
    if not 0 < mfu <= 1:
        raise InputError(f"mfu is {mfu}; it is a share of the peak rate, above 0 and at most 1")
    size = _n_params(config.model)
    asked = RECIPES[preset].batch_tokens if batch_tokens is None else batch_tokens
    return Question(
        *(config.model, gpu, gpus, precision, parallel, config.window, asked),
        *(tokens or TOKENS_A_PARAMETER * size, micro_batch, mfu, config.optim.name),
    )


def _require_counts(**counts: int | None) -> None:
    """Raise `InputError` where a number that was given is below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def ask_run(run: Run, gpu: str, gpus: int, tokens: int | None) -> Question:
    """Return the question how a run would go on with more tokens or GPUs, at the speed that it had.

    Raises:
        InputError: A name is unknown, a number out of range, or the run has too few rows to tell its speed.
    """
    one_of("GPU", gpu, (*GPU_MEMORY, "cpu"))
    _require_counts(gpus=gpus, tokens=tokens)
    config = saved_config(run)
    rows = run.metrics()[1:]  # the first holds the warm-up
    if not rows:
        raise InputError(f"{run.path} has fewer than two rows in metrics.csv: too few to tell its speed; train longer")
    assert isinstance(config.micro_batch, int) and config.batch_tokens is not None  # resolved
    speed = statistics.median(row["tokens_per_s"] or 0.0 for row in rows)
    return Question(
        *(config.model, gpu, gpus, config.precision, "auto", config.window, config.batch_tokens),
        tokens or TOKENS_A_PARAMETER * _n_params(config.model),
        config.micro_batch,
        *(statistics.median(row["mfu"] or 0.0 for row in rows), config.optim.name, speed / run_devices(run)),
    )


def run_devices(run: Run) -> int:
    """Return how many processes a run was trained by."""
    checkpoints = checkpoint.complete(run)
    return checkpoints[-1].state.get("world", 1) if checkpoints else 1


def forecast(question: Question) -> Forecast:
    """Work out what a run takes.

    Raises:
        InputError: The batch does not divide by the GPUs, or the micro-batch does not divide what each gets.
    """
    room = int(GPU_MEMORY[question.gpu] * RESERVED) if question.gpu != "cpu" else _free_memory()
    parallel = _parallel(question, room)
    sequences, rest = divmod(question.batch_tokens, question.T * question.gpus)
    if rest or not sequences:
        near = [k * question.T * question.gpus for k in (sequences, sequences + 1) if k]
        raise InputError(
            f"batch_tokens {question.batch_tokens} is not a multiple of {question.gpus} GPUs x seq_len {question.T}; "
            f"nearest that fit: {' or '.join(map(str, near))}"
        )
    shapes = parameters(question.model)
    total = sum(size.numel() for size in shapes.values())
    matrices = sum(size.numel() for name, size in shapes.items() if name.startswith("h.") and len(size) == 2)
    saved = 3 * total - (matrices if question.optimiser == "muon" else 0)
    return Forecast(
        question,
        _n_params(question.model),
        room,
        parallel,
        math.ceil(question.tokens / question.batch_tokens),
        flops_per_token(question.model, question.T) * question.tokens,
        question.tokens * (2 if question.model.vocab_size <= 65_536 else 4),
        4 * saved,
        *(_way(question, parallel, room, sequences, recompute) for recompute in (False, True)),
    )


def _way(question: Question, parallel: str, room: int, sequences: int, recompute: bool) -> Way:
    shape = _shape(question, parallel, recompute)
    largest = largest_micro_batch(shape, room)
    micro_batch = question.micro_batch or max(
        n for n in range(1, min(max(largest, 1), sequences) + 1) if sequences % n == 0
    )
    if sequences % micro_batch:
        fits = [n for n in range(1, sequences + 1) if sequences % n == 0]
        near = sorted(fits, key=lambda n: abs(n - micro_batch))[:2]
        raise InputError(
            f"micro_batch {micro_batch} does not divide the {sequences} sequences that a GPU has in a step; "
            f"nearest that do: {' or '.join(map(str, sorted(near)))}"
        )
    micro_steps = sequences // micro_batch
    memory = estimate(dataclasses.replace(shape, B=micro_batch, micro_steps=micro_steps))
    rate = _rate(question) / (RECOMPUTED if recompute else 1.0)
    return Way(
        *(memory, memory.peak <= room, largest, micro_batch, micro_steps),
        *(question.batch_tokens / rate, rate, question.tokens / rate / 86_400),
    )


def _rate(question: Question) -> float:
    """Return the tokens a second of all GPUs together."""
    if question.measured is not None:
        return question.measured * question.gpus
    if question.gpu == "cpu":
        peak = peak_flops(torch.device("cpu"), question.precision)[0]
    else:
        peak = PEAK_FLOPS[question.gpu][question.precision]
    return question.gpus * peak * question.mfu / flops_per_token(question.model, question.T)


def _parallel(question: Question, room: int) -> str:
    """Return how the model is spread: FSDP where one GPU does not hold it with a sequence, else DDP."""
    if question.parallel != "auto" or question.gpus == 1:
        return "single" if question.gpus == 1 else question.parallel
    return "ddp" if estimate(_shape(question, "ddp", False)).peak <= room else "fsdp"


def _shape(question: Question, parallel: str, recompute: bool) -> Shape:
    return Shape(
        *(question.model, question.T, 1, question.precision, "cpu" if question.gpu == "cpu" else "cuda", recompute),
        micro_steps=2,
        optimiser=question.optimiser,
        shards=question.gpus if parallel == "fsdp" else 1,
        buckets=parallel == "ddp",
    )


def _n_params(model: GPTConfig) -> int:
    padding = (model.padded_vocab - model.vocab_size) * model.n_embd
    return sum(size.numel() for size in parameters(model).values()) - padding


def _free_memory() -> int:
    return runtime.available_memory(torch.device("cpu"))
