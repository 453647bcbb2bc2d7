"""Where the figures of a run go besides metrics.csv: TensorBoard's event files, or Weights & Biases.

Both are extras that are imported only where they are asked for. Weights & Biases writes under the run directory and
sends to its server unless ``WANDB_MODE=offline`` is set; ``wandb sync`` sends what was written offline later.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically
from gpt2lab.runs import Run

Row = Mapping[str, float | None]


def require(tracker: str) -> None:
    """Raise `InputError` where the library that a tracker needs is missing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(f"tracker {tracker} is not installed; install it with: pip install gpt2lab[{tracker}]")


@contextmanager
def tracking(tracker: str, run: Run) -> Iterator[Callable[[Row], None] | None]:
    """Yield what to call with each row of metrics.csv; None where nothing is tracked."""
    if tracker == "none":
        yield None
        return
    with {"tensorboard": _tensorboard, "wandb": _wandb}[tracker](run) as write:
        yield write


def _figures(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if value is not None and name != "step"}


def _step(row: Row) -> int:
    return int(row["step"] or 0)


@contextmanager
def _tensorboard(run: Run) -> Iterator[Callable[[Row], None]]:
    """Write scalars into RUN/tensorboard; what a resumed run went back over is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as opened:
        writer: SummaryWriter | None = None

        def write(row: Row) -> None:
            nonlocal writer
            if writer is None:
                writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=_step(row))
                opened.callback(writer.close)
            for name, value in _figures(row).items():
                writer.add_scalar(name, value, _step(row))
            writer.flush()

        yield write


@contextmanager
def _wandb(run: Run) -> Iterator[Callable[[Row], None]]:
    """Log to the project gpt2lab under the run's name; a run that goes on keeps its id."""
    import wandb

    file = run.path / "wandb.id"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12])
    session = wandb.init(
        project="gpt2lab",
        name=run.path.name,
        dir=str(run.path),
        id=file.read_text(encoding="utf-8"),
        resume="allow",
        config=run.config,
        settings=wandb.Settings(silent=True),
    )
    try:
        yield lambda row: session.log(_figures(row), step=_step(row))
    finally:
        session.finish()
