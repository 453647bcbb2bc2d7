"""Colours and lines that every plot shares: told apart by the colour-blind, and in grey by their dashes."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import PositionLosses
from gpt2lab.evaluation.text_metrics import METRICS
from gpt2lab.evaluation.text_quality import FILE, Row, TextQuality, completions, text_table
from gpt2lab.files import read_json, write_atomically, write_json
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TRAIN, VAL = "#0072b2", "#d55e00"
LINES = (TRAIN, VAL, "#009e73", "#aa4499", "#e69f00", "#56b4e9")
"""After Okabe & Ito 2008, in lightness too."""
INK, RULE = "#444444", "#cccccc"
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


POSITIONS = "positions.json"
SMOOTHED = 40
"""Points that a long curve is drawn with: means over stretches that grow with the position, as its axis does."""


@dataclass(frozen=True)
class PositionCurve:
    """A run's loss by position, as it is drawn."""

    step: int
    split: str
    protocol: str
    points: tuple[tuple[float, float], ...]
    """Tokens before a token in its window, and the loss on it; see `stretches`."""


def saved_positions(run: Run) -> PositionCurve | None:
    """Return what `save_positions` kept of the newest step; None where there is none.

    Raises:
        InputError: The file is damaged.
    """
    path = run.latest_evaluation(POSITIONS)
    if path is None:
        return None
    values = read_json(path)
    try:
        losses = [math.nan if loss is None else float(loss) for loss in values["losses"]]
        points = tuple(zip(*stretches(losses, values["tokens"]), strict=True))
        return PositionCurve(int(values["step"]), str(values["split"]), str(values["protocol"]), points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a curve of losses by position; measure the run again") from error


def save_positions(run: Run, step: int, split: str, curve: PositionLosses) -> tuple[Path, Path]:
    """Write ``positions.json`` and ``positions.png`` for a step's weights; return their paths."""
    folder = run.evaluations(step)
    losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
    kept = {"step": step, "split": split, "protocol": curve.protocol, "losses": losses, "tokens": curve.tokens}
    write_json(folder / POSITIONS, kept)
    points = list(zip(*stretches(curve.losses, curve.tokens), strict=True))
    write_png(folder / "positions.png", draw_positions(points, f"{run.path.name}, step {step:,}, {split}"))
    return folder / POSITIONS, folder / "positions.png"


def draw_positions(points: Sequence[tuple[float, float]], title: str = "") -> Figure:
    """Draw the loss over the position, both axes as a reader compares them: positions in octaves, losses linear."""
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    figure = Figure(figsize=(5.4, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color=TRAIN, lw=1.6, marker="o", ms=3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens before it in the window", color=INK)
    axes.set_ylabel("loss, nats per token", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    dress(axes)
    return figure


def dress(axes: Axes) -> None:
    """Give a plot the frame that all of them have: a grid, two spines, no ticks."""
    axes.grid(color=RULE, lw=0.6)
    axes.tick_params(colors=INK, length=0, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def stretches(losses: Sequence[float], tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the mean position and mean loss of stretches between evenly spaced powers, weighted by tokens."""
    last = len(losses)
    edges = sorted({round(last ** (n / SMOOTHED)) for n in range(SMOOTHED)} | {last + 1})
    points: list[tuple[float, float]] = []
    for begin, end in pairwise(edges):
        places = [t for t in range(begin, end) if tokens[t - 1]]
        if total := sum(tokens[t - 1] for t in places):
            loss = sum(losses[t - 1] * tokens[t - 1] for t in places) / total
            points.append((sum(places) / len(places), loss))
    return [x for x, _ in points], [y for _, y in points]


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


LOOKS = {
    "greedy": (INK, "X", (8, 4)),
    "temperature": (LINES[0], "o", (-9, 8)),
    "top-k": (LINES[1], "s", (8, -12)),
    "nucleus": (LINES[2], "^", (7, -4)),
}
"""Colour (Okabe & Ito 2008) and mark of each family of strategies, and where its settings are written, in points."""


def save_text_quality(run: Run, step: int, split: str, quality: TextQuality) -> tuple[Path, ...]:
    """Write ``text.json``, ``text.png`` and ``text.md`` for a step's weights; return their paths."""
    folder = run.evaluations(step)
    title = f"{run.path.name}, step {step:,}"
    write_json(folder / FILE, {"step": step, "split": split, **dataclasses.asdict(quality)})
    write_png(folder / "text.png", draw_text_quality(quality, title))
    write_atomically(folder / "text.md", markdown(quality, title))
    return folder / FILE, folder / "text.png", folder / "text.md"


def markdown(quality: TextQuality, title: str) -> str:
    """Return what was found as a page that shows ``text.png`` beside it."""
    table = text_table(quality)
    rows = [("texts", *table.columns), ("---", *("---:" for _ in table.columns)), *table.rows]
    parts = [f"# Texts by strategy: {title}", "![Fluency against diversity](text.png)", CAPTION, *table.findings]
    parts += ["\n".join(f"| {' | '.join(row)} |" for row in rows), table.protocol, "## Beginnings, and how they end"]
    for completion in completions(quality):
        parts.append(f"**{_quotable(completion.prompt)}**")
        parts += [f"> *{name}:* {_quotable(ending)}" for name, ending in completion.endings]
    return "\n\n".join(parts) + "\n"


def _quotable(text: str) -> str:
    """Return a text on one line, with nothing in it that Markdown would take for a mark."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ¶ ".join(text.strip().splitlines()))


def table_of(quality: TextQuality, title: str) -> Table:
    """Return the figures as a table for the terminal: a row for each strategy, the held-out text first."""
    names = [name for name in METRICS if any(name in row.figures for row in quality.rows)]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("texts", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for row in quality.rows:
        table.add_row(row.name, *(_cell(row.figures.get(name)) for name in names))
    return table


CAPTION = (
    "Diversity of the texts (self-BLEU, upwards less alike) against how likely the model finds them, and, where a "
    "grammar judges them, against the share that it accepts. The star is held-out text: texts of lower perplexity are "
    "likelier than it, those below it more alike."
)


def can_be_drawn(quality: TextQuality) -> bool:
    """Return whether held-out text and some strategy's have the figures that the picture shows."""
    return len(quality.drawn) > 1 and quality.drawn[0].strategy is None


def draw_text_quality(quality: TextQuality, title: str = "") -> Figure:
    """Draw self-BLEU over perplexity, and over the share that is grammatical where that is known; see `CAPTION`.

    Each family of strategies is a line through its settings.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn
    from matplotlib.ticker import MaxNLocator, NullLocator

    rows = quality.drawn
    judged = all("grammatical" in row.figures for row in rows)
    figure = Figure(figsize=(8.2, 3.6) if judged else (5.4, 3.6), layout="constrained")
    left, *others = figure.subplots(1, 2 if judged else 1, sharey=True, squeeze=False)[0]
    _panel(left, rows, "perplexity", "perplexity of the texts under the model (logarithmic)")
    left.set_xscale("log")
    left.xaxis.set_major_locator(MaxNLocator(5))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter("{x:g}")
    for right in others:
        _panel(right, rows, "grammatical", "share of the texts that is grammatical")
    left.invert_yaxis()
    left.set_ylabel("self-BLEU: more diverse upwards", color=INK)
    left.set_title(title, loc="left", fontsize=10, color=INK)
    left.legend(frameon=False, loc="lower right", fontsize=8.5)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], figure: str, label: str) -> None:
    human, *written = rows
    x, y = human.figures[figure], human.figures["self_bleu"]
    axes.axvline(x, color="#999999", lw=0.8, ls="--")
    axes.axhline(y, color="#999999", lw=0.8, ls="--")
    axes.plot(x, y, "*", color="black", ms=14, ls="none", label=human.name, zorder=3)
    for family in LOOKS:
        _line(axes, [row for row in written if row.family == family], figure)
    axes.set_xlabel(label, color=INK)
    axes.margins(0.1, 0.08)
    dress(axes)


def _line(axes: Axes, rows: Sequence[Row], figure: str) -> None:
    if not rows:
        return
    family = rows[0].family
    colour, mark, beside = LOOKS[family]
    xs, ys = ([row.figures[name] for row in rows] for name in (figure, "self_bleu"))
    axes.plot(xs, ys, color=colour, marker=mark, ms=6.5, lw=1.1, label=family)
    for row, x, y in zip(rows, xs, ys, strict=True):
        setting = row.name.removeprefix(family).strip()
        axes.annotate(setting, (x, y), textcoords="offset points", xytext=beside, fontsize=8, color=colour)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
