"""``gpt2lab plan``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table
from tyro.conf import arg

from gpt2lab import formatting
from gpt2lab.cli.arguments import Command
from gpt2lab.console import console
from gpt2lab.errors import InputError
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from gpt2lab.lab.forecast import Forecast, Scenario, Workload


@dataclass(frozen=True)
class Plan(Command):
    """Estimate what a training run takes: memory, time, floating-point operations, disk."""

    preset: str | None = None
    """Model and recipe: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl; by default gpt2."""
    gpu: str | None = None
    """Name of a GPU such as H100, or cpu for this machine; by default H100, or the run's with --from."""
    gpus: int | None = None
    """Number of GPUs, or with --gpu cpu of machines (with --from: of processes); by default 1, or as the run had."""
    tokens: Annotated[str | None, arg(metavar="N")] = None
    """Training tokens, such as 10B or 300M; by default 20 per parameter."""
    seq_len: int | None = None
    """Sequence length in tokens; by default the model's context."""
    batch_tokens: int | None = None
    """Tokens per optimizer step; by default the recipe's."""
    micro_batch: int | None = None
    """Sequences per forward pass of one GPU; by default the largest that fits and divides the batch."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp replicates the model, fsdp shards it; auto is what training would choose, or what the run of --from had."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None = None
    """Precision of the matrix products; auto, the default, is what training would choose."""
    mfu: float | None = None
    """Model FLOPs utilization without activation checkpointing; 0.4 is a guess, --from measures it in a short run."""
    from_: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    """Take architecture, batch and measured speed from a short run."""
    json: bool = False
    """Print every figure as JSON, in bytes and seconds."""

    def run(self) -> None:
        """Print the forecast as a table, or as JSON."""
        from gpt2lab.lab.forecast import forecast

        found = forecast(self._workload())
        if self.json:
            print(json.dumps(dataclasses.asdict(found), indent=2))
        else:
            _print(found)

    def _workload(self) -> Workload:
        from gpt2lab.lab.forecast import Workload, parse_tokens

        tokens = None if self.tokens is None else parse_tokens(self.tokens)
        names = ("preset", "seq_len", "batch_tokens", "micro_batch", "precision", "mfu")
        recipe = {name: value for name in names if (value := getattr(self, name)) is not None}
        machine = {name: value for name in ("gpu", "gpus") if (value := getattr(self, name)) is not None}
        if self.from_ is None:
            return Workload.from_preset(parallel=self.parallel, tokens=tokens, **machine, **recipe)
        if recipe:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in recipe)
            raise InputError(f"--from takes {given} from the run; leave out one of them")
        return Workload.from_run(Run.open(self.from_), parallel=self.parallel, tokens=tokens, **machine)


def _print(found: Forecast) -> None:
    workload = found.workload
    source = "at the measured speed" if workload.measured else f"at an assumed MFU of {workload.mfu:.0%}"
    console.print(
        f"{found.n_params:,} parameters on {workload.gpus} x {workload.gpu} ({found.parallel}, {workload.precision}), "
        f"{workload.tokens:,} tokens in sequences of {workload.T:,}, {source}"
    )
    table = Table(show_edge=False)
    for title in ("", "without activation\ncheckpointing", "with activation\ncheckpointing"):
        table.add_column(title, justify="left" if not title else "right")
    for name, cell in _rows(found).items():
        table.add_row(name, *map(cell, (found.plain, found.checkpointed)))
    console.print(table)
    console.print(
        f"{found.steps:,} steps of {workload.batch_tokens:,} tokens, {found.flops:.3g} FLOPs; on disk: the tokens "
        f"{formatting.size(found.dataset_bytes)}, each checkpoint {formatting.size(found.checkpoint_bytes)}"
    )


def _rows(found: Forecast) -> dict[str, Callable[[Scenario], str]]:
    """Return the table's rows: the text of a cell for either way, by the row's name."""
    unit = "GPU"
    if found.workload.gpu == "cpu":  # a run tells how many processes it had, but not on how many machines
        unit = "machine" if found.workload.measured is None else "process"
    return {
        f"weights, per {unit}": lambda way: formatting.size(way.memory.weights),
        "gradients": lambda way: formatting.size(way.memory.gradients),
        "optimizer state": lambda way: formatting.size(way.memory.optimizer),
        "activations of a micro-batch": lambda way: formatting.size(way.memory.activations),
        f"peak, of {formatting.size(found.usable_memory)} available": lambda way: (
            formatting.size(way.memory.peak) + ("" if way.fits else " (does not fit)")
        ),
        "largest micro-batch that fits": lambda way: str(way.largest_micro_batch),
        "micro-batch x micro-steps": lambda way: f"{way.micro_batch} x {way.micro_steps}",
        "MFU": lambda way: f"{way.mfu:.1%}",
        "time per step": lambda way: (
            f"{way.step_seconds:.3g} s" if way.step_seconds < 100 else f"{way.step_seconds:,.0f} s"
        ),
        "tokens per second": lambda way: f"{way.tokens_per_s:,.0f}",
        "total time": lambda way: f"{way.days:.2f} days" if way.days >= 1 else f"{24 * way.days:.2f} hours",
        f"{unit}-hours": lambda way: f"{way.gpu_hours:,.1f}",
    }
