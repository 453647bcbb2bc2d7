"""``gpt2lab quickstart``, ``check`` and ``report``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

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


def report(runs: Positional[tuple[Path, ...]], out: Path | None = None, notes: Path | None = None) -> int:
    """Make a report of runs, as a PDF or as one self-contained HTML file.

    Args:
        runs: Directories of runs, or of a comparison.
        out: File to write, .pdf or .html; without it, report.html in the first directory.
        notes: A text file of your own, such as what could be improved; empty lines part its paragraphs.
    """
    from gpt2lab.lab.report import runs_of, write_report

    if not runs:
        raise InputError("no run given; name the directory of a run")
    print(write_report(runs_of(runs), out or runs[0] / "report.html", notes))
    return 0
