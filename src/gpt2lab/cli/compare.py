"""``gpt2lab compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction
from tyro.conf import arg as tyro_arg

from gpt2lab.cli.parsing import parse, parse_known
from gpt2lab.errors import InputError

PROG = "gpt2lab compare"
RESERVED = ("--preset", "--config", "--resume", "--out", "--data")


def compare(argv: list[str]) -> int:
    """Compare variants of a model fairly: same seeds, same batches, paired differences with their interval."""
    run, rest = parse_known(_compare, argv, PROG)
    return run(rest)


def _compare(
    data: Path,
    out: Path,
    vary: Annotated[UseAppendAction[tuple[str, ...]], tyro_arg(metavar="OPTION=VALUE,VALUE")] = (),
    arm: Annotated[UseAppendAction[tuple[str, ...]], tyro_arg(metavar='"NAME: OPTION=VALUE ..."')] = (),
    base: str = "nano",
    seeds: int = 3,
    to_loss: float | None = None,
    texts: bool = False,
    dry_run: bool = False,
) -> Callable[[list[str]], int]:
    """Compare variants of a model fairly. Every option of gpt2lab train may be given too and holds for all runs.

    Each combination of the varied options is run with each seed, as an ordinary run in its own directory. The first
    combination is the reference. What is finished is not repeated when the same command is started again.

    Args:
        vary: An option of gpt2lab train and its values, such as model.n_kv_head=4,1; preset=nano,tiny compares sizes.
            May be given several times.
        arm: A variant of several changes, such as "window: model.mask=window model.window=64"; "baseline:" has none.
            May be given several times; each is combined with every value of --vary.
        data: Directory that gpt2lab data prepare wrote.
        out: Directory of the comparison; the runs stand in it.
        base: Preset that the runs start from.
        seeds: Runs of each combination: --seed and those that follow it. Three or more give an interval.
        to_loss: Validation loss to count steps and seconds to; without it, the lowest that every run reached.
        texts: Measure what the texts of each run are like too, as gpt2lab eval text does, which takes time.
        dry_run: Print the command of each run, for a cluster's scheduler, and run nothing.
    """

    def run(rest: list[str]) -> int:
        from gpt2lab.lab.commands.compare import run_comparison
        from gpt2lab.training.config import TrainConfig

        for word in rest:
            if word.split("=")[0] in RESERVED:
                raise InputError(f"{word} is not an option of a comparison; see {PROG} --help")

        def configure(preset: str) -> TrainConfig:
            return parse(TrainConfig, ["--data", str(data), *rest], PROG, default=TrainConfig(preset=preset))

        run_comparison(base, vary, arm, seeds, out, to_loss, texts, dry_run, configure)
        return 0

    return run
