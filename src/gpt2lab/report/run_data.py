"""What a run directory holds, read for a report: what is missing or damaged is said, and the rest goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from gpt2lab.errors import InputError
from gpt2lab.evaluation.text_quality import TextQuality, saved_texts
from gpt2lab.files import read_json
from gpt2lab.model.inspection import attention_weights
from gpt2lab.report.plots import PositionCurve, saved_positions
from gpt2lab.runs import MetricsRow, Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import STREAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    metrics: list[MetricsRow]
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


TOKENS = 22
LARGEST = 200_000_000
"""Parameters up to which a model is loaded for a picture."""


@dataclass(frozen=True)
class AttentionMap:
    """Weights of the first and the last layer, the mean over their heads."""

    tokens: tuple[str, ...]
    first: tuple[tuple[float, ...], ...]
    """(T, T): row i is what token i reads."""
    last: tuple[tuple[float, ...], ...]
    layers: int
    step: int


def attention_map(record: Record) -> AttentionMap | None:
    """Read a run's newest sample with its best checkpoint; None where either is missing, damaged or too large.

    What is missing or damaged is named among the report's remarks already.
    """
    if not record.samples or not 0 < (record.parameters or 0) <= LARGEST:
        return None
    try:
        model, checkpoint = load_model(record.run, "best")
        tokenizer = Tokenizer.load(record.run.tokenizer)
    except InputError:
        return None
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    ids = [*start, *tokenizer.encode(record.samples[-1].text[:2_000])][: min(TOKENS, model.config.n_ctx)]
    if len(ids) < 2:
        return None
    means = attention_weights(model, torch.tensor([ids])).mean(dim=2)[:, 0]  # (L, T, T)
    first, last = (tuple(tuple(row) for row in means[layer].tolist()) for layer in (0, -1))
    texts = tuple("start" if i == tokenizer.eot else _visible(tokenizer.decode([i])) for i in ids)
    return AttentionMap(texts, first, last, len(means), checkpoint.step)


def _visible(text: str) -> str:
    """Return a token as a label: spaces and line ends are seen."""
    return "".join({" ": "␣", "\n": "↵"}.get(c, c if c.isprintable() else "�") for c in text)


def draw(found: AttentionMap) -> Figure:
    """Draw the first and the last layer side by side, dark where much is read; one layer stands alone."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    layers = [("Layer 1", found.first)]
    if found.layers > 1:
        layers.append((f"Layer {found.layers}", found.last))
    figure = Figure(figsize=(3.6 * len(layers) + 0.3, 3.7), layout="constrained")
    places = range(len(found.tokens))
    for index, (title, weights) in enumerate(layers):
        axes = figure.add_subplot(1, len(layers), index + 1)
        axes.imshow(weights, cmap="Greys", norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
        axes.set_title(f"{title}, mean over its heads", fontsize=8, loc="left")
        axes.set_xticks(places, found.tokens, rotation=90, fontsize=6)
        axes.set_yticks(places, found.tokens if index == 0 else [""] * len(found.tokens), fontsize=6)
        axes.tick_params(length=0)
        axes.set_xlabel("read", fontsize=7)
        if index == 0:
            axes.set_ylabel("reading", fontsize=7)
    return figure
