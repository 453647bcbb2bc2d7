"""Progress and output: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING

import rich.console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from gpt2lab.training.loop import StepReport


class Console(rich.console.Console):
    """rich's console, except that a closed pipe is left to the command line, as with any other output."""

    def on_broken_pipe(self) -> None:
        """Raise the error, which rich would turn into its own exit code."""
        raise BrokenPipeError


SKIPPED = 20
"""Skipped files that are printed."""
console = Console(highlight=False, soft_wrap=True)
log = logging.getLogger("gpt2lab")


def log_to_console() -> None:
    """Print what is logged: above the bar in a terminal, as plain lines elsewhere."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
        handler.addFilter(lambda record: not getattr(record, "in_bar", False))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)


def print_skipped(skipped: Mapping[str, str], where: str = "") -> None:
    """Print the first 20 files that were skipped, and why; ``where`` says where the rest are listed."""
    for name, why in islice(skipped.items(), SKIPPED):
        print(f"skipped {name}: {why}")
    if (more := len(skipped) - SKIPPED) > 0:
        print(f"skipped {more:,} more files{where}")


@contextmanager
def _progress(*columns: ProgressColumn, refresh_per_second: float = 10) -> Iterator[Progress]:
    """Yield a display of tasks that is drawn in a terminal only."""
    progress = Progress(*columns, console=console, transient=True, refresh_per_second=refresh_per_second)
    with progress if console.is_terminal else nullcontext():
        yield progress


@contextmanager
def training_bar() -> Iterator[Callable[[StepReport], None]]:
    """Yield an ``on_step`` that draws a bar with loss, tokens per second and the time left."""
    figures = TextColumn("{task.fields[figures]}")
    columns = (TextColumn("[bold]training"), BarColumn(), MofNCompleteColumn(), figures, TimeRemainingColumn())
    with _progress(*columns, refresh_per_second=4) as progress:

        def on_step(report: StepReport) -> None:
            if not progress.task_ids:
                progress.add_task("", total=report.steps, completed=report.step - 1, figures="")
            val = "" if report.val_loss is None else f"  val {report.val_loss:.3f}"
            figures = f"loss {report.loss:.3f}{val}  {report.tokens_per_s:,.0f} tokens/s"
            progress.update(progress.task_ids[0], completed=report.step, figures=figures)

        yield on_step


@contextmanager
def counting(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the progress of a job of unknown length, as a line that changes in place."""
    with _progress(SpinnerColumn(), TextColumn("{task.description}")) as progress:
        task = progress.add_task(title)
        yield lambda text: progress.update(task, description=f"{title}  {text}")


@contextmanager
def preparing_bar() -> Iterator[Callable[[int, int, int, int], None]]:
    """Yield a function ``(documents, bytes, tokens, bytes expected)`` that draws a bar with MB/s and the time left."""
    columns = (TextColumn("[bold]preparing"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task("", total=None)
        first: list[tuple[int, float]] = []

        def show(documents: int, size: int, tokens: int, expected: int) -> None:
            if not first:
                first.append((size, time.monotonic()))
            seconds = time.monotonic() - first[0][1]
            rate = f"  {(size - first[0][0]) / seconds / 1e6:.1f} MB/s" if seconds > 0 else ""
            figures = f"{documents:,} documents  {tokens:,} tokens{rate}"
            progress.update(task, completed=size, total=expected, description=figures)

        yield show


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function ``(done, total)`` that draws a bar."""
    with _progress(TextColumn(f"[bold]{title}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _MergesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} merges/s" if task.speed else "")


@contextmanager
def merging_bar() -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """Yield what shows a tokenizer's training: ``(characters read)``, then ``(merges, merges wanted)`` as a bar."""
    title = TextColumn("[bold]{task.description}")
    with _progress(title, BarColumn(), MofNCompleteColumn(), _MergesPerSecond(), TimeRemainingColumn()) as progress:
        task = progress.add_task("reading", total=None)
        yield (
            lambda characters: progress.update(task, description=f"read {characters / 1e6:,.1f} M characters"),
            lambda done, total: progress.update(task, description="merging", completed=done, total=total),
        )


_STRIPES = ("black on bright_cyan", "black on bright_yellow")


def print_tokens(tokens: Sequence[str]) -> None:
    """Print the tokens of a text: in alternating colors in a terminal, elsewhere separated by ``|``."""
    text = Text()
    for index, token in enumerate(tokens):
        text.append(token, _STRIPES[index % 2])
        if index + 1 < len(tokens):
            begins_a_line = token.endswith(r"\n")
            text.append("\n" if begins_a_line else "" if console.is_terminal else "|")
    console.print(text)
