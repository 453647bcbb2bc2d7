"""Figures: what they show, and that their files are the same whenever they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from gpt2lab import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = [(float(n), 1 + 1 / n) for n in range(1, 30)]
RUN = {"train_loss": CURVE, "val_loss": CURVE[::7], "lr": CURVE}
METRICS = {"perplexity": 3.0, "self_bleu": 40.0, "grammatical": 0.9}
FIGURES: dict[str, Callable[[], Figure]] = {
    "losses of one run": lambda: plots.losses({"": RUN}, floor=0.9, references={"a paper": 1.5}),
    "losses of several runs": lambda: plots.losses({"a": RUN, "b": RUN}, plots.WIDE),
    "losses not yet recorded": lambda: plots.losses({"": {"train_loss": [], "val_loss": [], "lr": []}}, x_label="step"),
    "over tokens": lambda: plots.over_tokens({"a": CURVE, "b": []}, "Gradient norm", legend=True),
    "by distance, one run": lambda: plots.by_distance({"": [CURVE]}, "position", "loss", "a title"),
    "by distance, arms": lambda: plots.by_distance({"a": [CURVE, CURVE[:9]], "b": [[]]}, "distance", "loss"),
    "over costs": lambda: plots.losses_over_costs({"step": {"a": [CURVE]}, "tokens": {"a": [CURVE], "b": [CURVE]}}),
    "over parameters": lambda: plots.losses_over_parameters({"a": [(1e5, 3.0)], "b": [(2e6, 2.0)]}),
    "text quality": lambda: plots.text_quality(METRICS, {"greedy": {"": METRICS}, "nucleus": {"0.9": METRICS}}),
    "attention": lambda: plots.attention(["a", "b"], {"Layer 1": [[1, 0], [0.5, 0.5]], "Layer 2": [[1, 0], [0, 1]]}),
    "tokens": lambda: plots.token_statistics([9, 3, 1], [3, 9], [3, 6, 10], "data"),
    "no tokens": lambda: plots.token_statistics([], [], [], "data"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_each_figure_is_written_as_the_same_file_every_time(draw: Callable[[], Figure]) -> None:
    assert plots.png(draw()).startswith(b"\x89PNG")
    assert plots.svg(draw()) == plots.svg(draw())
    element = plots.page_svg(draw(), "mark")
    assert element.startswith("<svg") and element.endswith("</svg>")
    assert "metadata" not in element and "<style" not in element and "date" not in element
    assert all(name.startswith("mark-") for name in re.findall(r'\bid="([^"]*)"', element))
    assert "var(--figure-ink, #444444)" in element or "Layer 1" in element


def labels(figure: Figure) -> list[str]:
    axes: Any = figure.axes[0]
    return axes.get_legend_handles_labels()[1]


def test_references_are_drawn_beside_a_single_run_only() -> None:
    alone = labels(FIGURES["losses of one run"]())
    assert alone == ["training", "validation", "entropy of the test text", "a paper: 1.5"]
    assert labels(plots.losses({"a": RUN, "b": RUN}, floor=0.9, references={"a paper": 1.5})) == ["a", "b"]


def test_a_line_is_the_mean_of_its_runs_as_far_as_the_shortest() -> None:
    figure = plots.by_distance({"a": [[(1, 2.0), (2, 4.0), (3, 9.0)], [], [(1, 4.0), (2, 8.0)]]}, "x", "y")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1.0, 3.0], [2.0, 6.0]]  # type: ignore[union-attr]


def test_thinned_curve_keeps_its_mean_and_its_length_is_limited() -> None:
    points = [(float(n), math.sin(n)) for n in range(1, 4001)]
    thinned = plots.thin(points)
    assert len(thinned) == plots.MAX_POINTS
    assert sum(x for x, _ in thinned) / len(thinned) == pytest.approx(sum(x for x, _ in points) / len(points))
    assert plots.thin(points[:5]) == points[:5]
