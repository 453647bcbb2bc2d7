"""The run directory: its files, their columns, reading and writing them.

    config.json        every option of the run, each `auto` resolved
    segments/          step_00000000/config.json ...: options and versions from each step at which the options changed
    environment.json   versions and machine
    train.log          what was printed
    metrics.csv        one row per logged step (METRICS_COLUMNS)
    evals.csv          one row per result of any other evaluation (EVALS_COLUMNS)
    samples.jsonl      texts that the model generated
    curves.png         loss and learning rate, redrawn during the run
    tokenizer/         the tokenizer of the data
    checkpoints/       step_00001000/ ...; see training/checkpoint.py
    evaluations/       step_00001000/: results of more than one number, with a figure (positions, text)
    report.html        the report, once one is made
    imports/           the file of --import that defines parts of the model; see imports.py
    stream/            for --data stream:CORPUS, the shards prepared for it; see data/streaming.py

Rows are appended line by line, and truncated to the checkpoint's step when a run resumes: a run that was killed and
resumed has the same rows as one that never stopped. The last column of a table is the CRC-32 of the row before it, and
a line of samples.jsonl ends with its SHA-256, so that no number changes unnoticed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt2lab.errors import InputError
from gpt2lab.files import (
    free_path,
    from_json,
    new_directory,
    read_checked_json,
    read_text,
    sha256_of,
    with_checksum,
    without_checksum,
    write_atomically,
    write_checked_json,
)

T = TypeVar("T")

METRICS_COLUMNS = (
    "step", "tokens", "epoch", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_memory_mb",
    "seconds",
)  # fmt: skip
"""Columns of metrics.csv. Losses are in nats per token; a cell without a value is empty."""
EVALUATIONS, SEGMENTS, SHA256SUMS = "evaluations", "segments", "SHA256SUMS"
EVALS_COLUMNS = ("step", "task", "split", "protocol", "metric", "value")
"""Columns of evals.csv; the protocol says in words how the value was measured."""

MetricsRow = dict[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Make the directory of a new run.

        Raises:
            InputError: ``path`` exists or cannot be created.
        """
        cls.require_new(path)
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{path} cannot be created ({error.strerror}); give another --out") from error
        run = cls(path)
        run.add_segment(0, config, environment)
        write_checked_json(path / "environment.json", environment)
        write_atomically(path / "metrics.csv", _header(METRICS_COLUMNS) + "\n")
        write_atomically(path / "evals.csv", _header(EVALS_COLUMNS) + "\n")
        write_checked_json(path / "config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the directory of a run.

        Raises:
            InputError: It is not a run.
        """
        if not (path / "config.json").is_file():
            what = "holds no run (config.json is missing)" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}; give the directory that gpt2lab train --out wrote")
        return cls(path)

    @staticmethod
    def require_new(path: Path) -> None:
        """Raise `InputError` if ``path`` exists."""
        if path.exists():
            raise InputError(f"{path} exists; give another --out, or --resume to resume the run in it")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def imports(self) -> Path:
        """The folder of the Python file that the model needs, if it needs one."""
        return self.path / "imports"

    def imported(self, sha256: str) -> Path | None:
        """Return the Python file in `imports` with this SHA-256, or None.

        If the file imports others, it is the SHA-256 of ``SHA256SUMS``, whose first line names the file.
        """
        files = sorted(file for file in self.imports.glob("[!.]*") if file.is_file() and os.access(file, os.R_OK))
        found = next((file for file in files if sha256_of(file) == sha256), None)
        if found is None or found.name != SHA256SUMS:
            return found
        _, _, name = read_text(found).partition("\n")[0].partition("  ")
        return next((file for file in files if file.name == name), None)

    @property
    def stream(self) -> Path:
        """The folder of a corpus that is prepared during the run."""
        return self.path / "stream"

    @property
    def config(self) -> dict[str, Any]:
        """Every option of the run."""
        return read_checked_json(self.path / "config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine."""
        return read_checked_json(self.path / "environment.json")

    @property
    def segments(self) -> dict[int, Path]:
        """The configuration file of each segment, by the step after which it began. A resumed run has several."""
        files = sorted(self.path.glob(f"{SEGMENTS}/step_*/config.json"))
        return {int(file.parent.name.removeprefix("step_")): file for file in files if "." not in file.parent.name}

    def add_segment(self, step: int, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Record with which options and versions a run continues after a step, unless they are those of the last.

        Segments that began later are set aside, since the run has gone back.
        """
        present = self.segments
        last = max((begun for begun in present if begun <= step), default=None)
        same = last is not None and _segment(present[last].parent) == _continuing(config, environment)
        for begun, file in present.items():
            if begun > step or (begun == step and not same):
                folder = file.parent
                folder.rename(free_path(folder.with_name(f"{folder.name}.before_resume_at_{step}")))
        if not same:
            with new_directory(self.path / SEGMENTS / f"step_{step:08d}") as folder:
                write_checked_json(folder / "config.json", config)
                write_checked_json(folder / "environment.json", environment)

    def evaluations(self, step: int) -> Path:
        """Return the folder for evaluations of a step's weights, created if missing."""
        folder = self.path / EVALUATIONS / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def latest_evaluation(self, name: str) -> Path | None:
        """Return a file such as ``text.json`` of the last step that has it; None if no step has."""
        return max(self.path.glob(f"{EVALUATIONS}/step_*/{name}"), default=None)

    def saved_evaluation(self, name: str, kind: type[T]) -> T | None:
        """Return the file that `latest_evaluation` finds as a dataclass, or None; other fields in it are ignored.

        Raises:
            InputError: The file is damaged.
        """
        if (path := self.latest_evaluation(name)) is None:
            return None
        return from_json(kind, read_checked_json(path), path, others=True)

    def metrics(self) -> list[MetricsRow]:
        """Return the rows of metrics.csv in the order of steps; an empty cell is None.

        Raises:
            InputError: The file is damaged (with the line), as in `evals` and `samples`.
        """
        path = self.path / "metrics.csv"
        return [_metrics_row(cells) for cells in _read_csv(path, METRICS_COLUMNS)]

    def evals(self) -> list[dict[str, str]]:
        """Return the rows of evals.csv."""
        return _read_csv(self.path / "evals.csv", EVALS_COLUMNS)

    def samples(self) -> list[dict[str, Any]]:
        """Return the generated texts: ``step, strategy, prompt, text`` and more."""
        path = self.path / "samples.jsonl"
        lines = _complete_lines(path) if path.exists() else []
        return [_sample(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]

    def add_metrics(self, row: Mapping[str, float | None]) -> None:
        """Append a row to metrics.csv. Numbers are written so that reading them gives the same bits."""
        cells = ["" if row[name] is None else repr(row[name]) for name in METRICS_COLUMNS]
        _append(self.path / "metrics.csv", _row(cells))

    def add_eval(self, step: int, task: str, split: str, protocol: str, metric: str, value: float) -> None:
        """Append a result to evals.csv, unless the same row is there already."""
        _append_once(self.path / "evals.csv", _row((step, task, split, protocol, metric, repr(value))))

    def add_sample(self, step: int, strategy: str, prompt: str, text: str, **more: Any) -> None:
        """Append a generated text to samples.jsonl, unless the same line is there already."""
        sample = with_checksum({"step": step, "strategy": strategy, "prompt": prompt, "text": text, **more})
        _append_once(self.path / "samples.jsonl", json.dumps(sample, ensure_ascii=False) + "\n")

    def truncate(self, step: int) -> None:
        """Drop all rows, samples and evaluations of steps after ``step``, and an incomplete last line.

        Raises:
            InputError: A file is damaged (with the line); none is changed.
        """
        tables: dict[str, Sequence[Mapping[str, Any]]] = {
            "metrics.csv": self.metrics(), "evals.csv": self.evals(), "samples.jsonl": self.samples()
        }  # fmt: skip
        kept: dict[Path, list[str]] = {}
        for path, rows in ((self.path / name, rows) for name, rows in tables.items()):
            if path.exists():
                lines = _complete_lines(path)
                begin = len(lines) - len(rows)  # after the header
                written = zip(rows, lines[begin:], strict=True)
                kept[path] = lines[:begin] + [line for row, line in written if float(row["step"]) <= step]
        for path, lines in kept.items():
            write_atomically(path, "".join(f"{line}\n" for line in lines))
        for folder in (self.path / EVALUATIONS).glob("step_*"):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)


@dataclass
class Follower:
    """What is appended to a run while another process trains it; the run is only read.

    A table that is replaced, because the run went back to a checkpoint, is read again from its start.
    """

    run: Run
    step: float = 0
    """Step of the last row of metrics.csv."""
    between: float = 0.0
    """Seconds of training between the last two rows."""
    _seconds: float = 0.0
    _offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By file: its inode, and the bytes that were read."""

    def forget(self) -> None:
        """Read everything again at the next call, for example after an error."""
        self._offsets.clear()

    def news(self) -> tuple[bool, list[MetricsRow], list[dict[str, Any]]]:
        """Return whether reading started over, the new rows of metrics.csv and the new samples of samples.jsonl.

        Raises:
            InputError: A file is damaged. An incomplete last line is left for the next call.
        """
        if changed := any(self._replaced(name) for name in ("metrics.csv", "samples.jsonl")):
            self.forget()
        first = "metrics.csv" not in self._offsets
        lines, path = self._lines("metrics.csv"), self.run.path / "metrics.csv"
        rows = [_metrics_row(_cells(line, METRICS_COLUMNS, str(path))) for line in lines[first:]]
        for row in rows:
            seconds = row["seconds"] or 0.0
            self.step, self.between, self._seconds = row["step"] or 0, seconds - self._seconds, seconds
        path = self.run.path / "samples.jsonl"
        return changed or first, rows, [_sample(line, str(path)) for line in self._lines(path.name)]

    def _replaced(self, name: str) -> bool:
        path = self.run.path / name
        if name not in self._offsets or not path.exists():
            return name in self._offsets
        inode, read = self._offsets[name]
        status = path.stat()
        return status.st_ino != inode or status.st_size < read

    def _lines(self, name: str) -> list[str]:
        """Return the complete lines after those that were returned before."""
        path = self.run.path / name
        if not path.exists():
            return []
        with path.open("rb") as file:
            inode, read = os.fstat(file.fileno()).st_ino, self._offsets.get(name, (0, 0))[1]
            file.seek(read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if whole:
            self._offsets[name] = (inode, read + len(whole))
        return whole.decode("utf-8", errors="replace").split("\n")[:-1]


def _append(path: Path, line: str) -> None:
    """Append a line; an incomplete last line, which a kill or a full disk left, is overwritten."""
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write(line.encode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space or check permissions") from error


def _segment(folder: Path) -> dict[str, Any]:
    return _continuing(read_checked_json(folder / "config.json"), read_checked_json(folder / "environment.json"))


def _continuing(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a resumed run to continue its segment: the options, and two versions."""
    values = {**config, "out": None, "versions": [environment.get(name) for name in ("gpt2lab", "torch")]}
    return json.loads(json.dumps(values))


def _append_once(path: Path, line: str) -> None:
    """Append a line unless the file has it: the same measurement or sample twice is not a second result."""
    if not path.exists() or line.removesuffix("\n") not in _complete_lines(path):
        _append(path, line)


def _complete_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline: anything after the last one is an interrupted write."""
    return read_text(path, newline="").split("\n")[:-1]


def _header(columns: tuple[str, ...]) -> str:
    return ",".join((*columns, "crc32"))


def _row(cells: Iterable[Any]) -> str:
    """Return a line of a table, with its checksum."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(re.sub(r"[\r\n]+", " ", str(cell)) for cell in cells)
    text = line.getvalue().removesuffix("\n")
    return f"{text},{_crc32(text)}\n"


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8')):08x}"


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read each line by itself: a row that matches its checksum is as it was written."""
    lines = _complete_lines(path)
    if not lines or lines[0] != _header(columns):
        expected = _header(columns)
        raise InputError(f"{path}: the first line is not {expected}; the file is damaged or of another version")
    return [_cells(line, columns, f"{path}: line {number}") for number, line in enumerate(lines[1:], start=2)]


def _cells(line: str, columns: tuple[str, ...], where: str) -> dict[str, str]:
    text, _, checksum = line.rpartition(",")
    if not text or checksum != _crc32(text):
        raise InputError(f"{where} does not match its checksum; the file is damaged or was edited")
    cells = next(csv.reader([text]))
    if len(cells) != len(columns):
        raise InputError(f"{where} has {len(cells)} columns, not {len(columns)}; the file is of another version")
    return dict(zip(columns, cells, strict=True))


def _metrics_row(cells: Mapping[str, str]) -> MetricsRow:
    return {name: float(cell) if cell else None for name, cell in cells.items()}


def _sample(line: str, where: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg}); the file is damaged") from error
    return without_checksum(sample, where)
