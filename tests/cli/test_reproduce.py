"""The commands of a report re-make the run, also one that was resumed with other options."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gpt2lab.cli.main import main
from gpt2lab.evaluation.run_data import read_run
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
    begin = f"train --data {data} --out run --steps 6 --checkpoint-every 1 --keep-last 9 {SHAPE}"
    for command in (begin, *(f"train --out run {more}" for more in resumed)):
        assert main(shlex.split(command)) == 0
    found = read_run(Run(Path("run")))
    segments = list(found.run.segments)
    again = [fact.value for fact in commands(found) if fact.value.startswith("gpt2lab train")]
    assert len(again) == len(segments)
    for command in again:
        assert main(shlex.split(command)[1:]) == 0
    last = max(weights(Path("run")))
    assert weights(Path("run-again"))[last] == weights(Path("run"))[last]
    assert list(Run(Path("run-again")).segments) == segments
    assert [fact.name for fact in training_facts(found)].count("Segments") == (len(segments) > 1)


def test_resuming_with_the_same_options_begins_no_segment(work: Path, tmp_path: Path) -> None:
    run, data = str(tmp_path / "run"), str(work / "data")
    assert main(["train", "--data", data, "--out", run, "--steps", "4", "--checkpoint-every", "2", *SHAPE.split()]) == 0
    assert main(["train", "--out", run, "--resume", "2"]) == 0
    assert list(Run(Path(run)).segments) == [0]
