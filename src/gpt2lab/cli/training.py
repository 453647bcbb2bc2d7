"""``gpt2lab train``."""

from __future__ import annotations

from contextlib import nullcontext

from gpt2lab.cli.parsing import parse


def train(argv: list[str]) -> int:
    """Train a GPT-2 on prepared data, or go on with a run."""
    from gpt2lab.lab.commands.training import training_defaults
    from gpt2lab.training.config import TrainConfig

    argv = _resume_last(argv)
    defaults, rest = training_defaults(argv)
    config = parse(TrainConfig, rest, "gpt2lab train", default=defaults)
    from gpt2lab.lab import console
    from gpt2lab.lab.train import train
    from gpt2lab.training.distributed import Processes

    main = Processes.from_environment().main
    console.log_to_console()
    with console.training_bar() if main else nullcontext() as on_step:
        run = train(config, on_step)
    if main:
        print(f"{run.path}: config.json metrics.csv curves.png samples.jsonl checkpoints/")
    return 0


def _resume_last(argv: list[str]) -> list[str]:
    """Let ``--resume`` stand alone for ``--resume last``."""
    for index, word in enumerate(argv):
        if word == "--resume" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
            return [*argv[: index + 1], "last", *argv[index + 1 :]]
    return argv
