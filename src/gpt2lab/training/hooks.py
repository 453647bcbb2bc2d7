"""What the loop tells others while a run goes on; it knows neither sampling nor evaluation nor the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpt2lab.model import GPT
from gpt2lab.runs import Run


@dataclass(frozen=True)
class StepReport:
    """What `on_step` is told after each update."""

    step: int
    """Updates done."""
    steps: int
    """Updates of the whole run."""
    loss: float
    """Mean loss of the step's batch, in nats per token."""
    val_loss: float | None
    """The newest validation loss since the run was started or resumed."""
    lr: float
    """Learning rate of the update."""
    grad_norm: float
    """Norm of the gradient before it was clipped."""
    tokens_per_s: float
    """Speed since the last row of metrics.csv."""


@dataclass(frozen=True)
class Hooks:
    """What else happens while a run goes on."""

    on_step: Callable[[StepReport], None] | None = None
    """Called after each update."""
    on_row: Callable[[Mapping[str, float | None]], None] | None = None
    """Called with each row of metrics.csv, and ``data_wait``, the share of the time that was spent waiting for data."""
    sample: Callable[[GPT, int], None] | None = None
    """Called with the model, in evaluation mode, and the step, every ``sample_every`` steps and at the end."""
    hellaswag: Callable[[GPT, int], None] | None = None
    """Called like ``sample``, every ``hellaswag_every`` steps and at the end."""


HooksFor = Callable[[Run], Hooks]
"""Makes the hooks of a run once its directory exists."""
