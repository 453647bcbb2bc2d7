"""The report of runs, as a PDF or as one HTML file that loads nothing: content first (`gather.py`), then set in type.

    run directories ── gather ──> Report ─┬─ render ─────> HTML, with its figures as SVG inside it
                                          └─ render_pdf ─> PDF (`pdf.py`)

The HTML file carries its style sheet, its pictures and its equations (MathML), forbids itself to load anything else,
and reads well on a page, a phone and paper, light and dark.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import gpt2lab
from gpt2lab import formatting
from gpt2lab.compare import output as comparison_figures
from gpt2lab.compare.output import FILE as COMPARISON
from gpt2lab.compare.output import NOTE, TITLES, lines, outcomes_of, recorded_outcomes
from gpt2lab.compare.results import Outcome
from gpt2lab.errors import InputError
from gpt2lab.files import write_atomically
from gpt2lab.model.config import GPTConfig
from gpt2lab.report import figures
from gpt2lab.report.content import evaluations, gather
from gpt2lab.report.document import Report
from gpt2lab.report.facts import CITE, data_name, model_facts, training_facts
from gpt2lab.report.figures import pictures_of
from gpt2lab.report.page import GENERATOR, TEMPLATES, page
from gpt2lab.report.pdf import render_pdf
from gpt2lab.report.plots import CAPTION, png
from gpt2lab.report.run_data import Record, read
from gpt2lab.runs import Run


@dataclass(frozen=True)
class Figures:
    """The pictures of a report as SVG elements, and what they show in words."""

    losses_wide: str | None
    """None where the runs' losses per token do not compare."""
    losses_narrow: str | None
    gradient_norm: str
    speed: str
    described: tuple[str, ...]
    stretch: int
    """Rows of metrics.csv that a point stands for, at most."""


def write_report(
    runs: Sequence[Run], out: Path, notes: Path | None = None, outcomes: Sequence[Outcome] | None = None
) -> Path:
    """Write the report of one run, or of several beside each other, and return its path.

    Args:
        runs: What to report on; what is unfinished, missing or damaged in one is said in the report.
        out: A file that ends in .html or .pdf. An earlier report of that name is replaced.
        notes: A text file that the author adds, such as what could be improved; empty lines part its paragraphs.
        outcomes: What is compared, where the arms have names; without it, the runs by the options that differ.

    Raises:
        InputError: No run is given; ``out`` is neither .html nor .pdf, lies in no folder, or exists and is not a
            report; the notes cannot be read.
    """
    if not runs:
        raise InputError("a report needs at least one run directory; give the one that gpt2lab train --out wrote")
    _require_replaceable(out)
    report = gather(runs, "" if notes is None else _text_of(notes), outcomes)
    write_atomically(out, render_pdf(report) if out.suffix.lower() == ".pdf" else render(report))
    return out


def report_on(paths: Sequence[Path], out: Path, notes: Path | None = None) -> Path:
    """Write the report of run directories; a comparison's directory stands for its runs, by its own names of the arms.

    A run that a comparison names and that never began is named in the remarks.

    Raises:
        InputError: A path is neither, a comparison.json is damaged, or what `write_report` raises.
    """
    outcomes = _outcomes(paths)
    begun = [run for run in (Run(Path(o.path)) for o in outcomes) if (run.path / "config.json").is_file()]
    return write_report(begun, out, notes, outcomes if len(outcomes) > 1 else None)


def _outcomes(paths: Sequence[Path]) -> list[Outcome]:
    compared = [path for path in paths if (path / COMPARISON).is_file()]
    loose = outcomes_of([Run.open(path) for path in paths if path not in compared])
    if compared:  # arms that have names, and beside them each run by its path
        loose = [dataclasses.replace(outcome, arm=outcome.path) for outcome in loose]
    return [*(outcome for path in compared for outcome in recorded_outcomes(path)), *loose]


def _text_of(notes: Path) -> str:
    try:
        return notes.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{notes}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{notes}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def render(report: Report) -> str:
    """Set a report as HTML."""
    return page(
        "report.html.jinja",
        report=report,
        figures=_figures(report),
        generator=GENERATOR,
        lines=[] if report.comparison is None else lines(report.comparison),
        pictures=_pictures(report),
        titles=TITLES,
        note=NOTE,
        labels=_labels(report),
        caption_of_texts=CAPTION,
        cite=CITE,
    )


def _require_replaceable(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm", ".pdf"):
        raise InputError(f"{out}: a report is an HTML or PDF file; give a name that ends in .html or .pdf")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or give another --out")
    if not out.exists():
        return
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of an HTML file")
    if GENERATOR.encode() not in out.read_bytes():
        raise InputError(f"{out} exists and is not a report that gpt2lab wrote; give another --out")


def _figures(report: Report) -> Figures | None:
    """Draw what there is to draw; None where no run has recorded a loss."""
    runs = report.runs
    recorded = [run for run in runs if run.curves.train_loss.x]
    if not recorded:
        return None
    alone = len(runs) == 1
    described = tuple(run.curves.described if alone else f"{run.name}: {run.curves.described}" for run in runs)
    together = _on_one_scale(report)
    return Figures(
        losses_wide=figures.losses(recorded, figures.WIDE) if together else None,
        losses_narrow=figures.losses(recorded, figures.NARROW) if together else None,
        gradient_norm=figures.gradient_norm(recorded, legend=not together),
        speed=figures.speed(recorded),
        described=described,
        stretch=figures.stretch(recorded),
    )


def _pictures(report: Report) -> dict[str, str]:
    """Return the pictures of a comparison by name, and those of each run by its place, in Base64."""
    drawn = {} if report.comparison is None else comparison_figures.draw(report.comparison)
    for index, run in enumerate(report.runs, start=1):
        drawn |= {f"{name}-{index}": figure for name, figure in pictures_of(run).items()}
    return {name: base64.b64encode(png(figure)).decode("ascii") for name, figure in drawn.items()}


def _labels(report: Report) -> list[str]:
    """Return the key figures that any of the runs has and that compare, in order."""
    together = _on_one_scale(report)
    shown = (figure for run in report.runs for figure in run.key_figures if together or not figure.per_token)
    return list(dict.fromkeys(figure.label for figure in shown))


def _on_one_scale(report: Report) -> bool:
    return len(report.runs) == 1 or report.comparison is None or report.comparison.one_scale


def model_card(run: Run, config: GPTConfig, step: int, name: str, eot: str | None) -> str:
    """Return the card of a run's weights after a step, in Markdown; its figures are those taken of these weights.

    Args:
        run: The run.
        config: Its architecture.
        step: The checkpoint's.
        name: Under which ``from_pretrained`` will find the model.
        eot: Text of the token that documents begin with, where there is one.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    record = read(run)
    return environment.get_template("model_card.md.jinja").render(
        name=name,
        parameters=formatting.short(record.parameters or 0),
        origin=_origin(record, step),
        config=config,
        eot=eot or "",
        architecture=model_facts(record),
        training=training_facts(record),
        evaluations=evaluations(e for e in record.evals if e.step == step),
        version=gpt2lab.__version__,
    )


def _cell(text: str) -> str:
    """Return text that a Markdown table holds in one cell."""
    return " ".join(text.replace("|", "\\|").split())


def _origin(record: Record, step: int) -> str:
    """Say where weights are from."""
    if "data" not in record.config:
        return str(record.state.get("finished"))
    begun = f" from the weights of {Path(record.config['init']).name}" if record.config.get("init") else ""
    return f"trained{begun} for {formatting.plural(step, 'step')} on {data_name(record)}"
