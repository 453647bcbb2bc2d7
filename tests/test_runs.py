"""The run directory: columns, exact numbers, cut-off and damaged lines."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.errors import InputError
from gpt2lab.files import free_path, with_checksum, write_atomically, write_checked_json
from gpt2lab.runs import EVALS_COLUMNS, Follower, MetricsRow, Run
from gpt2lab.runs import METRICS_COLUMNS as COLUMNS

text = st.text(st.characters(codec="utf-8"))
METRICS, EVALS = f"{','.join(COLUMNS)},crc32\n", f"{','.join(EVALS_COLUMNS)},crc32\n"


def row(step: int, **cells: float | None) -> MetricsRow:
    return dict.fromkeys(COLUMNS, None) | {"step": step} | cells


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"steps": 5}, {"torch": "2"})


def test_a_new_run_has_its_files(run: Run, tmp_path: Path) -> None:
    assert (run.config, run.environment) == ({"steps": 5}, {"torch": "2"})
    assert (
        (run.path / "metrics.csv").read_text(encoding="utf-8")
        == METRICS
        == "step,tokens,epoch,train_loss,val_loss,lr,grad_norm,tokens_per_s,mfu,peak_memory_mb,seconds,crc32\n"
    )
    evals = (run.path / "evals.csv").read_text(encoding="utf-8")
    assert evals == EVALS == "step,task,split,protocol,metric,value,crc32\n"
    assert (run.metrics(), run.evals(), run.samples()) == ([], [], [])
    assert run.checkpoints.is_dir()
    assert run.tokenizer == run.path / "tokenizer"
    assert Run.open(run.path) == run
    assert Run.create(tmp_path / "a" / "b" / "run", {}, {}).checkpoints.is_dir()


REFUSED_PATHS: list[tuple[Callable[[Path], Run], str, str]] = [
    (lambda path: Run.create(path, {}, {}), "file", "file exists; give another --out, or --resume"),
    (lambda path: Run.create(path, {}, {}), "folder", "folder exists; give another --out, or --resume"),
    (lambda path: Run.create(path, {}, {}), "file/run", r"cannot be created \(Not a directory\); give another --out"),
    (Run.open, "none", "none does not exist; give the directory"),
    (Run.open, "folder", r"holds no run \(config.json is missing\)"),
]


@pytest.mark.parametrize(("action", "name", "message"), REFUSED_PATHS)
def test_a_path_that_cannot_hold_a_run_is_refused_and_nothing_is_overwritten(
    action: Callable[[Path], Run], name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        action(tmp_path / name)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "folder"]


def _bits(value: float | None) -> str | None:
    return None if value is None else "nan" if math.isnan(value) else float(value).hex()


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.none() | st.floats(), min_size=len(COLUMNS) - 1, max_size=len(COLUMNS) - 1), max_size=5),
    text.filter(lambda t: "\n" not in t and "\r" not in t),
    st.floats(allow_nan=False),
    text,
    text,
)
def test_what_is_written_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[list[Any]],
    protocol: str,
    value: float,
    prompt: str,
    written: str,
) -> None:
    run = Run.create(free_path(tmp_path_factory.getbasetemp() / "round_trip"), {}, {})
    rows: list[MetricsRow] = [dict(zip(COLUMNS, [step, *values], strict=True)) for step, values in enumerate(cells)]
    for metrics in rows:
        run.add_metrics(metrics)
    for read, metrics in zip(run.metrics(), rows, strict=True):
        assert list(read) == list(COLUMNS)
        assert [_bits(v) for v in read.values()] == [_bits(v) for v in metrics.values()]
    run.add_eval(3, "perplexity", "test", protocol, "bits_per_byte", value)
    run.add_eval(4, "hellaswag", "val", "of two\r\nlines", "acc", 0.25)
    first, second = run.evals()
    assert list(first) == list(EVALS_COLUMNS)
    assert (first["step"], first["protocol"], float(first["value"])) == ("3", protocol, value)
    assert (second["task"], second["protocol"]) == ("hellaswag", "of two lines")
    run.add_sample(7, "greedy", prompt, written, verdict="consistent")
    run.add_sample(8, "nucleus", "", "x")
    sample, other = run.samples()
    assert sample == {"step": 7, "strategy": "greedy", "prompt": prompt, "text": written, "verdict": "consistent"}
    assert other["step"] == 8


def row_text(step: int) -> str:
    """A row of metrics.csv that holds nothing but its step."""
    cells = f"{step}{',' * 10}"
    return f"{cells},{zlib.crc32(cells.encode()):08x}"


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line)


def add_to_every_file(run: Run, step: int) -> None:
    run.add_metrics(row(step, train_loss=step / 7))
    run.add_eval(step, "perplexity", "test", "p, q", "loss", 1.5)
    run.add_sample(step, "greedy", "", "ŝ")


def steps(run: Run) -> list[list[Any]]:
    return [[int(entry["step"] or 0) for entry in entries] for entries in (run.metrics(), run.evals(), run.samples())]


CUT_OFF = {"metrics.csv": "30,38", "evals.csv": '30,"perpl', "samples.jsonl": '{"step": 30, "te'}


@pytest.mark.parametrize("complete", [[], [10, 20]])
@pytest.mark.parametrize("truncate", [False, True])
def test_an_incomplete_last_line_is_ignored_and_overwritten(run: Run, complete: list[int], truncate: bool) -> None:
    for step in complete:
        add_to_every_file(run, step)
    held = {name: (run.path / name).read_bytes() for name in CUT_OFF if (run.path / name).exists()}
    for name, line in CUT_OFF.items():
        append(run.path / name, line)
    assert steps(run) == [complete] * 3
    if truncate:
        run.truncate(20)
        assert {name: (run.path / name).read_bytes() for name in CUT_OFF} == {"samples.jsonl": b"", **held}
    add_to_every_file(run, 40)
    assert steps(run) == [[*complete, 40]] * 3


def test_a_follower_reads_what_is_appended_and_begins_anew_when_the_run_goes_back(run: Run) -> None:
    follower, table = Follower(run), run.path / "metrics.csv"
    assert follower.news() == (True, [], [])
    run.add_metrics(row(1))
    run.add_metrics(row(2, train_loss=0.1))
    run.add_sample(2, "greedy", "a", "ab")
    assert follower.news() == (False, run.metrics(), run.samples())
    assert follower.news() == (False, [], []) and follower.step == 2
    run.add_metrics(row(3))
    whole = table.read_bytes()
    for cut in range(1, 12):  # the last line while it is being written
        table.write_bytes(whole[:-cut])
        assert follower.news() == (False, [], [])
    table.write_bytes(whole)
    assert follower.news() == (False, [row(3)], [])
    run.truncate(1)
    assert follower.news() == (True, [row(1)], [])
    with table.open("a") as file:
        file.write("4,damaged\n")
    with pytest.raises(InputError, match=r"metrics\.csv does not match its checksum"):
        follower.news()


def test_truncating_drops_later_steps(run: Run) -> None:
    run.truncate(0)
    assert not (run.path / "samples.jsonl").exists()
    for step in (5, 10, 100):
        add_to_every_file(run, step)
    run.truncate(10)
    assert steps(run) == [[5, 10]] * 3
    run.truncate(0)
    assert steps(run) == [[]] * 3


DAMAGED = [
    ("metrics.csv", "", "the first line is not step,tokens"),
    ("metrics.csv", "step,loss\n", "the first line is not step,tokens"),
    ("metrics.csv", f"{METRICS}1,2,3\n", "line 2 does not match its checksum"),
    ("metrics.csv", f"{METRICS}{row_text(1)}\n\n", "line 3 does not match"),
    ("metrics.csv", f"{METRICS}{row_text(1)}\n{row_text(2).replace('2', '3', 1)}\n", "line 3 does not match"),
    ("metrics.csv", b"step,\xff", "not UTF-8 text at byte 5"),
    ("evals.csv", "step\n", "the first line is not step,task"),
    ("evals.csv", f"{EVALS}1,a,b,c,d,1\n", "line 2 does not match its checksum; the file is damaged or was edited"),
    ("evals.csv", None, r"cannot be read \(No such file"),
    ("evals.csv", f"{EVALS}00000000\n", "line 2 does not match its checksum"),
    ("samples.jsonl", f"{json.dumps(with_checksum({'step': 1}))}\n{{\n", "line 2 is not JSON"),
    ("samples.jsonl", "[]\n", "line 1: no object with its checksum"),
    ("samples.jsonl", '{"step": 1, "text": "x"}\n', "line 1: no object with its checksum"),
    ("samples.jsonl", '{"step": 1, "text": "x", "sha256": "ab"}\n', "line 1: does not match its checksum"),
]


@pytest.mark.parametrize(("name", "held", "message"), DAMAGED)
def test_damage_is_reported_with_its_line_and_nothing_is_changed(
    run: Run, name: str, held: str | bytes | None, message: str
) -> None:
    run.add_metrics(row(1))
    (run.path / name).unlink(missing_ok=True)
    if held is not None:
        (run.path / name).write_bytes(held.encode() if isinstance(held, str) else held)
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        run.truncate(0)
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


@dataclasses.dataclass(frozen=True)
class Measured:
    """Some results."""

    a: int


def test_saved_evaluation_is_that_of_the_last_step_or_its_damage_is_reported(run: Run) -> None:
    assert run.saved_evaluation("x.json", Measured) is None
    for step in (5, 12):
        write_checked_json(run.evaluations(step) / "x.json", {"step": step, "a": step})
    assert run.saved_evaluation("x.json", Measured) == Measured(12)
    write_checked_json(run.evaluations(12) / "x.json", {"step": 12})
    with pytest.raises(InputError, match=r"step_00000012.x\.json: a is missing"):
        run.saved_evaluation("x.json", Measured)
    write_checked_json(run.evaluations(20) / "x.json", {"a": 3})
    assert run.saved_evaluation("x.json", Measured) == Measured(3)
    write_atomically(path := run.evaluations(20) / "x.json", path.read_text(encoding="utf-8").replace("3", "4", 1))
    with pytest.raises(InputError, match=r"x\.json: does not match its checksum"):
        run.saved_evaluation("x.json", Measured)
    (run.path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        _ = run.config


def test_numpy_and_json_can_read_the_files(run: Run) -> None:
    run.add_metrics(row(1, train_loss=0.1, lr=1e-3))
    run.add_metrics(row(2, train_loss=0.2))
    table = np.genfromtxt(run.path / "metrics.csv", delimiter=",", names=True, usecols=range(11))
    assert table["train_loss"].tolist() == [0.1, 0.2]
    assert np.isnan(table["lr"][1])
    run.add_sample(1, "greedy", "", "a\nb")
    assert json.loads((run.path / "samples.jsonl").read_text(encoding="utf-8"))["text"] == "a\nb"


def test_equal_results_and_samples_are_written_once(run: Run) -> None:
    for value in (1.5, 1.5, 2.0):
        run.add_eval(3, "perplexity", "test", "context 8", "loss", value)
        run.add_sample(3, "greedy", "", f"text {value}")
    assert [row["value"] for row in run.evals()] == ["1.5", "2.0"]
    assert [sample["text"] for sample in run.samples()] == ["text 1.5", "text 2.0"]
