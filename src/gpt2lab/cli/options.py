"""Options that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

if TYPE_CHECKING:
    from gpt2lab.lab.commands.subject import Subject


Checkpoint = Annotated[str, arg(metavar="best|last|STEP")]


@dataclass(frozen=True)
class Weights:
    """Which weights, and where they run."""

    run: Positional[Path]
    """Directory of a run."""
    checkpoint: Checkpoint = "best"
    """Which weights."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto, fp32, bf16 or fp16."""

    def load(self) -> Subject:
        """Open the run and load the weights. Raises `InputError` for what is not there or damaged."""
        from gpt2lab.lab.commands.subject import Subject

        return Subject.load(self.run, self.checkpoint, self.device, self.precision)


Trained = Annotated[Weights, OmitArgPrefixes]
