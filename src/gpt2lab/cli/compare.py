"""``gpt2lab compare``: its own options, and those of `gpt2lab train` for all runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from rich.table import Table
from rich.text import Text
from tyro.conf import Suppress, UseAppendAction, arg

from gpt2lab import console
from gpt2lab.cli.arguments import Command, parse, parse_known
from gpt2lab.cli.train import Start
from gpt2lab.errors import InputError
from gpt2lab.training.config import TrainConfig

if TYPE_CHECKING:
    from gpt2lab.compare.results import Comparison


@dataclass(frozen=True)
class Compare(Command):
    """Compare variants of a model fairly: same seeds, same batches, paired differences with confidence intervals.

    Every option of gpt2lab train may be given too and holds for all runs. Each --arm is combined with every value of
    each --vary, and each combination is trained with each seed, as an ordinary run in its own directory; the first
    combination is the reference. If interrupted, run the same command again: finished runs are not repeated.
    """

    data: Path
    """Directory of prepared data."""
    out: Path
    """Directory of the comparison, which will hold the runs."""
    vary: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="OPTION=VALUE,VALUE")] = ()
    """An option of gpt2lab train and its values, such as model.n_kv_head=4,1 or preset=nano,tiny for sizes."""
    arm: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar='"NAME: OPTION=VALUE ..."')] = ()
    """A variant of several options, such as "window: model.mask=window model.window=64", or of none: "baseline:"."""
    base: str = "nano"
    """Preset that the runs start from."""
    seeds: int = 3
    """Runs per combination, with the seeds --seed, --seed + 1, ...; an interval needs at least three."""
    to_loss: float | None = None
    """Validation loss to count steps and seconds to; by default the lowest that every run reached."""
    texts: bool = False
    """Also measure the texts of each run as gpt2lab eval text does, which takes time."""
    dry_run: bool = False
    """Print the command of each run, for the scheduler of a cluster, and run nothing."""
    train_options: Suppress[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> Self:
        """Build the options of the comparison; the others are those of training."""
        compare, rest = parse_known(cls, argv, prog)
        start, _ = parse_known(Start, rest, prog, help=False)
        if given := [f"--{name}" for name in ("preset", "config", "resume") if getattr(start, name) is not None]:
            raise InputError(f"{', '.join(given)} cannot be used in a comparison, which sets it; see {prog} --help")
        return type(compare)(**{**vars(compare), "train_options": tuple(rest)})

    def run(self) -> None:
        """Run the comparison and print what it found, or print its commands."""
        from gpt2lab.compare.plan import make_plan, parse_arms, parse_variations
        from gpt2lab.compare.run import compare, in_own_process
        from gpt2lab.training.distributed import Interrupted

        varied, named = parse_variations(self.vary), parse_arms(self.arm)
        bases = [self._base(str(preset)) for preset in varied.pop("preset", [self.base])]
        plan = make_plan(bases, varied, self.seeds, self.out, named)
        if self.dry_run:
            for job in plan.jobs:
                print(job.command)
            return
        console.log_to_console()
        try:
            comparison = compare(plan, self.to_loss, self.texts, in_own_process)
        except Interrupted:
            print("interrupted; run the same command again to resume: finished runs are not repeated")
            raise
        _print(comparison)
        print(f"{self.out}: comparison.html comparison.json table.md table.csv, plots and the run directories")

    def _base(self, preset: str) -> TrainConfig:
        """Return the options that the runs of a preset have in common."""
        prog, argv = "gpt2lab compare", ["--data", str(self.data), *self.train_options]
        return parse(TrainConfig, argv, prog, default=TrainConfig(preset=preset).filled_in())


def _print(comparison: Comparison) -> None:
    from gpt2lab.compare.output import NOTE, table_rows

    title = f"{len(comparison.arms)} variants, seeds {', '.join(map(str, comparison.seeds))}"
    table = Table(title=title, caption=NOTE, caption_justify="left")
    table.add_column("")
    for arm in comparison.arms:
        table.add_column(Text(f"{arm}\n(reference)" if arm == comparison.reference else arm), justify="right")
    for row in table_rows(comparison):
        parts = [(f"{c.value} {c.spread}".strip(), c.difference, c.interval, c.verdict) for c in row.cells]
        cells = [Text("\n".join(filter(None, part))) for part in parts]
        table.add_row(f"{row.title}\n{row.unit}".strip(), *cells, end_section=True)
    console.console.print(table)
    for text in (*comparison.findings, *comparison.remarks):
        console.console.print(f"- {text}", markup=False)
