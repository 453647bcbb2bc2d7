"""``gpt2lab train``, ``compare``, ``plan``, ``quickstart`` and ``check``.

The options of training are those of `TrainConfig`, on top of a preset, a saved configuration or an earlier run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from rich.table import Table
from rich.text import Text
from tyro.conf import Suppress, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from gpt2lab import console, formatting
from gpt2lab.cli.arguments import Command, Device, parse, parse_known, part_of
from gpt2lab.errors import InputError
from gpt2lab.files import CHECKSUM, from_json, read_json, without_checksum
from gpt2lab.imports import import_file, import_from
from gpt2lab.model.config import PRESETS
from gpt2lab.model.parts import IMPORTED, MODULES, named_in
from gpt2lab.runs import SEGMENTS, Run
from gpt2lab.training.config import LENGTHS, TrainConfig, saved_config, with_options

if TYPE_CHECKING:
    from gpt2lab.compare.results import Comparison
    from gpt2lab.lab.forecast import Forecast, Scenario, Workload

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
Import = Annotated[Path | None, arg(name="import", metavar="FILE")]
OwnModel = Annotated[str | None, arg(name="model", metavar="FILE:CLASS")]


@dataclass(frozen=True)
class Start:
    """What the defaults of the other options depend on."""

    preset: str | None = None
    recipe: str | None = None
    config: Path | None = None
    init: Path | None = None
    out: Path | None = None
    resume: Resume = None
    steps: str | None = None
    epochs: str | None = None
    max_tokens: str | None = None
    imports: Import = None

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> Self:
        """Take these options out of all, and import the file that they name: then the others can name its parts."""
        start, _ = parse_known(cls, argv, prog, help=False)
        if start.imports is not None:
            import_file(start.imports)
        return start

    def require_used(self, configs: Iterable[TrainConfig]) -> None:
        """Raise `InputError` if a file was imported, and the parts of the configurations are all from elsewhere."""
        if self.imports is None:
            return
        models, sha256 = [config.essentials().model for config in configs], import_file(self.imports)
        if sha256 not in [model.import_sha256 for model in models]:
            keys = dict.fromkeys(key for model in models for key in model.named_parts)
            named = dict.fromkeys(map(" ".join, keys))
            run = self.init or (self.out if self.resume is not None else None)
            if run is not None and IMPORTED[sha256].keys() & keys:
                raise InputError(
                    f"--import {self.imports} is not used: {run} was made with another version of this file, and "
                    "keeps it in imports/; leave out --import, or start a new run"
                )
            adds = " or ".join(f"--model.{kind.replace('_', '-')} {name}" for kind, name in IMPORTED[sha256])
            raise InputError(
                f"--import {self.imports} is not used: {' and '.join(named)} is not from this file as it is now; give "
                f"{adds}, or leave out --import"
            )

    def defaults(self) -> TrainConfig:
        """Return the configuration that the other options start from.

        Raises:
            InputError: Two starting points are given, or the file does not hold a configuration.
        """
        others = [f"--{name}" for name in ("preset", "recipe", "resume") if getattr(self, name) is not None]
        if self.config is not None and others:
            raise InputError(f"--config and {others[0]} are both starting points of the options; give one of them")
        if self.init is not None and self.preset is not None:
            raise InputError("--init and --preset both determine the model; give one of them")
        if self.resume is not None and self.out is not None:
            start = saved_config(Run.open(self.out)).as_asked()
        elif self.config is not None:
            if self.config.name in PRESETS and not self.config.exists():
                raise InputError(f"there is no file {self.config}; for the preset, give --preset {self.config}")
            values = _options_in(self.config)
            given = values.get("model") if isinstance(values, dict) else None
            model = given if isinstance(given, dict) else {}
            sha256 = None if self.imports is None else import_file(self.imports)
            if sha256 is not None and IMPORTED[sha256].keys() & {*named_in(model)}:
                model["import_sha256"] = sha256  # the file of --import replaces that of the configuration
            elif model.get("import_sha256") is not None and self.config.name == "config.json":
                folder = self.config.parent
                import_from(Run(folder.parents[1] if folder.parent.name == SEGMENTS else folder))
            saved = from_json(TrainConfig, values, self.config)
            follows = saved.model is not None and saved.seq_len == saved.model.n_ctx  # then --model.n-ctx sets both
            start = dataclasses.replace(saved, out=None, resume=None, seq_len=None if follows else saved.seq_len)
        else:
            start = TrainConfig(preset=self.preset or "nano", recipe=self.recipe or "gpt2", init=self.init)
        if any(getattr(self, name) is not None for name in LENGTHS):
            start = dataclasses.replace(start, steps=None, epochs=None, max_tokens=None)
        return start.filled_in()


def _options_in(file: Path) -> object:
    """Read a configuration; one that was written by hand has no checksum."""
    values = read_json(file)
    if not isinstance(values, dict) or CHECKSUM not in values:
        return values
    try:
        return without_checksum(values, file)
    except InputError as error:
        raise InputError(f'{error}, or remove its "{CHECKSUM}" if the change is meant') from None


@dataclass(frozen=True)
class Train(TrainConfig, Command):
    """Train a GPT-2 on prepared data, or resume a run."""

    resume: Resume = None
    """Resume the run in --out from its last checkpoint, or from the checkpoint of a given step."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """Start from the options in this file, such as RUN/config.json; options on the command line override it."""
    watch: bool = False
    """Show the training in the browser as it runs; without a display, print the address (docs/play.md)."""
    imports: Import = None
    """Python file with parts of your own (mask, block, feed-forward); its copy travels with the run (docs/parts.md)."""
    own_model: OwnModel = None
    """A model of your own: CLASS(config) with forward(tokens, targets); its file travels too (docs/own-model.md)."""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> Self:
        """Build the options, whose defaults depend on --preset, --recipe, --config, --init and --resume."""
        start = Start.parse(argv, prog)
        train = parse(cls, argv, prog, default=cls(**vars(start.defaults())))
        start.require_used([train])
        return train

    @property
    def train_config(self) -> TrainConfig:
        """The options of training."""
        config = part_of(self, TrainConfig)
        return config if self.own_model is None else with_options(config, {"model": self.own_model})

    def run(self) -> None:
        """Train, and print what the run directory holds."""
        from gpt2lab.cli.serve import watch
        from gpt2lab.lab.train import train
        from gpt2lab.training.distributed import Communicator

        main = Communicator.from_environment().is_main
        console.log_to_console()
        with console.training_bar() if main else nullcontext() as on_step:
            run = train(self.train_config, on_step, watch if self.watch else None)
        if main:
            print(f"{run.path}: config.json metrics.csv curves.png samples.jsonl checkpoints/")


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
    """An option of gpt2lab train and its values, such as model.n_kv_head=4,1, preset=nano,tiny or recipe=gpt2,fast."""
    arm: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar='"NAME: OPTION=VALUE ..."')] = ()
    """A variant of several options, such as "window: model.mask=window model.window=64", or of none: "baseline:"."""
    base: str = "nano"
    """Preset that the runs start from, by the recipe given by --recipe."""
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
        if words := list(itertools.takewhile(lambda word: not word.startswith("-"), argv)):
            raise InputError(
                f'{prog} trains variants of one model and takes no "{words[0]}"; to compare runs that exist: '
                f"gpt2lab report {shlex.join(words)}"
            )
        compare, rest = parse_known(cls, argv, prog)
        start = Start.parse(rest, prog)
        if given := [f"--{name}" for name in ("preset", "config", "resume") if getattr(start, name) is not None]:
            raise InputError(f"{', '.join(given)} cannot be used in a comparison, which sets it; see {prog} --help")
        return dataclasses.replace(compare, train_options=tuple(rest))

    def run(self) -> None:
        """Run the comparison and print what it found, or print its commands."""
        from gpt2lab.compare.run import compare, in_own_process, make_plan, parse_arms, parse_variations
        from gpt2lab.training.distributed import Interrupted

        varied, named = parse_variations(self.vary), parse_arms(self.arm)
        start = Start.parse([*self.train_options], "gpt2lab compare")
        if "recipe" in varied and start.recipe is not None:
            raise InputError(f"recipe is in --vary, and --recipe {start.recipe} is given; leave out one of them")
        presets, recipes = varied.pop("preset", [self.base]), varied.pop("recipe", [start.recipe or "gpt2"])
        bases = [self._base(str(preset), str(recipe)) for preset, recipe in itertools.product(presets, recipes)]
        plan = make_plan(bases, varied, self.seeds, self.out, named)
        start.require_used(plan.arms.values())
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
        _print_comparison(comparison)
        print(f"{self.out}: comparison.html comparison.json table.md table.csv, plots and the run directories")

    def _base(self, preset: str, recipe: str) -> TrainConfig:
        """Return the options that the runs of a preset by a recipe have in common."""
        default = Train(**vars(TrainConfig(preset=preset, recipe=recipe).filled_in()))
        argv = ["--data", str(self.data), *self.train_options]
        return parse(Train, argv, "gpt2lab compare", default).train_config


def _print_comparison(comparison: Comparison) -> None:
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


@dataclass(frozen=True)
class Plan(Command):
    """Estimate what a training run takes: memory, time, floating-point operations, disk."""

    preset: str | None = None
    """Preset, gpt2 by default: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl gpt2-modern cs336."""
    recipe: str | None = None
    """Recipe, gpt2 by default: gpt2 fast."""
    gpu: str | None = None
    """Name of a GPU such as H100, or cpu for this machine; by default H100, or the run's with --from."""
    gpus: int | None = None
    """Number of GPUs, or with --gpu cpu of machines (with --from: of processes); by default 1, or as the run had."""
    tokens: Annotated[str | None, arg(metavar="N")] = None
    """Training tokens, such as 10B or 300M; by default 20 per parameter."""
    seq_len: int | None = None
    """Sequence length in tokens; by default the model's context."""
    batch_tokens: int | None = None
    """Tokens per optimizer step; by default the preset's."""
    micro_batch: int | None = None
    """Sequences per forward pass of one GPU; by default the largest that fits and divides the batch."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp replicates the model, fsdp shards it; auto is what training would choose, or what the run of --from had."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None = None
    """Precision of the matrix products; auto, the default, is what training would choose."""
    mfu: float | None = None
    """Model FLOPs utilization without activation checkpointing; 0.4 is a guess, --from measures it in a short run."""
    from_: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    """Take architecture, batch and measured speed from a short run."""
    json: bool = False
    """Print every figure as JSON, in bytes and seconds."""

    def run(self) -> None:
        """Print the forecast as a table, or as JSON."""
        from gpt2lab.lab.forecast import forecast

        found = forecast(self._workload())
        if self.json:
            print(json.dumps(dataclasses.asdict(found), indent=2))
        else:
            _print_forecast(found)

    def _workload(self) -> Workload:
        from gpt2lab.lab.forecast import Workload, parse_tokens

        tokens = None if self.tokens is None else parse_tokens(self.tokens)
        names = ("preset", "recipe", "seq_len", "batch_tokens", "micro_batch", "precision", "mfu")
        options = {name: value for name in names if (value := getattr(self, name)) is not None}
        machine = {name: value for name in ("gpu", "gpus") if (value := getattr(self, name)) is not None}
        if self.from_ is None:
            return Workload.from_preset(parallel=self.parallel, tokens=tokens, **machine, **options)
        if options:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise InputError(f"--from takes {given} from the run; leave out one of them")
        return Workload.from_run(Run.open(self.from_), parallel=self.parallel, tokens=tokens, **machine)


def _print_forecast(found: Forecast) -> None:
    workload = found.workload
    source = "at the measured speed" if workload.measured else f"at an assumed MFU of {workload.mfu:.0%}"
    console.console.print(
        f"{found.n_params:,} parameters on {workload.gpus} x {workload.gpu} ({found.parallel}, {workload.precision}), "
        f"{workload.tokens:,} tokens in sequences of {workload.T:,}, {source}"
    )
    table, own_model = Table(show_edge=False), workload.model.network
    ways = {"without activation\ncheckpointing": found.plain, "with activation\ncheckpointing": found.checkpointed}
    if own_model is not None:  # which has no checkpointing but its own
        ways.popitem()
    table.add_column("")
    for title in ways:
        table.add_column(title, justify="right")
    for name, cell in _rows(found).items():
        table.add_row(name, *map(cell, ways.values()))
    cache = f"a cache of {workload.model.n_ctx:,} tokens {formatting.size(found.cache_bytes)}"
    if own_model is not None:
        cache = "no cache: each token computes its whole context again"
    console.console.print(table)
    console.console.print(
        f"{found.steps:,} steps of {workload.batch_tokens:,} tokens, {found.flops:.3g} FLOPs; on disk: the tokens "
        f"{formatting.size(found.dataset_bytes)}, each checkpoint {formatting.size(found.checkpoint_bytes)}; to "
        f"generate, {cache}"
    )
    if own_model is not None:
        console.console.print(
            f"of model {own_model}, FLOPs are estimated as 6 per parameter and token, and activations are those of a "
            "pass in fp32"
        )
    if own := [" ".join(key) for key in workload.model.own_parts if key[0] in MODULES]:
        console.console.print(f"of {' and '.join(own)}, FLOPs and activations are estimated from the matrices")


def _rows(found: Forecast) -> dict[str, Callable[[Scenario], str]]:
    """Return the table's rows: the text of a cell for either way, by the row's name."""
    unit = "GPU"
    if found.workload.gpu == "cpu":  # a run tells how many processes it had, but not on how many machines
        unit = "machine" if found.workload.measured is None else "process"
    return {
        f"weights, per {unit}": lambda way: formatting.size(way.memory.weights),
        "gradients": lambda way: formatting.size(way.memory.gradients),
        "optimizer state": lambda way: formatting.size(way.memory.optimizer),
        "activations of a micro-batch": lambda way: formatting.size(way.memory.activations),
        f"peak, of {formatting.size(found.usable_memory)} available": lambda way: (
            formatting.size(way.memory.peak) + ("" if way.fits else " (does not fit)")
        ),
        "largest micro-batch that fits": lambda way: str(way.largest_micro_batch),
        "micro-batch x micro-steps": lambda way: f"{way.micro_batch} x {way.micro_steps}",
        "MFU": lambda way: f"{way.mfu:.1%}",
        "time per step": lambda way: (
            f"{way.step_seconds:.3g} s" if way.step_seconds < 100 else f"{way.step_seconds:,.0f} s"
        ),
        "tokens per second": lambda way: f"{way.tokens_per_s:,.0f}",
        "total time": lambda way: f"{way.days:.2f} days" if way.days >= 1 else f"{24 * way.days:.2f} hours",
        f"{unit}-hours": lambda way: f"{way.gpu_hours:,.1f}",
    }


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

        run_quickstart(self)


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
