"""What a run will take, worked out before a machine is rented: memory of a rank, operations, time, space on disk.

    operations     flops_per_token(model, T) * tokens          6 N + 12 L C T a token (Chowdhery et al. 2022, app. B)
    step time      operations of a step / (GPUs * peak rate * MFU); the backward pass's second forward pass under
                   activation checkpointing is not useful work, so the same machine reaches 3/4 of the MFU;
                   what ranks wait for one another lowers the MFU, and is not worked out
    memory         training/memory.py
    tokens         20 for each parameter where none are given (Hoffmann et al. 2022, section 3)
    data set       2 bytes a token, 4 where the vocabulary is over 65,536 (data/shards.py)
    checkpoint     weights and the optimiser's state in fp32

With a run to go by, its measured speed takes the place of peak rate and MFU; more GPUs are taken to be as fast each,
and a run with activation checkpointing to have been 3/4 as fast as without.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.lab.plan_question import GPU_MEMORY, RECOMPUTED, Question, largest_divisor, n_params
from gpt2lab.model import flops_per_token, peak_flops
from gpt2lab.model.flops import PEAK_FLOPS
from gpt2lab.training.memory import Memory, Shape, estimate, largest_micro_batch, parameters
from gpt2lab.training.parallel import by_memory

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
    shapes = parameters(question.model)
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
    return "ddp" if question.gpu == "cpu" else by_memory(question.model, GPU_MEMORY[question.gpu])[0]


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
