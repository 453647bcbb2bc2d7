"""What a run directory holds, for a comparison or a report; a damaged part is left empty and listed in `damage`.

RunData ─┬─ config, environment, metrics, evals, samples      files of the run
         ├─ state, parameters                                 of its newest checkpoint
         └─ texts, positions                                  saved evaluations of its newest step that has them
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import POSITIONS_FILE, PositionCurve
from gpt2lab.evaluation.text_quality import TEXT_FILE, TextQuality
from gpt2lab.files import from_json
from gpt2lab.imports import import_from
from gpt2lab.model.gpt import attention_weights
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import list_checkpoints, load_model, load_tokenizer
from gpt2lab.training.config import STREAM

T = TypeVar("T")


@dataclass(frozen=True)
class EvalRow:
    """A row of evals.csv."""

    step: int
    task: str
    split: str
    protocol: str
    metric: str
    value: float


@dataclass(frozen=True)
class SampleText:
    """A line of samples.jsonl. ``text`` begins with the ``prompt``."""

    step: int
    strategy: str
    prompt: str
    text: str
    verdict: str = ""


class RunData:
    """What a run directory holds; nothing that is missing or damaged raises."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.damage: list[str] = []
        """What cannot be read, in one line each; that part is empty."""
        self.refused: list[str] = []
        """Why the code that the model needs was not run; what the run directory holds is known all the same."""
        for path in (run.path / name for name in ("metrics.csv", "evals.csv", "samples.jsonl")):
            if path.is_file() and not self._read(path.read_bytes, b"\n").endswith(b"\n"):
                what = "ends within a line, which is left out; its write was interrupted, or it was cut"
                self.damage.append(f"{path}: {what}")
        self.config = self._read(lambda: run.config, {})
        if self.config:
            self._read(lambda: import_from(run), None, self.refused)
        self.environment = self._read(lambda: run.environment, {})
        self.metrics = self._read(run.metrics, [])
        self.evals = self._read(lambda: [_eval_row(row) for row in run.evals()], [])
        file = run.path / "samples.jsonl"
        self.samples = self._read(lambda: [from_json(SampleText, s, file, others=True) for s in run.samples()], [])
        self.state: dict[str, Any] = {}
        """The scalars of the newest checkpoint; empty if there is none."""
        self.parameters: int | None = None
        """Without the padding of the vocabulary, the tied head counted once; None if there are no weights."""
        if complete := [c for c in list_checkpoints(run) if (c.path / "manifest.json").is_file()]:
            self.state = self._read(lambda: complete[-1].state, {})
            self.parameters = self._read(lambda: _count_parameters(complete[-1].path, self.config), None)
        self.texts = self._read(lambda: run.saved_evaluation(TEXT_FILE, TextQuality), None)
        """Quality of the texts of each decoding strategy, if it was measured."""
        self.positions = self._read(lambda: run.saved_evaluation(POSITIONS_FILE, PositionCurve), None)
        """Loss by position, if it was measured."""

    def _read(self, read: Callable[[], T], default: T, problems: list[str] | None = None) -> T:
        try:
            return read()
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            problems = self.damage if problems is None else problems
            problems.append(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
            return default

    def options(self, group: str) -> dict[str, Any]:
        """Return a group of the configuration, such as ``model``; empty if there is none."""
        options = self.config.get(group)
        return options if isinstance(options, dict) else {}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data and the tokenizer, as far as the newest checkpoint has them."""
        fingerprints = self.state.get("fingerprints")
        return {k: str(v) for k, v in fingerprints.items()} if isinstance(fingerprints, dict) else {}

    @property
    def streamed(self) -> bool:
        """Whether the corpus was prepared in shards during training, which ``epoch`` counts then."""
        return str(self.config.get("data")).startswith(STREAM)

    def column(self, name: str) -> list[float]:
        """Return the finite values of a column of metrics.csv, in the order of steps."""
        return [y for _, y in self.curve("step", name)]

    def curve(self, x: str, y: str) -> list[tuple[float, float]]:
        """Return two columns of metrics.csv as points, where both have a value and that of ``y`` is finite."""
        pairs = [(row[x], row[y]) for row in self.metrics]
        return [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(b)]

    def test_figures(self) -> dict[str, float]:
        """Return the newest perplexity figures on the test set by name, all of one protocol."""
        return self._figures_on("test")

    def held_out_figures(self) -> tuple[str, dict[str, float]]:
        """Return "test" and its figures; if there are none, "validation" and its figures."""
        test = self.test_figures()
        val = {} if test else self._figures_on("val")
        return ("validation", val) if val else ("test", test)

    def _figures_on(self, split: str) -> dict[str, float]:
        rows = [e for e in self.evals if (e.task, e.split) == ("perplexity", split)]
        if not rows:
            return {}
        newest = max(reversed(rows), key=lambda e: e.step)
        return {e.metric: e.value for e in rows if (e.step, e.protocol) == (newest.step, newest.protocol)}


def _eval_row(row: dict[str, str]) -> EvalRow:
    return EvalRow(**row | {"step": int(row["step"]), "value": float(row["value"])})  # type: ignore[arg-type]


def _count_parameters(checkpoint: Path, config: dict[str, Any]) -> int:
    """Count from the shapes in the header of the weights, whatever the architecture; no tensor is read."""
    weights = checkpoint / "model.safetensors"
    try:
        with safe_open(weights, framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: cannot be read ({error}); the checkpoint is damaged") from error
    heads = [shapes[name] for name in ("wte.weight", "lm_head.weight") if name in shapes]
    padding = sum((rows - config["model"]["vocab_size"]) * width for rows, width in heads)
    return sum(math.prod(shape) for shape in shapes.values()) - padding


MAX_TOKENS = 22
MAX_PARAMETERS = 200_000_000
"""Larger models are not loaded for a figure."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of the first and the last layer over a text, the mean over their heads."""

    tokens: tuple[str, ...]
    layers: dict[str, list[list[float]]]
    """(T, T) weights by title, such as "Layer 1"; row i holds the weights of query i."""
    step: int


def attention_map(data: RunData) -> AttentionMap | None:
    """Run the best checkpoint on the newest sample; None if there is neither, or the model is too large.

    Raises:
        InputError: The checkpoint or the tokenizer is damaged.
    """
    if not data.samples or not 0 < (data.parameters or 0) <= MAX_PARAMETERS:
        return None
    model, checkpoint = load_model(data.run, "best")
    tokenizer = load_tokenizer(data.run, checkpoint)
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    ids = [*start, *tokenizer.encode(data.samples[-1].text[:2_000])][: min(MAX_TOKENS, model.config.n_ctx)]
    if len(ids) < 2:
        return None
    means = attention_weights(model, torch.tensor([ids])).mean(dim=2)[:, 0]  # (L, T, T)
    labels = tuple("start" if i == tokenizer.eot else _visible(tokenizer.decode([i])) for i in ids)
    return AttentionMap(labels, {f"Layer {n}": means[n - 1].tolist() for n in (1, len(means))}, checkpoint.step)


def _visible(text: str) -> str:
    """Return a token as a label that shows spaces and line breaks."""
    return "".join({" ": "␣", "\n": "↵"}.get(c, c if c.isprintable() else "�") for c in text)
