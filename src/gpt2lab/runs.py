"""The run directory: its files, their columns, reading and writing them.

    config.json        every option of the run, each `auto` resolved
    environment.json   versions and machine
    train.log          what was printed
    metrics.csv        one row a logged step (METRICS_COLUMNS)
    evals.csv          one row a figure of any other evaluation (EVALS_COLUMNS)
    samples.jsonl      texts that the model wrote
    curves.png         loss and learning rate, redrawn as the run goes on
    tokenizer/         the data's tokenizer
    checkpoints/       step_00001000/ ...; see training/checkpoint.py
    evaluations/       step_00001000/: what is more than a figure, with its picture (positions, text)
    report.html        where a report was made
    stream/            of a run on stream:CORPUS, what is prepared for it; see data/rounds.py

Rows are appended line by line and cut back to the checkpoint's step when a run resumes, so that a run that was
killed and resumed has the rows of one that never stopped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_atomically, write_json

METRICS_COLUMNS = (
    "step", "tokens", "epoch", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb",
    "seconds",
)  # fmt: skip
"""Columns of metrics.csv. Losses are nats per token; a cell without a value is empty."""
EVALUATIONS = "evaluations"
EVALS_COLUMNS = ("step", "task", "split", "protocol", "metric", "value")
"""Columns of evals.csv; protocol says in words how the figure was taken."""

MetricsRow = dict[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Make the directory of a new run.

        Raises:
            InputError: There is something of that name already, or the directory cannot be made.
        """
        cls.require_new(path)
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made ({error.strerror}); give another --out") from error
        run = cls(path)
        write_json(path / "environment.json", environment)
        write_atomically(path / "metrics.csv", ",".join(METRICS_COLUMNS) + "\n")
        write_atomically(path / "evals.csv", ",".join(EVALS_COLUMNS) + "\n")
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
    def require_new(path: Path) -> None:
        """Raise `InputError` where there is something of that name already."""
        if path.exists():
            raise InputError(f"{path} exists; give another --out, or --resume to go on with the run in it")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer lies."""
        return self.path / "tokenizer"

    @property
    def stream(self) -> Path:
        """Where a corpus lies that is prepared while the run goes on."""
        return self.path / "stream"

    @property
    def config(self) -> dict[str, Any]:
        """Every option of the run."""
        return read_json(self.path / "config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine."""
        return read_json(self.path / "environment.json")

    def evaluations(self, step: int) -> Path:
        """Return the folder for what was measured of a step's weights, made where missing."""
        folder = self.path / EVALUATIONS / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def latest_evaluation(self, name: str) -> Path | None:
        """Return a file such as ``text.json`` of the newest step that has it; None where none has."""
        return max(self.path.glob(f"{EVALUATIONS}/step_*/{name}"), default=None)

    def metrics(self) -> list[MetricsRow]:
        """Return the rows of metrics.csv in the order of steps; an empty cell is None.

        Raises:
            InputError: The file is damaged (with the line), as in `evals` and `samples`.
        """
        path = self.path / "metrics.csv"
        rows = enumerate(_read_csv(path, METRICS_COLUMNS), start=2)
        return [{name: _number(cell, path, line) for name, cell in row.items()} for line, row in rows]

    def evals(self) -> list[dict[str, str]]:
        """Return the rows of evals.csv."""
        return _read_csv(self.path / "evals.csv", EVALS_COLUMNS)

    def samples(self) -> list[dict[str, Any]]:
        """Return the texts that were written: ``step, strategy, prompt, text`` and more."""
        path = self.path / "samples.jsonl"
        lines = _whole_lines(path) if path.exists() else []
        return [_sample(line, path, number) for number, line in enumerate(lines, start=1)]

    def add_metrics(self, row: Mapping[str, float | None]) -> None:
        """Append a row to metrics.csv. Numbers are written so that reading them gives the same bits."""
        cells = ["" if row[name] is None else repr(row[name]) for name in METRICS_COLUMNS]
        _append(self.path / "metrics.csv", ",".join(cells) + "\n")

    def add_eval(self, step: int, task: str, split: str, protocol: str, metric: str, value: float) -> None:
        """Append a figure to evals.csv, unless the same stands there already."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow((step, task, split, protocol, metric, repr(value)))
        _append_once(self.path / "evals.csv", line.getvalue())

    def add_sample(self, step: int, strategy: str, prompt: str, text: str, **more: Any) -> None:
        """Append a text that the model wrote to samples.jsonl, unless the same stands there already."""
        sample = {"step": step, "strategy": strategy, "prompt": prompt, "text": text, **more}
        _append_once(self.path / "samples.jsonl", json.dumps(sample, ensure_ascii=False) + "\n")

    def truncate(self, step: int) -> None:
        """Drop every row, figure, sample and evaluation of later steps than ``step``, and a last line that was cut off.

        Raises:
            InputError: A file is damaged (with the line); none is changed.
        """
        kept = {}
        for name, columns in (("metrics.csv", METRICS_COLUMNS), ("evals.csv", EVALS_COLUMNS)):
            path = self.path / name
            steps = [_number(row["step"], path, line) for line, row in enumerate(_read_csv(path, columns), start=2)]
            header, *lines = _whole_lines(path)
            kept[path] = [header, *_until(step, steps, lines)]
        samples = self.path / "samples.jsonl"
        if samples.exists():
            kept[samples] = _until(step, [sample["step"] for sample in self.samples()], _whole_lines(samples))
        for path, lines in kept.items():
            write_atomically(path, "".join(f"{line}\n" for line in lines))
        for folder in (self.path / EVALUATIONS).glob("step_*"):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)


def _until(step: int, steps: list[Any], lines: list[str]) -> list[str]:
    return [line for number, line in zip(steps, lines, strict=True) if number is not None and number <= step]


def _append(path: Path, line: str) -> None:
    """Append a line in the place of one that was cut off, where a kill or a full disk left that."""
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_in_newline(file):
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write(line.encode("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); make room, or see to its permissions, and try again"
        ) from error


def _ends_in_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _append_once(path: Path, line: str) -> None:
    """Append a line that the file does not hold: what is measured or sampled again is not a second finding."""
    if not path.exists() or line.removesuffix("\n") not in _whole_lines(path):
        _append(path, line)


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline: what follows the last one is a write that was cut off."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the run directory is damaged") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; the file is damaged") from error
    return text.split("\n")[:-1]


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    lines = _whole_lines(path)
    if not lines or lines[0] != ",".join(columns):
        raise InputError(
            f"{path}: the first line is not {','.join(columns)}; the file is damaged or of another version"
        )
    rows = [_cells(line, path, number) for number, line in enumerate(lines[1:], start=2)]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise InputError(f"{path}: line {number} has {len(row)} cells, not {len(columns)}; the file is damaged")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _cells(line: str, path: Path, number: int) -> list[str]:
    """Split one line, so that a stray quotation mark cannot swallow those after it."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise InputError(f"{path}: line {number}: {error}; the file is damaged") from error


def _number(cell: str, path: Path, line: int) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise InputError(f'{path}: line {line} has "{cell}" for a number; the file is damaged') from error


def _sample(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error.msg}); the file is damaged") from error
    if not isinstance(sample, dict) or type(sample.get("step")) is not int:
        raise InputError(f"{path}: line {number} is not a sample with its step; the file is damaged")
    return sample
