"""A comparison as text: the table for a page, for Markdown and for a spreadsheet."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gpt2lab
from gpt2lab import formatting
from gpt2lab.compare.results import Cell, Comparison, Outcome, Validated, outcome_of, signed
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_atomically, write_json
from gpt2lab.report.page import GENERATOR, page
from gpt2lab.report.plots import DASHES, INK, LINES, dress, write_png
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLUMNS = ("metric", "unit", "arm", "runs", "mean", "half_width", "difference", "low", "high", "pairs", "verdict")
"""Columns of table.csv; differences are to the first arm."""


@dataclass(frozen=True)
class Entry:
    """A cell as it is read."""

    value: str
    spread: str
    """Half the 95 % interval of the mean."""
    difference: str
    """Difference to the reference; empty in the reference."""
    interval: str
    """Its 95 % interval; empty where there is none."""
    verdict: str


@dataclass(frozen=True)
class Line:
    """A metric as it is read."""

    title: str
    unit: str
    entries: tuple[Entry, ...]


def lines(comparison: Comparison) -> list[Line]:
    """Return the rows of a comparison as they are read."""
    return [
        Line(_title(row.metric.title, comparison), row.metric.unit, tuple(_entry(cell) for cell in row.cells))
        for row in comparison.rows
    ]


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    head = ["", *(f"{arm} (reference)" if arm == comparison.reference else arm for arm in comparison.arms)]
    rows = [head, ["---", *["---:"] * len(comparison.arms)]]
    for line in lines(comparison):
        name = f"{line.title}, {line.unit}" if line.unit else line.title
        rows.append([name, *("<br>".join(filter(None, _words(entry))) for entry in line.entries)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows)
    said = [*comparison.findings, *comparison.remarks]
    listed = "\n".join(f"- {text}" for text in said)
    return f"# Comparison\n\n{listed}\n\n{table}\n\n{NOTE}\n"


NOTE = (
    "Mean over the seeds ± half its 95 % interval; below it the mean of the differences to the reference, paired by "
    "seed, with their 95 % interval (Student's t) in brackets. Where that holds 0, no difference is shown."
)


def spreadsheet(comparison: Comparison) -> str:
    """Return the comparison as CSV, a line for each metric of each arm, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        for arm, cell in zip(comparison.arms, row.cells, strict=True):
            d = cell.difference
            found = (d.mean, d.low, d.high, d.pairs, d.verdict) if d else ("",) * 5
            writer.writerow((row.metric.name, row.metric.unit, arm, cell.runs, cell.mean, cell.half_width, *found))
    return text.getvalue()


def _title(title: str, comparison: Comparison) -> str:
    """Say which loss steps and seconds are counted to."""
    return title.replace("the loss", f"a validation loss of {formatting.number(comparison.target_loss or 0.0)}")


def _words(entry: Entry) -> list[str]:
    difference = (entry.difference, entry.interval, entry.verdict)
    return [f"{entry.value} {entry.spread}".strip(), " ".join(filter(None, difference))]


def _entry(cell: Cell) -> Entry:
    if cell.mean is None:
        return Entry(formatting.MISSING, "", "", "", "")
    spread = f"± {_half(cell.half_width)}" if cell.half_width else ""
    difference = cell.difference
    if difference is None:
        return Entry(_value(cell.mean), spread, "", "", "")
    interval = ""
    if difference.low is not None and difference.high is not None and difference.low != difference.high:
        interval = f"[{signed(difference.low)}, {signed(difference.high)}]"
    return Entry(_value(cell.mean), spread, signed(difference.mean), interval, difference.verdict)


def _value(x: float) -> str:
    if x < 0:
        return f"−{_value(-x)}"
    if 1e-4 <= x < 1e-2:
        return f"{x:.3g}"
    return (
        formatting.short(x) if x >= 1e5 else formatting.count(x) if x == round(x) or x >= 1e3 else formatting.number(x)
    )


def _half(x: float) -> str:
    return f"{x:.2g}" if 1e-4 <= x < 1e-2 else formatting.number(x, 2)


MARKERS = "osD^vP*X"
Points = list[tuple[float, float]]


def draw(comparison: Comparison) -> dict[str, Figure]:
    """Return the figures of a comparison by name; one that has nothing to show is left out.

    All of them show losses per token, so there is none where these do not compare.
    """
    if not comparison.per_token:
        return {}
    figures = {
        "curves": curves(comparison),
        "parameters": parameters(comparison),
        "recall": recall(comparison),
        "positions": positions(comparison),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def curves(comparison: Comparison) -> Figure | None:
    """Draw validation loss against steps, tokens and seconds: the mean over seeds, and the span between extremes."""
    if not any(o.curve for o in comparison.outcomes):
        return None
    figure = _figure(10.5, 3.7)
    panels: list[tuple[str, Callable[[Validated], float]]] = [
        ("step", lambda p: p.step),
        ("tokens trained on", lambda p: p.tokens),
        ("seconds of training", lambda p: p.seconds),
    ]
    for index, (label, x) in enumerate(panels):
        axes = figure.add_subplot(1, 3, index + 1)
        for number, arm in enumerate(comparison.arms):
            _band(axes, [[(x(p), p.loss) for p in o.curve] for o in comparison.of(arm)], number, arm)
        _dress(axes, label, "validation loss, nats per token" if index == 0 else "")
        axes.set_yscale("log")
        _plain_ticks(axes)
    _legend(figure, comparison)
    return figure


def parameters(comparison: Comparison) -> Figure | None:
    """Draw the best validation loss against the number of parameters, a mark for each run and a bar for each arm."""
    sized = [o for o in comparison.outcomes if o.usable and {"parameters", "val_loss"} <= o.figures.keys()]
    if len({o.figures["parameters"] for o in sized}) < 2:
        return None
    figure = _figure(6.2, 3.8)
    axes = figure.add_subplot()
    for number, arm in enumerate(comparison.arms):
        runs = [o for o in sized if o.arm == arm]
        xs, ys = [o.figures["parameters"] for o in runs], [o.figures["val_loss"] for o in runs]
        axes.plot(xs, ys, ls="none", marker=_marker(number), color=_hue(number), mfc="none", ms=7, label=arm)
    axes.set_xscale("log")
    _dress(axes, "parameters", "best validation loss, nats per token")
    _plain_ticks(axes)
    _legend(figure, comparison)
    return figure


def recall(comparison: Comparison) -> Figure | None:
    """Draw the loss on the second occurrence of random tokens against the distance of the two."""
    return _by_distance(comparison, "recall", "tokens since the first occurrence", "loss on the second, nats")


def positions(comparison: Comparison) -> Figure | None:
    """Draw the loss on a token against the number of tokens before it in its window."""
    return _by_distance(comparison, "positions", "tokens before it in the window", "loss, nats per token")


def _by_distance(comparison: Comparison, curve: Literal["recall", "positions"], x: str, y: str) -> Figure | None:
    """Draw a curve of the outcomes over a logarithmic axis of distances; None where no outcome has it."""
    if not any(getattr(o, curve) for o in comparison.outcomes):
        return None
    figure = _figure(6.2, 3.8)
    axes = figure.add_subplot()
    for number, arm in enumerate(comparison.arms):
        _band(axes, [list(getattr(o, curve)) for o in comparison.of(arm)], number, arm)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    _dress(axes, x, y)
    _legend(figure, comparison)
    return figure


def _band(axes: Axes, curves: Sequence[Points], number: int, arm: str) -> None:
    """Draw the mean of several curves, and the span between their lowest and highest."""
    curves = [points for points in curves if points]
    length = min(map(len, curves), default=0)
    if not length:
        return
    xs = [sum(points[i][0] for points in curves) / len(curves) for i in range(length)]
    ys = [[points[i][1] for points in curves] for i in range(length)]
    style = {"color": _hue(number), "ls": DASHES[number % len(DASHES)], "marker": _marker(number)}
    axes.plot(xs, [sum(y) / len(y) for y in ys], lw=1.5, ms=4, markevery=max(1, length // 8), label=arm, **style)
    axes.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=_hue(number), alpha=0.15, lw=0)


def _hue(number: int) -> str:
    return LINES[number % len(LINES)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    return Figure(figsize=(width, height), layout="constrained")


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    dress(axes)


def _plain_ticks(axes: Axes) -> None:
    """Write the few ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _legend(figure: Figure, comparison: Comparison) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 4 if len(figure.axes) > 1 else 2)
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, columns), frameon=False, fontsize=9)


FILE = "comparison.json"


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write every file of a comparison into its directory; earlier ones are replaced."""
    pictures = {}
    for name, figure in draw(comparison).items():
        write_png(out / f"{name}.png", figure)
        pictures[name] = (out / f"{name}.png").read_bytes()
    write_atomically(out / "table.md", markdown(comparison))
    write_atomically(out / "table.csv", spreadsheet(comparison))
    write_atomically(out / "comparison.html", _html(comparison, pictures))
    write_json(out / FILE, as_json(comparison, out))


def as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return everything that was found as plain values; the runs' paths are relative to ``out``."""
    runs = []
    for outcome in comparison.outcomes:
        values = dataclasses.asdict(outcome)
        values["path"] = Path(outcome.path).relative_to(out).as_posix()
        runs.append(values)
    rows = []
    for row in comparison.rows:
        cells = dict(zip(comparison.arms, map(_cell, row.cells), strict=True))
        rows.append({"metric": row.metric.name, "unit": row.metric.unit, "better": row.metric.better, "arms": cells})
    return {
        "version": gpt2lab.__version__,
        "reference": comparison.reference,
        "arms": list(comparison.arms),
        "seeds": list(comparison.seeds),
        "target_loss": comparison.target_loss,
        "findings": list(comparison.findings),
        "remarks": list(comparison.remarks),
        "metrics": rows,
        "runs": runs,
    }


def _cell(cell: Any) -> dict[str, Any]:
    values = dataclasses.asdict(cell)
    if cell.difference is not None:
        values["difference"]["verdict"] = cell.difference.verdict
    return values


TITLES = {
    "curves": "Validation loss against steps, tokens and seconds. Lines are means over the seeds, bands reach from the "
    "lowest to the highest.",
    "parameters": "Best validation loss against the number of parameters, a mark for each run.",
    "recall": "Associative recall: loss on the second occurrence of random tokens, by the distance to the first.",
    "positions": "Loss by the number of tokens before a token in its window.",
}
"""Captions of the pictures."""


def _html(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    encoded = {name: base64.b64encode(picture).decode("ascii") for name, picture in pictures.items()}
    return page(
        "comparison.html.jinja",
        comparison=comparison,
        lines=lines(comparison),
        pictures=encoded,
        titles=TITLES,
        note=NOTE,
        version=gpt2lab.__version__,
        generator=GENERATOR,
    )


ALIKE = {"seed", "out", "resume"}
"""Options by which runs of one arm differ."""
MOST_OPTIONS = 6
"""Runs that differ in more options are no variants of each other, and each is called by its path."""


def recorded_outcomes(directory: Path) -> list[Outcome]:
    """Read the runs of a comparison anew, under the arms and seeds that its comparison.json names.

    Raises:
        InputError: The file is damaged. A run that is missing or damaged does not raise, its status says so.
    """
    outcomes = []
    try:
        for run in read_json(directory / FILE)["runs"]:
            kind, _, failure = str(run["status"]).partition(": ")
            failed = failure if kind == "failed" else None
            outcomes.append(outcome_of(Run(directory / run["path"]), str(run["arm"]), int(run["seed"]), failed))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / FILE}: damaged ({error!r}); start the comparison again") from error
    return outcomes


def outcomes_of(runs: Sequence[Run]) -> list[Outcome]:
    """Read runs and name their arms by the options in which they differ; a run without options is an arm of its own."""
    options = [_options(run) for run in runs]
    names = dict.fromkeys(name for given in options for name in given if name not in ALIKE)
    varied = [name for name in names if len({given.get(name, "") for given in options if given}) > 1]
    short = {name: name.rpartition(".")[2] for name in varied}
    if len(set(short.values())) < len(short):
        short = {name: name for name in varied}
    outcomes = []
    for run, given in zip(runs, options, strict=True):
        arm = ", ".join(f"{short[name]}={given.get(name, 'not set')}" for name in varied)
        if not given or len(varied) > MOST_OPTIONS:
            arm = str(run.path)
        seed = given.get("seed", "0")
        outcomes.append(outcome_of(run, arm or "every run", int(seed) if seed.isdecimal() else 0))
    return outcomes


def _options(run: Run) -> dict[str, str]:
    try:
        tree = read_json(run.path / "config.json")
    except InputError:
        return {}
    flat: dict[str, str] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        below = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: str(v) for key, v in below.items()}
    return flat
