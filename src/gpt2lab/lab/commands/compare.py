"""What ``gpt2lab compare`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gpt2lab.compare.output import NOTE, lines
from gpt2lab.compare.plan import make_plan, parse_arms, parse_variations
from gpt2lab.compare.results import Comparison
from gpt2lab.compare.run import compare, in_own_process
from gpt2lab.lab import console
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.distributed import Interrupted


def run_comparison(
    base: str,
    vary: Sequence[str],
    arms: Sequence[str],
    seeds: int,
    out: Path,
    to_loss: float | None,
    texts: bool,
    dry_run: bool,
    configure: Callable[[str], TrainConfig],
) -> None:
    """Plan a comparison and print its commands, or run it and print what was found.

    Args:
        base: Preset that the runs start from.
        vary: ``OPTION=VALUE,VALUE``; ``preset`` may be one of them.
        arms: ``NAME: OPTION=VALUE ...``.
        seeds: Runs of each arm.
        out: Directory of the comparison.
        to_loss: Validation loss to count steps and seconds to.
        texts: Whether to measure what each run's texts are like.
        dry_run: Print the command of each run and do nothing.
        configure: Gives what the runs of a preset have in common.

    Raises:
        InputError: Something asked for cannot be done.
        Interrupted: A signal came.
    """
    varied, named = parse_variations(vary), parse_arms(arms)
    bases = [configure(str(preset)) for preset in varied.pop("preset", [base])]
    if dry_run:
        for job in make_plan(bases, varied, seeds, out, named).jobs:
            print(job.command)
        return
    console.log_to_console()
    try:
        comparison = compare(bases, varied, seeds, out, to_loss, in_own_process, named, texts)
    except Interrupted:
        print("stopped; start the same comparison again to go on: what is finished is not repeated")
        raise
    _print(comparison)
    print(f"{out}: comparison.html comparison.json table.md table.csv, pictures, and the run directories")


def _print(comparison: Comparison) -> None:
    title = f"{len(comparison.arms)} variants, seeds {', '.join(map(str, comparison.seeds))}"
    table = Table(title=title, caption=NOTE, caption_justify="left")
    table.add_column("")
    for arm in comparison.arms:
        table.add_column(Text(f"{arm}\n(reference)" if arm == comparison.reference else arm), justify="right")
    for line in lines(comparison):
        parts = [(f"{e.value} {e.spread}".strip(), e.difference, e.interval, e.verdict) for e in line.entries]
        cells = [Text("\n".join(filter(None, part))) for part in parts]
        table.add_row(f"{line.title}\n{line.unit}".strip(), *cells, end_section=True)
    console.console.print(table)
    for text in (*comparison.findings, *comparison.remarks):
        console.console.print(f"- {text}", markup=False)
