"""Write the report of runs, and the model card of an exported model.

run directories ── gather ──> Report ─┬─ render_html ──> HTML
                                      └─ render_pdf ───> PDF
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gpt2lab import formatting
from gpt2lab.compare.results import COMPARISON_FILE, Outcome, outcomes_by_options, recorded_outcomes
from gpt2lab.errors import InputError
from gpt2lab.evaluation.run_data import RunData, read_run
from gpt2lab.files import write_atomically
from gpt2lab.model.config import GPTConfig
from gpt2lab.pages import GENERATOR, markdown_page
from gpt2lab.report.content import evaluations, gather
from gpt2lab.report.facts import data_name, model_facts, training_facts
from gpt2lab.report.html import render_html
from gpt2lab.report.pdf import render_pdf
from gpt2lab.runs import Run


def report_on(paths: Sequence[Path], out: Path, notes: Path | None = None) -> Path:
    """Write the report of run directories; the directory of a comparison stands for its runs, with their arms.

    A run of a comparison that was never started is named in the remarks.

    Raises:
        InputError: A path is neither, a comparison.json is damaged, or see `write_report`.
    """
    comparisons = [path for path in paths if (path / COMPARISON_FILE).is_file()]
    loose = outcomes_by_options([Run.open(path) for path in paths if path not in comparisons])
    if comparisons:  # their arms have names, and each other run is called by its path
        loose = [dataclasses.replace(outcome, arm=outcome.path) for outcome in loose]
    outcomes = [*(outcome for path in comparisons for outcome in recorded_outcomes(path)), *loose]
    started = [Run(Path(o.path)) for o in outcomes if (Path(o.path) / "config.json").is_file()]
    return write_report(started, out, notes, outcomes if len(outcomes) > 1 else None)


def write_report(
    runs: Sequence[Run], out: Path, notes: Path | None = None, outcomes: Sequence[Outcome] | None = None
) -> Path:
    """Write the report of one run, or of several side by side; return its path.

    Args:
        runs: The runs; what is unfinished, missing or damaged is said in the report.
        out: A file that ends in .html or .pdf. An earlier report there is replaced.
        notes: A text file by the author, such as what could be improved; empty lines separate its paragraphs.
        outcomes: What is compared; by default the runs, by the options in which they differ.

    Raises:
        InputError: There is no run; ``out`` is neither .html nor .pdf, its folder is missing, or it exists and is not
            a report; the notes cannot be read.
    """
    if not runs:
        raise InputError("a report needs at least one run directory; give the one that gpt2lab train --out wrote")
    _require_replaceable(out)
    report = gather(runs, "" if notes is None else _read_notes(notes), outcomes)
    write_atomically(out, render_pdf(report) if out.suffix.lower() == ".pdf" else render_html(report))
    return out


def _require_replaceable(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm", ".pdf"):
        raise InputError(f"{out}: a report is an HTML or PDF file; give a name that ends in .html or .pdf")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it, or give another --out")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of an HTML file")
    if out.exists() and GENERATOR.encode() not in out.read_bytes():
        raise InputError(f"{out} exists and is not a report that gpt2lab wrote; give another --out")


def _read_notes(notes: Path) -> str:
    try:
        return notes.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{notes}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{notes}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def model_card(run: Run, config: GPTConfig, step: int, name: str, eot: str | None) -> str:
    """Return the model card of a checkpoint in Markdown, with the figures measured on it.

    Args:
        run: The run.
        config: Its architecture.
        step: The step of the checkpoint.
        name: Name for ``from_pretrained``.
        eot: Text of the token that begins a document, if there is one.
    """
    data = read_run(run)
    return markdown_page(
        "model_card.md.jinja",
        name=name,
        parameters=formatting.short(data.parameters or 0),
        origin=_origin(data, step),
        config=config,
        eot=eot or "",
        architecture=model_facts(data),
        training=training_facts(data),
        evaluations=evaluations(e for e in data.evals if e.step == step),
    )


def _origin(data: RunData, step: int) -> str:
    """Return where the weights are from."""
    if "data" not in data.config:
        return str(data.state.get("finished"))
    init = data.config.get("init")
    start = f" from {Path(init).name}" if init else ""
    return f"trained{start} for {formatting.plural(step, 'step')} on {data_name(data)}"
