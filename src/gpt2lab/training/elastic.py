"""Runs that torchrun restarts: how its processes find, the second time, what they began the first time.

    torchrun --max-restarts 3 ... train --out RUN        restart 0: starts RUN, or resumes it where --resume is given
        a process dies; torchrun ends the others and starts all again with the same command line
                                                         restart 1: goes on with RUN from its last complete checkpoint

A command line that says "start RUN" means "go on with RUN" after a restart, and "resume step 500" the last step. That
holds only for what the same call of torchrun began: RUN may be an old one that the first attempt refused to overwrite.
So environment.json names the call of torchrun that works on a run.
"""

from __future__ import annotations

from pathlib import Path

from gpt2lab.runs import Run
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.processes import Processes


def default_path(config: TrainConfig) -> Path:
    """Return the directory of a run that was given none, to which a number is added where it exists."""
    name = config.preset if config.init is None else config.init.resolve().name
    data = config.data.resolve().name if config.stream is None else Path(config.stream).name
    return Path("runs") / f"{name}-{data}"


def of_launch(processes: Processes) -> dict[str, str]:
    """Return what environment.json says of the call of torchrun that works on a run, for `began`."""
    return {} if processes.launch is None else {"launch": processes.launch}


def began(run: Run, processes: Processes) -> bool:
    """Return whether this very call of torchrun has worked on a run before it restarted its processes."""
    return processes.restarts > 0 and run.environment.get("launch") == processes.launch


def started_before(config: TrainConfig, processes: Processes) -> Run | None:
    """Return the run that this call of torchrun started before it restarted its processes, if any."""
    if processes.restarts == 0:
        return None
    base = default_path(config)
    paths = [config.out] if config.out is not None else [base, *base.parent.glob(f"{base.name}-*")]
    own = ""
    if processes.main:
        own = next((str(p) for p in paths if (p / "config.json").is_file() and began(Run(p), processes)), "")
    own = processes.from_main(own)
    return Run(Path(own)) if own else None
