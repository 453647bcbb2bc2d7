"""What a run directory holds, read for a report: what is missing or damaged is said, and the rest goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.lab.pictures import PositionCurve, saved_positions
from gpt2lab.lab.text_quality import TextQuality
from gpt2lab.lab.text_table import saved_texts
from gpt2lab.runs import Row, Run
from gpt2lab.training.config import STREAM

T = TypeVar("T")
_CHECKPOINT = re.compile(r"step_\d{8,}")


@dataclass(frozen=True)
class Evaluated:
    """A row of evals.csv."""

    step: int
    task: str
    split: str
    protocol: str
    metric: str
    value: float


@dataclass(frozen=True)
class Written:
    """A line of samples.jsonl. ``text`` begins with the ``prompt``."""

    step: int
    strategy: str
    prompt: str
    text: str
    verdict: str


@dataclass(frozen=True)
class Record:
    """What a run directory holds; a part that cannot be read is empty and named in ``damage``."""

    run: Run
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[Row]
    evals: list[Evaluated]
    samples: list[Written]
    state: dict[str, Any]
    """The newest checkpoint's scalars; empty where there is none."""
    parameters: int | None
    """Of the unpadded vocabulary, the tied head counted once; None where there are no weights."""
    texts: TextQuality | None
    """What the texts of each strategy are like; None where it was not measured."""
    positions: PositionCurve | None
    """Loss by position; None where it was not measured."""
    damage: tuple[str, ...]

    def options(self, group: str) -> dict[str, Any]:
        """Return a group of the configuration, such as ``model``; empty where there is none."""
        options = self.config.get(group)
        return options if isinstance(options, dict) else {}

    @property
    def streamed(self) -> bool:
        """Whether the corpus was prepared in rounds while training went on; ``epoch`` counts these then."""
        return str(self.config.get("data")).startswith(STREAM)

    def column(self, name: str) -> list[float]:
        """Return the finite values of a column of metrics.csv, in the order of steps."""
        return [value for row in self.metrics if (value := row[name]) is not None and math.isfinite(value)]

    def test_figures(self) -> dict[str, float]:
        """Return the newest figures of perplexity on the test set by name, all taken under one protocol."""
        return self._figures_on("test")

    def held_out_figures(self) -> tuple[str, dict[str, float]]:
        """Return "test" and its figures; where there are none, "validation" and what was measured there."""
        test = self.test_figures()
        val = {} if test else self._figures_on("val")
        return ("validation", val) if val else ("test", test)

    def _figures_on(self, split: str) -> dict[str, float]:
        taken = [e for e in self.evals if (e.task, e.split) == ("perplexity", split)]
        if not taken:
            return {}
        newest = max(reversed(taken), key=lambda e: e.step)
        return {e.metric: e.value for e in taken if (e.step, e.protocol) == (newest.step, newest.protocol)}


def read(run: Run) -> Record:
    """Read a run directory; nothing in it that is missing or damaged raises."""
    damage: list[str] = []

    def attempt(part: Callable[[], T], otherwise: T) -> T:
        try:
            return part()
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            damage.append(_explain(error))
            return otherwise

    config = attempt(lambda: _mapping(run.config), {})
    checkpoint = _newest_checkpoint(run)
    return Record(
        run=run,
        config=config,
        environment=attempt(lambda: _mapping(run.environment), {}),
        metrics=attempt(run.metrics, []),
        evals=attempt(lambda: [_evaluated(row) for row in run.evals()], []),
        samples=attempt(lambda: _samples(run), []),
        state=attempt(lambda: _mapping(read_json(checkpoint / "state.json")), {}) if checkpoint else {},
        parameters=attempt(lambda: _count_parameters(checkpoint / "model.safetensors", config), None)
        if checkpoint
        else None,
        texts=attempt(lambda: saved_texts(run), None),
        positions=attempt(lambda: saved_positions(run), None),
        damage=tuple(damage),
    )


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected named values, found {str(value)[:40]!r}; the run directory is damaged")
    return value


def _evaluated(row: dict[str, str]) -> Evaluated:
    try:
        return Evaluated(
            int(row["step"]), row["task"], row["split"], row["protocol"], row["metric"], float(row["value"])
        )
    except ValueError as error:
        raise InputError(
            f"evals.csv: {row['metric']} of {row['task']} has no number ({error}); it is damaged"
        ) from error


def _samples(run: Run) -> list[Written]:
    try:
        return [
            Written(int(s["step"]), str(s["strategy"]), str(s["prompt"]), str(s["text"]), str(s.get("verdict", "")))
            for s in run.samples()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"samples.jsonl: a line is no sample ({type(error).__name__}: {error}); it is damaged"
        ) from error


def _newest_checkpoint(run: Run) -> Path | None:
    """Return the folder of the newest checkpoint that has its manifest."""
    folders = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    complete = [f for f in folders if _CHECKPOINT.fullmatch(f.name) and (f / "manifest.json").is_file()]
    return max(complete, key=lambda folder: int(folder.name.removeprefix("step_")), default=None)


def _count_parameters(weights: Path, config: dict[str, Any]) -> int:
    """Count from the shapes that the file's header lists, whatever the architecture; no tensor is read."""
    try:
        with safe_open(weights, framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: cannot be read ({error}); the checkpoint is damaged") from error
    rows, width = shapes["wte.weight"]
    return sum(math.prod(shape) for shape in shapes.values()) - (rows - config["model"]["vocab_size"]) * width
