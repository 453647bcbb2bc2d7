"""The newest ``text.json`` of a run as a table: what each strategy's texts are like, beside held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.lab import words
from gpt2lab.runs import EVALUATIONS, Run


@dataclass(frozen=True)
class TextTable:
    """Figures of texts; the first row is the held-out text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The strategy, then its figures."""
    protocol: str


def text_figures(run: Run) -> dict[str, dict[str, float]]:
    """Return the figures by row and name; empty where they were not taken.

    Raises:
        InputError: The file is damaged.
    """
    values = _newest(run)
    try:
        rows = {str(row["name"]): row["figures"] for row in values.get("rows", ())}
        return {name: {key: float(value) for key, value in figures.items()} for name, figures in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.path}: text.json is damaged ({error!r}); take the figures again") from error


def text_table(run: Run) -> TextTable | None:
    """Return the table; None where the figures were not taken. Raises what `text_figures` does."""
    figures = text_figures(run)
    if not figures:
        return None
    columns = tuple(dict.fromkeys(name for row in figures.values() for name in row))
    rows = tuple(
        (name, *(words.number(row[column], 3) if column in row else "" for column in columns))
        for name, row in figures.items()
    )
    return TextTable(tuple(c.replace("_", " ") for c in columns), rows, str(_newest(run).get("protocol", "")))


def _newest(run: Run) -> dict[str, Any]:
    path = max(run.path.glob(f"{EVALUATIONS}/step_*/text.json"), default=None)
    values = {} if path is None else read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: not named values; take the figures again")
    return values
