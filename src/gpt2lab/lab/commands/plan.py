"""What ``gpt2lab plan`` prints."""

from __future__ import annotations

import json

from rich.table import Table

from gpt2lab.lab.console import console
from gpt2lab.lab.forecast import Forecast, Way

UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")


def print_forecast(found: Forecast, as_json: bool) -> None:
    """Print a forecast as a table, or as JSON."""
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    question = found.question
    source = "by measured speed" if question.measured else f"at an assumed MFU of {question.mfu:.0%}"
    console.print(
        f"{found.n_params:,} parameters on {question.gpus} x {question.gpu} ({found.parallel}, {question.precision}), "
        f"{question.tokens:,} tokens in sequences of {question.T:,}, {source}"
    )
    table = Table(show_edge=False)
    for title in ("", "without activation\ncheckpointing", "with activation\ncheckpointing"):
        table.add_column(title, justify="left" if not title else "right")
    for name, cells in _rows(found):
        table.add_row(name, *cells)
    console.print(table)
    console.print(
        f"{found.steps:,} steps of {question.batch_tokens:,} tokens, {found.flops:.3g} operations; on disk, a data set "
        f"of these tokens {in_bytes(found.dataset_bytes)}, each checkpoint {in_bytes(found.checkpoint_bytes)}"
    )


def _rows(found: Forecast) -> list[tuple[str, list[str]]]:
    """Return the table's rows: a name, then a cell for each way."""
    ways = (found.plain, found.checkpointed)

    def row(name: str, cell: object) -> tuple[str, list[str]]:
        return name, [cell(way) for way in ways]  # type: ignore[operator]

    unit = "GPU"
    if found.question.gpu == "cpu":  # of a run it is known how many processes it had, not on how many machines
        unit = "machine" if found.question.measured is None else "process"
    return [
        row(f"weights, on each {unit}", lambda way: in_bytes(way.memory.weights)),
        row("gradients", lambda way: in_bytes(way.memory.gradients)),
        row("optimiser's state", lambda way: in_bytes(way.memory.optimiser)),
        row("activations of a micro-batch", lambda way: in_bytes(way.memory.activations)),
        row(f"peak, of {in_bytes(found.memory_of_a_gpu)} that can be used", _peak),
        row("largest micro-batch that fits", lambda way: str(way.largest_micro_batch)),
        row("micro-batch x micro-steps", lambda way: f"{way.micro_batch} x {way.micro_steps}"),
        row("MFU", lambda way: f"{way.mfu:.1%}"),
        row("a step", _step),
        row("tokens a second", lambda way: f"{way.tokens_per_s:,.0f}"),
        row("the whole run", _duration),
        row(f"{unit}-hours", lambda way: f"{way.gpu_hours:,.1f}"),
    ]


def _peak(way: Way) -> str:
    return in_bytes(way.memory.peak) + ("" if way.fits else " (does not fit)")


def _step(way: Way) -> str:
    return f"{way.step_seconds:.3g} s" if way.step_seconds < 100 else f"{way.step_seconds:,.0f} s"


def _duration(way: Way) -> str:
    return f"{way.days:.2f} days" if way.days >= 1 else f"{24 * way.days:.2f} hours"


def in_bytes(number: float) -> str:
    """Return a number of bytes with its unit, in powers of 1,000 as data sheets have them.

    >>> in_bytes(1_497_600_000)
    '1.50 GB'
    """
    power = 0
    while number >= 999.5 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {UNITS[power]}" if number >= 100 or not power else f"{number:.2f} {UNITS[power]}"
