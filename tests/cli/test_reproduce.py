"""The commands of a report re-make the run, also one that was resumed with other options."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest

from gpt2lab.cli.main import main
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import sha256_of
from gpt2lab.report.facts import commands, training_facts
from gpt2lab.runs import Run


def weights(run: Path) -> dict[str, str]:
    return {path.parent.name: sha256_of(path) for path in run.glob("checkpoints/step_????????/model.safetensors")}


RESUMED = [
    [],
    ["--resume --steps 9"],
    ["--resume 2 --steps 7"],
    ["--resume --steps 9", "--resume 5 --steps 8 --log-every 2"],
]
SHAPE = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.n-ctx 32 --batch-tokens 64 --precision fp32"


@pytest.mark.parametrize("resumed", RESUMED, ids=str)
def test_the_commands_of_the_report_make_the_run_again(
    work: Path, resumed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shlex.quote(str(work / "data"))
    begin = f"train --data {data} --out run --steps 6 --checkpoint-every 1 --keep-last 9 --eval-every 1 {SHAPE}"
    for command in (begin, *(f"train --out {tmp_path / 'run'} {more}" for more in resumed)):
        assert main(shlex.split(command)) == 0
    found = RunData(Run(Path("run")))
    segments = list(found.run.segments)
    again = [fact.value for fact in commands(found) if fact.value.startswith("gpt2lab train")]
    assert len(again) == len(segments)
    for command in again:
        assert main(shlex.split(command)[1:]) == 0
    last = max(weights(Path("run")))
    assert weights(Path("run-again"))[last] == weights(Path("run"))[last]
    assert list(Run(Path("run-again")).segments) == segments
    names = [fact.name for fact in training_facts(found)]
    assert names.count("Resumed with other options") == (len(segments) > 1)


def test_resuming_with_the_same_options_begins_no_segment(work: Path, tmp_path: Path) -> None:
    run, data = str(tmp_path / "run"), str(work / "data")
    intervals = ["--eval-every", "4", "--checkpoint-every", "2"]
    assert main(["train", "--data", data, "--out", run, "--steps", "4", *intervals, *SHAPE.split()]) == 0
    for step in ("2", "0", "2"):
        with contextlib.suppress(SystemExit):
            main(["train", "--out", run, "--resume", step])
    assert [path.name for path in (tmp_path / "run" / "segments").iterdir()] == ["step_00000000"]


def test_a_kill_while_a_segment_is_recorded_does_not_keep_the_run_from_resuming(work: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", str(work / "data")
    assert main(["train", "--data", data, "--out", str(run), "--steps", "2", *SHAPE.split()]) == 0
    (run / "segments" / ".step_00000002.17.tmp").mkdir()
    (run / "segments" / "step_00000002").mkdir()
    assert main(["train", "--out", str(run), "--resume", "--steps", "4"]) == 0
    assert sorted(path.name for path in (run / "segments").iterdir()) == ["step_00000000", "step_00000002"]
