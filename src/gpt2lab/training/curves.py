"""The picture of a run while it goes on: losses and learning rate over steps."""

from __future__ import annotations

import io
from pathlib import Path

from gpt2lab.files import write_atomically
from gpt2lab.runs import Run

TRAIN, VAL, RATE = "#0072B2", "#D55E00", "#666666"
"""Okabe & Ito's colours: told apart by the colour-blind, and of different lightness in print."""


def draw(run: Run, path: Path | None = None) -> Path:
    """Draw ``curves.png`` from ``metrics.csv``; it is replaced in one operation, so a viewer never sees half of it."""
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn
    from matplotlib.ticker import LogLocator, NullLocator

    path = path or run.path / "curves.png"
    rows = run.metrics()
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    losses.plot([r["step"] for r in rows], [r["train_loss"] for r in rows], color=TRAIN, lw=1, label="training")
    held_out = [r for r in rows if r["val_loss"] is not None]
    steps, values = [r["step"] for r in held_out], [r["val_loss"] for r in held_out]
    losses.plot(steps, values, color=VAL, lw=1.5, marker="o", ms=3, label="validation")
    losses.set_yscale("log")  # most of the steps are spent on the last few per cent
    losses.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_locator(NullLocator())
    losses.set_ylabel("loss, nats per token (log)")
    losses.grid(alpha=0.3)
    losses.legend(frameon=False)
    if values:
        losses.annotate(
            f"{values[-1]:.3f}",
            (steps[-1], values[-1]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
            color=VAL,
        )
    rate.plot([r["step"] for r in rows], [r["lr"] for r in rows], color=RATE, lw=1)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_atomically(path, picture.getvalue())
    return path
