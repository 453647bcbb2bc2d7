"""Reports as files: HTML, PDF, and the model card of an exported model.

    run directories ── gather ──> Report ─┬─ render_html ──> HTML
                                          └─ render_pdf ───> PDF, typeset by typst

An HTML report is one file that includes its style sheet, figures and equations (MathML), and loads nothing. It reads
well in a browser, on a phone and on paper, in light and dark mode. A PDF is typeset from the same content: typst gets
values only, so nothing needs escaping.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gpt2lab
from gpt2lab import formatting, plots
from gpt2lab.compare.output import page_values
from gpt2lab.compare.results import COMPARISON_FILE, Comparison, Outcome, outcomes_by_options, recorded_outcomes
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import read_text, write_atomically
from gpt2lab.formatting import GENERATOR, TEMPLATES, page, printable
from gpt2lab.model.config import GPTConfig
from gpt2lab.report import facts
from gpt2lab.report.content import NO_COVER, Cover, Report, RunContent, evaluations, gather
from gpt2lab.runs import Run

MAX_CHARACTERS = 420
"""Characters shown of a text in a PDF."""


def report_on(paths: Sequence[Path], out: Path, notes: Path | None = None, cover: Cover = NO_COVER) -> Path:
    """Write the report of run directories; the directory of a comparison stands for its runs, with their arms.

    A run of a comparison that was never started is named in the remarks.

    Raises:
        InputError: A path is neither, a comparison.json is damaged, or see `write_report`.
    """
    comparisons = [path for path in paths if (path / COMPARISON_FILE).is_file()]
    loose = outcomes_by_options([Run.open(path) for path in paths if path not in comparisons])
    recorded = [outcome for path in comparisons for outcome in recorded_outcomes(path)]
    if arms := {outcome.arm for outcome in recorded}:  # they have names, and each other run is an arm of its own
        loose = [dataclasses.replace(o, arm=o.path if o.own_name in arms else o.own_name) for o in loose]
    outcomes = [*recorded, *loose]
    started = [Run(Path(o.path)) for o in outcomes if (Path(o.path) / "config.json").is_file()]
    return write_report(started, out, notes, outcomes if len(outcomes) > 1 else None, cover)


def write_report(
    runs: Sequence[Run], out: Path, notes: Path | None = None, outcomes: Sequence[Outcome] | None = None,
    cover: Cover = NO_COVER,
) -> Path:  # fmt: skip
    """Write the report of one run, or of several side by side; return its path.

    Args:
        runs: The runs; what is unfinished, missing or damaged is said in the report.
        out: A file that ends in .html or .pdf. An earlier report there is replaced.
        notes: A Markdown file by the author, such as what could be improved; see `read_markdown`.
        outcomes: What is compared; by default the runs, by the options in which they differ.
        cover: Title, author and date.

    Raises:
        InputError: There is no run; ``out`` is neither .html nor .pdf, its folder is missing, or it exists and is not
            a report; the notes cannot be read, or a formula in them cannot be typeset.
    """
    if not runs:
        raise InputError("a report needs at least one run directory; give the one that gpt2lab train --out wrote")
    _require_replaceable(out)
    report = gather(runs, "" if notes is None else read_text(notes), outcomes, cover)
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


def render_html(report: Report) -> str:
    """Return a report as HTML."""
    shown = (figure for run in report.runs for figure in run.key_figures if report.one_scale or not figure.per_token)
    return page(
        "report.html.jinja",
        report=report,
        figures=_curves(report),
        **({} if report.comparison is None else page_values(report.comparison)),
        points_per_mean=_points_per_mean(report.runs),
        labels=list(dict.fromkeys(figure.label for figure in shown)),
        cite=report.cite,
        facts=facts,
    )


def _curves(report: Report) -> dict[str, str]:
    """Return the training curves of all runs as SVG elements by name; empty if no run logged a loss.

    The losses are left out if those of the runs do not compare.
    """
    runs = [run for run in report.runs if run.curves["train_loss"]]
    if not runs:
        return {}
    norms, speeds = ({run.name: run.curves[column] for run in runs} for column in ("grad_norm", "tokens_per_s"))
    figures = {
        "gradient_norm": plots.over_tokens(norms, "Gradient norm before clipping", legend=not report.one_scale),
        "speed": plots.over_tokens(speeds, "Tokens per second"),
    }
    if report.one_scale:
        figures |= {"wide": _losses(runs, plots.WIDE), "narrow": _losses(runs, plots.NARROW)}
    return {name: plots.page_svg(figure, name) for name, figure in figures.items()}


def _losses(runs: Sequence[RunContent], width: float) -> plots.Figure:
    """Draw the losses of runs, with the entropy floor and published losses if there is only one."""
    floor, references = runs[0].floor, facts.published_losses(runs[0].data)
    return plots.losses({run.name: run.curves for run in runs}, width, floor=floor, references=references)


def _points_per_mean(runs: Sequence[RunContent]) -> int:
    """Return how many rows of metrics.csv a point of the curves averages, at most."""
    return max(plots.points_per_mean(len(run.curves["train_loss"])) for run in runs)


def render_pdf(report: Report) -> bytes:
    """Return a report as a PDF: the first run at length, and how the others compare with it."""
    import matplotlib  # slow to import, as typst is, and needed here only
    import typst

    run = report.runs[0]
    figures = {f"run-{name}": picture.figure for name, picture in run.pictures.items()}
    figures |= {name: picture.figure for name, picture in report.pictures.items()}
    if run.curves["train_loss"]:
        figures["losses"] = _losses([run], plots.PAPER)
    files = {f"{name}.svg": plots.svg(figure).encode() for name, figure in figures.items()}
    values = json.dumps(_pdf_values(report) | {"files": list(files)}, ensure_ascii=False, default=dataclasses.asdict)
    files["report.json"] = printable(values).encode("utf-8")
    files["main.typ"] = (TEMPLATES / "report.typ").read_bytes()
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # the text of the figures is in DejaVu Sans
    return typst.compile(cast(Any, files), format="pdf", font_paths=[fonts], ignore_system_fonts=True)


def _pdf_values(report: Report) -> dict[str, Any]:
    """Return what report.typ reads: plain values only."""
    run, comparison = report.runs[0], report.comparison
    data = run.data
    return {
        "title": report.cover.title or (f"{len(comparison.outcomes)} runs compared" if comparison else report.title),
        "version": gpt2lab.__version__,
        "generator": GENERATOR,
        "byline": report.cover.byline,
        "references": list(report.references.values()),
        "cite": report.cite,
        "notes": report.notes.tree,
        "run": {
            "name": run.name,
            "summary": facts.summary(data),
            "remarks": run.remarks,
            "headline": run.headline,
            "task": facts.task(data),
            "model": facts.model_facts(data),
            "equations": [text.tree for text in facts.equations(data)],
            "biases": facts.has_biases(data),
            "own": facts.is_own(data),
            "training": facts.training_facts(data),
            "schedule": schedule.tree if (schedule := facts.schedule(data)) else None,
            "description": run.description,
            "points_per_mean": _points_per_mean([run]),
            "evaluations": run.evaluations,
            "published": facts.published(data),
            "samples": _samples(run),
            "step": run.strategies[0].step if run.strategies else "",
            "prompted": run.prompted,
            "texts": data.texts and {name: getattr(data.texts, name) for name in ("table", "protocol", "findings")},
            "completion": _completion(run),
            "judgments": run.judgments,
            "commands": facts.commands(data),
            "environment": facts.environment(data),
            "pictures": _captions(run),
        },
        "comparison": None if comparison is None else _compared(comparison) | {"pictures": _captions(report)},
    }


def _compared(comparison: Comparison) -> dict[str, Any]:
    shown = page_values(comparison)
    rows = [row._asdict() | {"cells": [cell._asdict() for cell in row.cells]} for row in shown["rows"]]
    names = ("arms", "options", "findings", "remarks")
    return {"rows": rows, "groups": shown["groups"], "note": shown["note"]} | {n: getattr(comparison, n) for n in names}


def _captions(content: Report | RunContent) -> dict[str, dict[str, Any]]:
    return {name: {"caption": p.caption, "wide": p.wide} for name, p in content.pictures.items()}


def _samples(run: RunContent) -> list[dict[str, Any]]:
    """Return the first sample of each strategy, on one line and cut to what fits on a page."""
    shown = []
    for strategy in run.strategies:
        sample = strategy.samples[0]
        text, cut = _line(sample.continuation if sample.prompt else sample.continuation.lstrip())
        shown.append({"name": strategy.name, "prompt": sample.prompt, "text": text, "cut": cut or sample.cut})
    return shown


def _completion(run: RunContent) -> dict[str, Any] | None:
    """Return the first held-out prompt with its continuations, each on one line and cut."""
    if run.data.texts is None or not run.data.texts.examples:
        return None
    first = run.data.texts.examples[0]
    endings = [(name, *_line(text.strip())) for name, text in first.endings]
    return {"prompt": _line(first.prompt)[0], "endings": endings}


def _line(text: str) -> tuple[str, bool]:
    """Return a text on one line, cut after a word to what fits on a page, and whether it was cut."""
    line = re.sub(r"\s*\n\s*", " ¶ ", text)
    if len(line) <= MAX_CHARACTERS:
        return line, False
    return line[: max(line.rfind(" ", 0, MAX_CHARACTERS), MAX_CHARACTERS // 2)], True


def model_card(run: Run, config: GPTConfig, step: int, name: str, eot: str | None) -> str:
    """Return the model card of a checkpoint in Markdown, with the figures measured on it.

    Args:
        run: The run.
        config: Its architecture.
        step: The step of the checkpoint.
        name: Name for ``from_pretrained``.
        eot: Text of the token that begins a document, if there is one.
    """
    data = RunData(run)
    return page(
        "model_card.md.jinja",
        name=name,
        parameters=formatting.short(data.parameters or 0),
        origin=_origin(data, step),
        config=config,
        eot=eot or "",
        architecture=facts.model_facts(data),
        training=facts.training_facts(data),
        evaluations=evaluations(e for e in data.evals if e.step == step),
    )


def _origin(data: RunData, step: int) -> str:
    """Return where the weights are from."""
    if "data" not in data.config:
        return str(data.state.get("finished"))
    init = data.config.get("init")
    start = f" from {Path(init).name}" if init else ""
    return f"trained{start} for {formatting.plural(step, 'step')} on {facts.data_name(data)}"
