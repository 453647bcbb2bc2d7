"""The run directory: its files, their columns, reading and writing them.

    config.json        every option of the run, each `auto` resolved
    environment.json   versions and machine
    train.log          what was printed
    metrics.csv        one row a logged step (METRICS)
    evals.csv          one row a figure of any other evaluation (EVALS)
    samples.jsonl      texts that the model wrote
    curves.png         loss and learning rate, redrawn as the run goes on
    tokenizer/         the data's tokenizer
    checkpoints/       step_00001000/ ...; see training/checkpoint.py
    report.html        where a report was made

Rows are appended line by line and cut back to the checkpoint's step when a run resumes, so that a run that was
killed and resumed has the rows of one that never stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_atomically, write_json

METRICS = (
    "step", "tokens", "epoch", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb",
    "seconds",
)  # fmt: skip
"""Columns of metrics.csv. Losses are nats per token; a cell without a value is empty."""
EVALS = ("step", "task", "split", "protocol", "metric", "value")
"""Columns of evals.csv; protocol says in words how the figure was taken."""

Row = dict[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Make the directory of a new run.

        Raises:
            InputError: There is something of that name already.
        """
        cls.require_unused(path)
        (path / "checkpoints").mkdir(parents=True)
        run = cls(path)
        write_json(path / "environment.json", environment)
        write_atomically(path / "metrics.csv", ",".join(METRICS) + "\n")
        write_atomically(path / "evals.csv", ",".join(EVALS) + "\n")
        write_json(path / "config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the directory of a run.

        Raises:
            InputError: It is not one.
        """
        if not (path / "config.json").is_file():
            what = "holds no run (config.json is missing)" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}; give the directory that gpt2lab train --out wrote")
        return cls(path)

    @staticmethod
    def require_unused(path: Path) -> None:
        """Raise `InputError` where there is something of that name already."""
        if path.exists():
            raise InputError(f"{path} exists; give another --out, or --resume to go on with the run in it")

    @staticmethod
    def unused(path: Path) -> Path:
        """Return the path, or, where it exists, the path with the first free number behind it."""
        candidate, number = path, 2
        while candidate.exists():
            candidate = path.with_name(f"{path.name}-{number}")
            number += 1
        return candidate

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer lies."""
        return self.path / "tokenizer"

    @property
    def config(self) -> dict[str, Any]:
        """Every option of the run."""
        return read_json(self.path / "config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine."""
        return read_json(self.path / "environment.json")

    def metrics(self) -> list[Row]:
        """Return the rows of metrics.csv in the order of steps; an empty cell is None."""
        rows = _read_csv(self.path / "metrics.csv", METRICS)
        return [{key: float(cell) if cell else None for key, cell in row.items()} for row in rows]

    def evals(self) -> list[dict[str, str]]:
        """Return the rows of evals.csv."""
        return _read_csv(self.path / "evals.csv", EVALS)

    def samples(self) -> list[dict[str, Any]]:
        """Return the texts that were written: ``step, strategy, prompt, text`` and more."""
        path = self.path / "samples.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in _whole_lines(path)]

    def add_metrics(self, row: Mapping[str, float | None]) -> None:
        """Append a row to metrics.csv. Numbers are written so that reading them gives the same bits."""
        cells = ["" if row[name] is None else repr(row[name]) for name in METRICS]
        _append(self.path / "metrics.csv", ",".join(cells) + "\n")

    def add_eval(self, step: int, task: str, split: str, protocol: str, metric: str, value: float) -> None:
        """Append a figure to evals.csv."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow((step, task, split, protocol, metric, repr(value)))
        _append(self.path / "evals.csv", line.getvalue())

    def add_sample(self, step: int, strategy: str, prompt: str, text: str, **more: Any) -> None:
        """Append a text that the model wrote to samples.jsonl."""
        sample = {"step": step, "strategy": strategy, "prompt": prompt, "text": text, **more}
        _append(self.path / "samples.jsonl", json.dumps(sample, ensure_ascii=False) + "\n")

    def cut_back(self, step: int) -> None:
        """Drop every row, figure and sample of later steps than ``step``, and a last line that was cut off."""
        for name in ("metrics.csv", "evals.csv"):
            header, *lines = _whole_lines(self.path / name)
            kept = [line for line in lines if int(line.split(",", 1)[0]) <= step]
            write_atomically(self.path / name, "".join(f"{line}\n" for line in [header, *kept]))
        samples = self.path / "samples.jsonl"
        if samples.exists():
            kept = [line for line in _whole_lines(samples) if json.loads(line)["step"] <= step]
            write_atomically(samples, "".join(f"{line}\n" for line in kept))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line)


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline: what follows the last one is a write that was cut off."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the run directory is damaged") from error
    return text.split("\n")[:-1]


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    lines = _whole_lines(path)
    if not lines or lines[0] != ",".join(columns):
        raise InputError(
            f"{path}: the first line is not {','.join(columns)}; the file is damaged or of another version"
        )
    rows = list(csv.reader(lines[1:]))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise InputError(f"{path}: line {number} has {len(row)} cells, not {len(columns)}; the file is damaged")
    return [dict(zip(columns, row, strict=True)) for row in rows]
