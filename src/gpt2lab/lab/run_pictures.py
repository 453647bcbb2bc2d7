"""The pictures of one run that a report has beside its curves: each where what it shows was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2lab.lab import attention_map
from gpt2lab.lab.content import RunContent
from gpt2lab.lab.pictures import draw_positions
from gpt2lab.lab.text_pictures import can_be_drawn, draw_text_quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictures_of(run: RunContent) -> dict[str, Figure]:
    """Return a run's figures by name: ``attention``, ``positions``, ``texts``."""
    drawn: dict[str, Figure] = {}
    if run.attention is not None:
        drawn["attention"] = attention_map.draw(run.attention)
    if run.positions is not None:
        drawn["positions"] = draw_positions(run.positions.points)
    if run.quality is not None and can_be_drawn(run.quality):
        drawn["texts"] = draw_text_quality(run.quality)
    return drawn
