"""Progress and output: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from gpt2lab.training.loop import StepReport


class Console(rich.console.Console):
    """rich's console, but a reader that has gone is for the command line to answer, as with any other output."""

    def on_broken_pipe(self) -> None:
        """Raise the error, which rich would turn into its own exit code."""
        raise BrokenPipeError


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


@contextmanager
def training_bar() -> Iterator[Callable[[StepReport], None]]:
    """Yield an ``on_step`` that draws a bar with loss, tokens a second and the time left."""
    if not console.is_terminal:
        yield lambda report: None
        return
    columns = (
        TextColumn("[bold]training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        bar: list[TaskID] = []

        def on_step(report: StepReport) -> None:
            if not bar:
                bar.append(progress.add_task("", total=report.steps, completed=report.step - 1, figures=""))
            val = "" if report.val_loss is None else f"  val {report.val_loss:.3f}"
            figures = f"loss {report.loss:.3f}{val}  {report.tokens_per_s:,.0f} tokens/s"
            progress.update(bar[0], completed=report.step, figures=figures)

        yield on_step


@contextmanager
def counting(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows how far a job of unknown length is, as a line that changes in place."""
    if not console.is_terminal:
        yield lambda text: None
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task(title)
        yield lambda text: progress.update(task, description=f"{title}  {text}")


@contextmanager
def preparing_bar() -> Iterator[Callable[[int, int, int, int], None]]:
    """Yield a function ``(documents, bytes, tokens, bytes expected)`` that draws a bar with MB/s and the time left."""
    if not console.is_terminal:
        yield lambda documents, size, tokens, expected: None
        return
    columns = (TextColumn("[bold]preparing"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
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
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn(f"[bold]{title}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _MergesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} merges/s" if task.speed else "")


@contextmanager
def merging_bar() -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """Yield what shows a tokenizer's training: ``(characters read)``, then ``(merges, merges wanted)`` as a bar."""
    if not console.is_terminal:
        yield lambda characters: None, lambda done, total: None
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _MergesPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
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
