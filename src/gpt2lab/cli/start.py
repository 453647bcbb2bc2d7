"""``gpt2lab quickstart`` and ``gpt2lab check``: their options only, so that ``--help`` does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt2lab.cli.arguments import Command, Device


@dataclass(frozen=True)
class Quickstart(Command):
    """Train a GPT-2 from scratch and write its report, without any download."""

    text: Path | None = None
    """Text file to train on; by default stories that the program generates itself."""
    out: Path | None = None
    """Directory of the run, which must not exist; by default runs/quickstart, numbered if that exists. The prepared
    data is written beside it."""
    seed: int = 1337
    """Random seed of the initial weights, the data order and the samples."""
    resume: bool = False
    """Resume an interrupted quickstart: the one in --out, or in runs/quickstart."""

    def run(self) -> int:
        """Run every stage."""
        from gpt2lab.cli.run_quickstart import run_quickstart

        run_quickstart(self.text, self.out, self.seed, self.resume)
        return 0


@dataclass(frozen=True)
class Check(Command):
    """Check that everything works on this machine; exit code 1 if something does not."""

    data: Path | None = None
    """Directory of prepared data to read a batch from; by default generated stories."""
    device: Device = "auto"
    """Device to check."""

    def run(self) -> int:
        """Run the checks and print a line for each."""
        from gpt2lab.lab.check import run_checks

        return 0 if run_checks(self.data, self.device) else 1
