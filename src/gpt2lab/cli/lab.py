"""``gpt2lab quickstart``, ``check``, ``plan`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gpt2lab.errors import InputError


def quickstart(text: Path | None = None, out: Path | None = None, seed: int = 1337, resume: bool = False) -> int:
    """From text to a trained GPT-2 and its report, without any download.

    Args:
        text: A text file to learn from; without it, stories that the program writes itself.
        out: Directory of the run, which must not exist; without it, runs/quickstart, with a number where that exists.
            The prepared data lies beside it.
        seed: Decides the initial weights, the order of the data and the samples.
        resume: Go on with an interrupted quickstart: that of out, else runs/quickstart.
    """
    from gpt2lab.lab.quickstart import run_quickstart

    run_quickstart(text, out, seed, resume)
    return 0


def check(data: Path | None = None, device: str = "auto") -> int:
    """Check that everything works on this machine; exit code 1 where something does not.

    Args:
        data: Directory that gpt2lab data prepare wrote, to read a batch of; without it, stories.
        device: auto, cpu, cuda, cuda:1 or mps.
    """
    from gpt2lab.lab.check import run_checks

    return 0 if run_checks(data, device) else 1


def plan(
    preset: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    tokens: Annotated[str | None, arg(metavar="N")] = None,
    seq_len: int | None = None,
    batch_tokens: int | None = None,
    micro_batch: int | None = None,
    parallel: Literal["auto", "ddp", "fsdp"] = "auto",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] | None = None,
    mfu: float | None = None,
    from_: Annotated[Path | None, arg(name="from", metavar="RUN")] = None,
    json: bool = False,
) -> int:
    """Say what a run will take, before it is paid for: memory, time, operations, disk.

    Args:
        preset: Model and recipe: nano tiny distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl; gpt2 unless given.
        gpu: H100 and others by their name, or cpu for this machine; H100 unless given, with --from the run's.
        gpus: How many; of cpu, such machines, or with --from such processes; 1 unless given, or as many as it had.
        tokens: Tokens to train on, such as 10B or 300M; without it, 20 for each parameter.
        seq_len: Tokens a sequence; without it, the model's context.
        batch_tokens: Tokens a step; without it, the recipe's.
        micro_batch: Sequences a pass of one GPU; without it, the most that fit and divide the step.
        parallel: ddp keeps the whole model on each GPU, fsdp a share of it; auto takes what --from's run did, else fsdp
            where weights, gradients and moments would fill more than half of a GPU.
        precision: What the products run in; bf16 unless given.
        mfu: Share of the peak rate that the run reaches without activation checkpointing, communication included; 0.4
            unless given, which is a guess: a short run's metrics.csv has your machine's, and --from goes by it.
        from_: A short run whose architecture, batch and measured speed to go by.
        json: Print every figure as JSON, in bytes and seconds.
    """
    from gpt2lab.lab.commands.plan import print_forecast
    from gpt2lab.lab.forecast import ask, ask_run, count_of, forecast
    from gpt2lab.runs import Run

    wanted = None if tokens is None else count_of(tokens)
    if from_ is None:
        machine = (gpu or "H100", 1 if gpus is None else gpus, precision or "bf16", parallel)
        question = ask(
            preset or "gpt2", *machine, seq_len, batch_tokens, wanted, micro_batch, 0.4 if mfu is None else mfu
        )
    else:
        fixed = {"preset": preset, "seq-len": seq_len, "batch-tokens": batch_tokens, "micro-batch": micro_batch}
        fixed |= {"precision": precision, "mfu": mfu}
        if given := [f"--{name}" for name, value in fixed.items() if value is not None]:
            raise InputError(f"--from takes the run's own {', '.join(given)}; leave out either")
        question = ask_run(Run.open(from_), gpu, gpus, parallel, wanted)
    print_forecast(forecast(question), json)
    return 0


def report(runs: Positional[tuple[Path, ...]], out: Path | None = None, notes: Path | None = None) -> int:
    """Make a report of runs, as a PDF or as one self-contained HTML file.

    Args:
        runs: Directories of runs, or of a comparison.
        out: File to write, .pdf or .html; without it, report.html in the first directory.
        notes: A text file of your own, such as what could be improved; empty lines part its paragraphs.
    """
    from gpt2lab.report.html import report_on

    if not runs:
        raise InputError("no run given; name the directory of a run")
    print(report_on(runs, out or runs[0] / "report.html", notes))
    return 0
