"""What the pages ask for, without a browser: wrong requests, clients that go away, odd runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from small_server import serving

from gpt2lab.cli.serve import ServerOptions
from gpt2lab.files import read_checked_json, write_checked_json
from gpt2lab.generation import generate
from gpt2lab.runs import METRICS_COLUMNS, Follower, Run
from gpt2lab.server import batching, pages
from gpt2lab.server.models import Models
from gpt2lab.server.pages import LOADED, Runs, routes

STORIES = Path(__file__).parents[2] / "docs" / "gallery" / "stories"
PATCH = {"clean": [1, *range(1, 200)], "corrupted": [2, *range(1, 200)], "answer": 1, "wrong": 2}
ROW: dict[str, float | None] = dict.fromkeys(METRICS_COLUMNS) | {"step": 1, "seconds": 1.0}


def opened(*folders: Path, precision: Any = "fp32") -> tuple[Runs, Models[Path]]:
    """These runs, and their models."""
    runs = Runs(folders, ServerOptions(device="cpu", precision=precision).load)
    return runs, Models(runs.ready, runs.load, LOADED)


@pytest.fixture(scope="module")
def models() -> Iterator[Models[Path]]:
    _, models = opened(STORIES)
    yield models
    models.stop()


@pytest.fixture(scope="module")
def address(models: Models[Path]) -> str:
    return serving(models, routes=routes(Runs([STORIES], ServerOptions().load), models))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("nowhere/info", None, "the model 'nowhere' does not exist"),
        ("nowhere/watch", None, 'there is no run "nowhere"'),
        ("stories/generate", {"max_tokens": 3}, "ids"),
        ("stories/generate", {"ids": [1], "max_tokens": 3, "temperature": 0.0}, "temperature"),
        ("stories/generate", {"ids": [1], "max_tokens": 3, "seed": 2**70}, "seed"),
        ("stories/generate", {"ids": [10**30], "max_tokens": 3}, "an id of the model"),
        ("stories/generate", {"ids": [], "max_tokens": 3}, "at least one token"),
        ("stories/inspect", {"ids": [99999]}, "an id of the model"),
        ("stories/inspect", {"ids": [10**30]}, "an id of the model"),
        ("stories/inspect", {"ids": [1], "off": ["head:9.9"]}, "layers 0 to 1"),
        ("stories/inspect", {"ids": [1], "off": ["mlp:" + "9" * 5000]}, "cannot switch off"),
        ("stories/inspect", "[" * 200_000, "the request is not JSON"),
        ("stories/patch", {"clean": [1], "corrupted": [1, 2], "answer": 1, "wrong": 2}, "one length"),
        ("stories/patch", PATCH | {"clean": [1] * 1001}, "can be patched for 1000 at most"),
        ("stories/tokenize", '"a string"', "the request"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    http: httpx.Client, address: str, path: str, body: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, content = f"{address}/api/runs/{path}", body if isinstance(body, str) else json.dumps(body)
    answer = http.get(url) if body is None else http.post(url, content=content)
    text = answer.text.removeprefix("data: ").strip()
    assert "\n" not in text and (answer.status_code in (400, 404) or text.startswith('{"error"'))
    assert message in json.loads(text)["error"]["message"] and not caplog.records


def test_what_nobody_waits_for_is_dropped(address: str, models: Models[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = models.get("stories").engine
    for what, body in (("patch", PATCH), ("generate", {"ids": [1], "max_tokens": 90_000})):
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{address}/api/runs/stories/{what}", json=body, timeout=0.2).read()
        deadline = time.monotonic() + 5
        while engine._jobs:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    monkeypatch.setattr(batching, "JOBS", 0)
    answer = httpx.post(f"{address}/api/runs/stories/inspect", json={"ids": [1]})
    assert answer.status_code == 503 and "try again later" in answer.json()["error"]["message"]


def test_the_precision_is_that_of_the_server_and_inspection_is_in_fp32(address: str) -> None:
    import torch

    runs, models = opened(STORIES, precision="bf16")
    url = f"{serving(models, routes=routes(runs, models))}/api/runs/stories"
    written = httpx.post(f"{url}/generate", json={"ids": [1, 2], "max_tokens": 20, "greedy": True}, timeout=60).text
    loaded = runs.load(STORIES)
    with loaded.runtime.autocast():
        expected = generate(loaded.model, torch.tensor([[1, 2]]), 20, greedy=True, eot=loaded.tokenizer.eot)
    events = [json.loads(line.removeprefix("data: ")) for line in written.split("\n\n") if line]
    assert events.pop() == {"end": True}
    assert [event["id"] for event in events] == expected[0, 2:].tolist()
    asked = {"ids": [1, 2, 3]}
    exact = [httpx.post(f"{one}/inspect", json=asked).json() for one in (url, f"{address}/api/runs/stories")]
    assert exact[0] == exact[1]
    models.stop()


def test_the_list_holds_odd_names_and_runs_without_a_model(tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / os.fsdecode(b"odd\xff"))
    young = shutil.copytree(STORIES, tmp_path / "young", ignore=shutil.ignore_patterns("step_0*"))
    (young / ".curves.png.7.tmp").symlink_to("gone")
    (young / "gone.png").symlink_to("gone")
    runs, models = opened(tmp_path)
    listed = httpx.get(f"{serving(models, routes=routes(runs, models))}/api/runs").json()["runs"]
    assert {run["name"]: run["ready"] for run in listed} == {"odd\udcff": True, "young": False}
    assert list(models.names()) == ["odd\udcff"]


def test_a_model_is_loaded_anew_for_another_checkpoint_only(tmp_path: Path) -> None:
    run = Path(shutil.copytree(STORIES, tmp_path / "run"))
    best, last = (Runs([run], lambda path: object(), which) for which in ("best", "last"))  # type: ignore[arg-type, return-value]
    (first,) = (run / "checkpoints").glob("step_*")
    state = read_checked_json(first / "state.json")
    write_checked_json(first / "state.json", state | {"val_loss": 1.0})
    before = best.load(run), last.load(run)
    later = Path(shutil.copytree(first, first.with_name("step_00099999")))
    write_checked_json(later / "state.json", state | {"val_loss": 2.0})
    assert best.load(run) is before[0] and last.load(run) is not before[1]


def test_a_damaged_line_is_told_until_it_is_mended(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"steps": 9}, {})
    run.add_metrics(ROW)
    follower = Follower(run)
    assert [row["step"] for row in follower.news()[1]] == [1]
    run.add_metrics(ROW | {"step": 2, "seconds": 101.0})
    whole = (run.path / "metrics.csv").read_text()
    (run.path / "metrics.csv").write_text(whole.replace("101.0", "901.0"))
    for _ in range(2):
        seen = pages._news(follower)
        assert seen["state"] == "damaged" and "does not match its checksum" in seen["error"]
    (run.path / "metrics.csv").write_text(whole)
    seen = pages._news(follower)
    assert seen["from_start"] and [row["step"] for row in seen["rows"]] == [1, 2]
    assert follower.between == 100.0
    assert pages._state(run, 2, 9, follower.between) == "training"
    for file in run.path.glob("*.*"):
        os.utime(file, (0, time.time() - 200))
    assert pages._state(run, 2, 9, follower.between) == "training"
    assert pages._state(run, 2, 9, 1.0) == "stopped"
