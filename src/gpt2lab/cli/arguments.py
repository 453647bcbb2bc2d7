"""Command-line arguments: every command is a dataclass, and tyro parses its fields.

A field is an option, its annotation the type, its default the default and its docstring the help. What tyro says about
bad arguments becomes one line that names the nearest option.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import tyro
from tyro.conf import AvoidSubcommands, OmitArgPrefixes, Positional, arg

from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from gpt2lab.evaluation.measure import LoadedRun

T = TypeVar("T")
Device = Annotated[str, arg(metavar="auto|cpu|cuda[:N]|mps")]
Split = Literal["train", "val", "test"]
Checkpoint = Annotated[str, arg(metavar="best|last|STEP")]


class Command(ABC):
    """A command: its fields are the options, `run` executes it."""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> Self:
        """Build the command from its arguments. Raises `InputError` on bad ones."""
        return parse(cls, argv, prog)

    @abstractmethod
    def run(self) -> int | None:
        """Execute the command; return the exit code if it may be other than 0. Raises `InputError` on bad input."""


@dataclass(frozen=True)
class ModelOptions:
    """The trained model."""

    run: Positional[Path]
    """Run directory."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to load."""
    device: Device = "auto"
    """Device to run on."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; auto is that of training where the device supports it."""
    quantize: Literal["int8", "int4"] | None = None
    """Round the weights to this many bits, on a CPU: less memory, and int4 often writes faster."""

    def load(self) -> LoadedRun:
        """Open the run and load the weights. Raises `InputError` if they are missing or damaged."""
        from gpt2lab.evaluation.measure import LoadedRun

        return LoadedRun(self.run, self.checkpoint, self.device, self.precision, self.quantize)


Model = Annotated[ModelOptions, OmitArgPrefixes]


def part_of(command: Command, kind: Any) -> Any:
    """Return the options of ``kind``, a dataclass that ``command`` extends, as an object of their own."""
    return kind(**{field.name: getattr(command, field.name) for field in fields(kind)})


def parse(command: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Build a dataclass from arguments; options that are not given come from ``default``.

    Raises:
        InputError: An argument is unknown, missing or of the wrong type.
        SystemExit: ``--help`` was printed.
    """
    return _tyro(command, argv, prog, {} if default is None else {"default": default})


def parse_known(command: type[T], argv: list[str], prog: str, *, help: bool = True) -> tuple[T, list[str]]:
    """Build a dataclass from the arguments that it knows, and return the others.

    Args:
        command: The dataclass.
        argv: Arguments.
        prog: What messages call the program.
        help: Whether ``--help`` prints the help of ``command``; otherwise it is among the others.
    """
    return _tyro(command, argv, prog, {"return_unknown_args": True, "add_help": help})


def _tyro(command: Callable[..., Any], argv: list[str], prog: str, options: dict[str, Any]) -> Any:
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            return tyro.cli(command, args=argv, prog=prog, config=(AvoidSubcommands,), **options)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    wrong = _problems(framed.getvalue())
    for problem in wrong:
        if unknown := re.match(r"Unrecognized options: (--[\w.-]+)", problem):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
                tyro.cli(command, args=["--help"], config=(AvoidSubcommands,), **options)
            flags = sorted(set(re.findall(r"--[a-z][\w.-]*", shown.getvalue())))
            wrong = [problem + _suggest(unknown[1].lower().replace("_", "-"), flags)]
    raise InputError(f"{prog.removeprefix('gpt2lab ')}: {'; '.join(wrong)}; see {prog} --help")


OTHER_NAMES = {
    "--out": ("out-dir", "output-dir", "save-dir"),
    "--data": ("dataset", "dataset-name", "train-file", "input-bin", "data-dir"),
    "--preset": ("model-type", "model-size"),
    "--init": ("init-from", "model-name-or-path"),
    "--resume": ("resume-from-checkpoint", "resume-from"),
    "--steps": ("max-iters", "max-steps", "num-iterations", "num-steps", "lr-decay-iters"),
    "--epochs": ("num-train-epochs", "num-epochs"),
    "--micro-batch --batch-tokens": (
        "batch-size", "device-batch-size", "micro-batch-size", "per-device-train-batch-size",
        "gradient-accumulation-steps", "grad-accum-steps", "total-batch-size", "global-batch-size",
    ),
    "--seq-len --model.n-ctx": ("block-size", "sequence-length", "max-seq-len", "max-seq-length", "context-length"),
    "--eval-every": ("eval-interval", "eval-steps", "val-loss-every"),
    "--eval-tokens": ("eval-iters", "val-max-steps", "max-eval-samples"),
    "--log-every": ("log-interval", "logging-steps"),
    "--checkpoint-every": ("save-steps", "save-every", "save-interval", "always-save-checkpoint"),
    "--keep-last": ("save-total-limit",),
    "--optim.lr": ("learning-rate", "max-lr"),
    "--optim.warmup-steps": ("warmup-iters", "lr-warmup-steps"),
    "--optim.schedule": ("lr-scheduler-type", "decay-lr", "lr-scheduler"),
    "--optim.beta1": ("adam-beta1",),
    "--optim.beta2": ("adam-beta2",),
    "--optim.eps": ("adam-epsilon",),
    "--optim.grad-clip": ("max-grad-norm", "gradient-clip-val", "max-norm"),
    "--optim.name": ("optimizer", "optim"),
    "--precision": ("dtype", "bf16", "fp16", "tf32", "mixed-precision", "torch-dtype"),
    "--activation-checkpointing": ("gradient-checkpointing",),
    "--parallel": ("fsdp", "strategy"),
    "--compile": ("torch-compile",),
    "--tracker": ("report-to", "wandb-log", "wandb-project", "wandb"),
    "--model.n-layer": ("num-hidden-layers", "depth", "num-layers"),
    "--model.n-head": ("num-attention-heads", "num-heads"),
    "--model.n-embd": ("hidden-size", "d-model", "model-dim"),
    "--model.n-kv-head": ("num-key-value-heads",),
    "--samples": ("num-samples", "num-return-sequences"),
    "--prompt": ("start",),
    "--max-new-tokens": ("max-length",),
    "--max-documents": ("num-train-samples", "max-train-samples"),
}  # fmt: skip
"""Options of ours by their names in nanoGPT, nanochat, llm.c, litgpt and Hugging Face's Trainer (docs/options.md)."""


def _suggest(given: str, flags: list[str]) -> str:
    """Return which of the flags an unknown one means, for a message: by its name elsewhere, or the most similar.

    >>> _suggest("--step", ["--optim.lr", "--steps"])
    ' (did you mean "--steps"?)'
    """
    for ours, theirs in OTHER_NAMES.items():
        if given.removeprefix("--") in theirs and ours.split()[0] in flags:
            quoted = ours.replace(" ", '" and "')
            return f' (did you mean "{quoted}"?)'
    spellings = {f"--{flag.lstrip('-').rpartition('.')[2]}": flag for flag in flags} | {flag: flag for flag in flags}
    near = difflib.get_close_matches(given, spellings, n=1, cutoff=0.65)
    return f' (did you mean "{spellings[near[0]]}"?)' if near else ""


_SIMPLER = (
    (r"^Error parsing (-\S+): .*?(?:from \[|base 10: |to float: )'(.*?)'.*", r'\1 is "\2"'),
    (r"^Argument helptext: -\S+ (?:\{None\}\|)?(\S+) .*", r"it must be \1"),
    (r"^it must be INT\b", "it must be an integer"),
    (r"^it must be FLOAT\b", "it must be a number"),
    (r"^(it must be an? \w+)\|\{(\w+)\}$", r"\1 or \2"),
    (r"^Missing value for argument '(\S+)'\. Expected 1 values", r"\1 needs a value"),
    (r"^Error parsing \w+: ", ""),
    (r"Perhaps you meant: (\S+).*", r"did you mean \1?"),
)
"""What tyro says, and how it is said here."""


def _problems(framed: str) -> list[str]:
    """Return what is wrong according to tyro's framed message, with the nearest option where it names one.

    >>> _problems("╭─ Unrecognized ─╮\\n│ Unrecognized options: --x │\\n╰───╯")
    ['Unrecognized options: --x']
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    rows = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"^[─-]+$", "\n".join(rows), flags=re.MULTILINE)
    if "╭" not in text:  # where only ASCII can be printed, the frame's title is a paragraph
        del paragraphs[0]
    parts = [" ".join(paragraph.split()).rstrip(".") for paragraph in paragraphs]
    parts = [part for part in parts if part and "--help" not in part]
    for pattern, simpler in _SIMPLER:
        parts = [re.sub(pattern, simpler, part) for part in parts]
    return parts
