"""``gpt2lab train``, ``quickstart`` and ``check``.

The options of training are those of `TrainConfig`, on top of a preset, a saved configuration or an earlier run.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from gpt2lab import console
from gpt2lab.cli.arguments import Command, Device, parse, parse_known, part_of
from gpt2lab.errors import InputError
from gpt2lab.files import read_checked_json
from gpt2lab.model.config import PRESETS
from gpt2lab.runs import Run
from gpt2lab.training.config import LENGTHS, TrainConfig, from_dict, saved_config

Resume = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[STEP]",
        instance_from_str=lambda words: words[0] if words else "last",
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [value or "off"],
    ),
]
"""``--resume`` alone means the last checkpoint."""


@dataclass(frozen=True)
class Start:
    """What the defaults of the other options depend on."""

    preset: str | None = None
    config: Path | None = None
    init: Path | None = None
    out: Path | None = None
    resume: Resume = None
    steps: str | None = None
    epochs: str | None = None
    max_tokens: str | None = None

    def defaults(self) -> TrainConfig:
        """Return the configuration that the other options start from.

        Raises:
            InputError: Two starting points are given, or the file does not hold a configuration.
        """
        if self.config is not None and (self.preset is not None or self.resume is not None):
            other = "--preset" if self.preset is not None else "--resume"
            raise InputError(f"--config and {other} are both starting points of the options; give one of them")
        if self.init is not None and self.preset is not None:
            raise InputError("--init and --preset both determine the model; give one of them")
        if self.resume is not None and self.out is not None:
            start = saved_config(Run.open(self.out)).as_asked()
        elif self.config is not None:
            if self.config.name in PRESETS and not self.config.exists():
                raise InputError(f"there is no file {self.config}; for the preset, give --preset {self.config}")
            saved = from_dict(read_checked_json(self.config), where=str(self.config))
            follows = saved.model is not None and saved.seq_len == saved.model.n_ctx  # then --model.n-ctx sets both
            start = dataclasses.replace(saved, out=None, resume=None, seq_len=None if follows else saved.seq_len)
        else:
            start = TrainConfig(preset=self.preset or "nano", init=self.init)
        if any(getattr(self, name) is not None for name in LENGTHS):
            start = dataclasses.replace(start, steps=None, epochs=None, max_tokens=None)
        return start.filled_in()


@dataclass(frozen=True)
class Train(TrainConfig, Command):
    """Train a GPT-2 on prepared data, or resume a run."""

    resume: Resume = None
    """Resume the run in --out from its last checkpoint, or from the checkpoint of a given step."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """Start from the options in this file, such as RUN/config.json; options on the command line override it."""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> Self:
        """Build the options, whose defaults depend on --preset, --config, --init and --resume."""
        start, _ = parse_known(Start, argv, prog, help=False)
        return parse(cls, argv, prog, default=cls(**vars(start.defaults())))

    @property
    def train_config(self) -> TrainConfig:
        """The options of training."""
        return part_of(self, TrainConfig)

    def run(self) -> None:
        """Train, and print what the run directory holds."""
        from gpt2lab.lab.train import train
        from gpt2lab.training.distributed import Communicator

        main = Communicator.from_environment().is_main
        console.log_to_console()
        with console.training_bar() if main else nullcontext() as on_step:
            run = train(self.train_config, on_step)
        if main:
            print(f"{run.path}: config.json metrics.csv curves.png samples.jsonl checkpoints/")


@dataclass(frozen=True)
class Quickstart(Command):
    """Train a GPT-2 from scratch and write its report, without any download."""

    text: Path | None = None
    """Text file to train on; by default stories that the program generates itself."""
    out: Path | None = None
    """Run directory, which must not exist; by default runs/quickstart, or a numbered one. Its data goes beside it."""
    seed: int = 1337
    """Random seed of the initial weights, the data order and the samples."""
    minutes: float | None = None
    """What the whole command is to take, 3 by default: model and steps are chosen by the measured speed."""
    steps: int | None = None
    """Train the small model for this many steps instead, the same on every machine."""
    resume: bool = False
    """Resume an interrupted quickstart: the one in --out, or in runs/quickstart."""

    def run(self) -> None:
        """Run every stage."""
        from gpt2lab.cli.quickstart import run_quickstart

        run_quickstart(self.text, self.out, self.seed, self.resume, self.minutes, self.steps)


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

        return int(not run_checks(self.data, self.device))
