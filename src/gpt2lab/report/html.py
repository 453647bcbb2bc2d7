"""A report as one HTML file: it includes its style sheet, figures and equations (MathML), and loads nothing.

It reads well in a browser, on a phone and on paper, in light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt2lab import plots
from gpt2lab.compare.output import NOTE, table_rows
from gpt2lab.pages import page
from gpt2lab.report.content import Report, RunContent
from gpt2lab.report.facts import CITE


def render_html(report: Report) -> str:
    """Return a report as HTML."""
    shown = (figure for run in report.runs for figure in run.key_figures if report.one_scale or not figure.per_token)
    return page(
        "report.html.jinja",
        report=report,
        figures=_curves(report),
        rows=[] if report.comparison is None else table_rows(report.comparison),
        note=NOTE,
        points_per_mean=points_per_mean(report.runs),
        labels=list(dict.fromkeys(figure.label for figure in shown)),
        cite=CITE,
    )


def _curves(report: Report) -> dict[str, str]:
    """Return the training curves of all runs as SVG elements by name; empty if no run logged a loss.

    The losses are left out if those of the runs do not compare.
    """
    runs = [run for run in report.runs if run.curves["train_loss"]]
    if not runs:
        return {}
    curves = {
        "gradient_norm": plots.over_tokens(
            {run.name: run.curves["grad_norm"] for run in runs},
            "Gradient norm before clipping",
            legend=not report.one_scale,
        ),
        "speed": plots.over_tokens({run.name: run.curves["tokens_per_s"] for run in runs}, "Tokens per second"),
    }
    if report.one_scale:
        curves |= {"wide": loss_figure(runs, plots.WIDE), "narrow": loss_figure(runs, plots.NARROW)}
    return {name: plots.page_svg(figure, name) for name, figure in curves.items()}


def loss_figure(runs: Sequence[RunContent], width: float) -> plots.Figure:
    """Draw the losses of runs, with the entropy floor and published losses if there is only one."""
    floor, references = runs[0].floor, runs[0].published_losses
    return plots.losses({run.name: run.curves for run in runs}, width, floor=floor, references=references)


def points_per_mean(runs: Sequence[RunContent]) -> int:
    """Return how many rows of metrics.csv a point of the curves averages, at most."""
    return max(plots.points_per_mean(len(run.curves["train_loss"])) for run in runs)
