"""The newest ``text.json`` of a run read again: its figures as a table, and what they say in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.generation import Strategy
from gpt2lab.lab import words
from gpt2lab.lab.text_quality import HELD_OUT, Example, Row, TextQuality
from gpt2lab.runs import Run

FILE = "text.json"
READ = ("greedy", "temperature 1.0", "nucleus 0.9")
"""Whose completions are shown beside the true ending: the likeliest text, plain chance, and what lies between."""


@dataclass(frozen=True)
class TextTable:
    """Figures of texts; the first row is the held-out text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The strategy, then its figures."""
    protocol: str
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Completion:
    """A held-out beginning, how it truly ends, and how the model ended it."""

    prompt: str
    endings: tuple[tuple[str, str], ...]
    """What wrote it, and the ending; the true one first."""


def saved_texts(run: Run) -> TextQuality | None:
    """Return what was measured of the texts of a run's newest step that has it; None where none has.

    Raises:
        InputError: The file is damaged.
    """
    path = run.newest_evaluation(FILE)
    if path is None:
        return None
    values = read_json(path)
    try:
        rows = tuple(_row(row) for row in values["rows"])
        examples = tuple(Example(e["prompt"], e["held_out"], dict(e["completions"])) for e in values["examples"])
        return TextQuality(rows, examples, str(values["protocol"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: text.json is damaged ({error!r}); take the figures again") from error


def _row(row: Mapping[str, Any]) -> Row:
    strategy = None if row["strategy"] is None else Strategy(**row["strategy"])
    return Row(str(row["name"]), strategy, {key: float(value) for key, value in row["figures"].items()})


def text_table(quality: TextQuality) -> TextTable:
    """Return the figures as they are read."""
    columns = tuple(dict.fromkeys(name for row in quality.rows for name in row.figures))
    rows = tuple(
        (row.name, *(words.number(row.figures[name], 3) if name in row.figures else "" for name in columns))
        for row in quality.rows
    )
    return TextTable(tuple(c.replace("_", " ") for c in columns), rows, quality.protocol, findings(quality))


def completions(quality: TextQuality) -> tuple[Completion, ...]:
    """Return the beginnings that were kept, each with its true ending before those of `READ`."""
    return tuple(
        Completion(e.prompt, ((HELD_OUT, e.held_out), *((n, e.completions[n]) for n in READ if n in e.completions)))
        for e in quality.examples
    )


def findings(quality: TextQuality) -> tuple[str, ...]:
    """Say what the figures say of the likeliest text, and of each kind of sampling where it is about as diverse."""
    if not quality.drawn or quality.drawn[0].strategy is not None:
        return ()
    human, *rows = quality.drawn
    said = [_of_greedy(human, row) for row in rows if row.family == "greedy"]
    nearest = _as_diverse(human, rows)
    return (*said, *([_of_diverse(human, nearest)] if nearest else []))


def _of_greedy(human: Row, row: Row) -> str:
    bleu, perplexity = (
        f"{words.number(row.figures[name], 3)} against {words.number(human.figures[name], 3)}"
        for name in ("self_bleu", "perplexity")
    )
    return (
        f"Greedy decoding: self-BLEU {bleu} of the held-out text, perplexity {perplexity}; "
        f"{_share(row, 'repetition')} of its texts end in a loop."
    )


def _as_diverse(human: Row, rows: Sequence[Row]) -> list[Row]:
    """Return the row of each family that is nearest to the held-out text in self-BLEU."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.family != "greedy":
            families.setdefault(row.family, []).append(row)
    return [
        min(family, key=lambda row: abs(row.figures["self_bleu"] - human.figures["self_bleu"]))
        for family in families.values()
    ]


def _of_diverse(human: Row, rows: Sequence[Row]) -> str:
    metric, what = (
        ("grammatical", "grammatical") if "grammatical" in human.figures else ("repetition", "ending in a loop")
    )
    each = "; ".join(
        f"{row.name} (self-BLEU {words.number(row.figures['self_bleu'], 3)}): perplexity "
        f"{words.number(row.figures['perplexity'], 3)}, {_share(row, metric)} {what}"
        for row in rows
    )
    return (
        "Each kind of sampling at the setting that is nearest to the held-out text in diversity (self-BLEU "
        f"{words.number(human.figures['self_bleu'], 3)}, perplexity {words.number(human.figures['perplexity'], 3)}): "
        f"{each}."
    )


def _share(row: Row, metric: str) -> str:
    return words.percent(100 * row.figures[metric]) if metric in row.figures else words.MISSING
