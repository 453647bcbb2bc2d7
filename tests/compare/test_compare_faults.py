"""A comparison that is killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import prepare_text

import gpt2lab
from gpt2lab.runs import Run

pytestmark = pytest.mark.fault
MAIN = "import sys; from gpt2lab.cli.main import main; sys.exit(main())"


def rows(path: Path) -> int:
    return len(Run(path).metrics()) if (path / "config.json").is_file() else 0


def wait_until(true, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


@pytest.mark.skipif(os.name == "nt", reason="kills by a signal")
def test_killed_comparison_repeats_no_finished_run(tmp_path: Path) -> None:
    data = prepare_text(tmp_path)
    small = ["--model.n-embd", "16", "--model.n-ctx", "16", "--batch-tokens", "64", "--log-every", "5"]
    length = ["--steps", "1500", "--eval-every", "500", "--seeds", "1"]
    where = ["--data", str(data), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", MAIN, "compare", "--vary", "model.n_head=1,2", *where, *small, *length]
    environment = {**os.environ, "PYTHONPATH": str(Path(gpt2lab.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first, second = (tmp_path / "out" / f"n_head={n}" / "seed_1337" for n in (1, 2))
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: rows(second) > 10)
    finished = {path: path.read_bytes() for path in (first / "metrics.csv", first / "evals.csv")}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: any((second / "checkpoints").glob("step_*/manifest.json")))
    before = rows(second)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert {path: path.read_bytes() for path in finished} == finished
    assert [row["step"] for row in Run(second).metrics()] == [float(n) for n in range(5, 1501, 5)]
    assert "resumed" in (second / "train.log").read_text(encoding="utf-8") and before < rows(second)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
