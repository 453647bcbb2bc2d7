"""``gpt2lab train --watch`` and ``gpt2lab play``; their pages are tested in tests/server/test_play.py."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.runs import Run

Output = Callable[..., str]


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser is asked to open, here where there is a display."""
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return addresses


def test_a_training_is_shown_and_only_read(
    work: Path, tmp_path: Path, small: list[str], output: Output, opened: list[str]
) -> None:
    path = tmp_path / "watched"
    said = output("train", "--data", work / "data", "--out", path, "--steps", 20, *small, "--watch")
    found = re.search(r"watch at (http://127\.0\.0\.1:\d+/)#/run/watched/watch\n", said)
    assert found is not None and opened == [found[0].removeprefix("watch at ").strip()]
    run, url = Run(path), f"{found[1]}api/runs/watched"
    with urllib.request.urlopen(f"{url}/watch") as stream:
        event: dict[str, Any] = json.loads(stream.readline().removeprefix(b"data: "))
    assert event["rows"] == run.metrics() and event["samples"] == run.samples()
    assert (event["state"], event["steps"], event["from_start"]) == ("finished", 20, True)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/info")
    assert f"gpt2lab play {path}" in json.load(refused.value)["error"]["message"]
    plain = tmp_path / "plain"
    output("train", "--data", work / "data", "--out", plain, "--steps", 20, *small)
    weights = "checkpoints/step_00000020/model.safetensors"
    assert (path / weights).read_bytes() == (plain / weights).read_bytes()


@pytest.mark.parametrize(("host", "token"), [([], ""), (["--host", "0.0.0.0"], r"\?token=[\w-]{32}")])
def test_play_prints_the_address_and_ends_at_once(work: Path, host: list[str], token: str) -> None:
    command = [sys.executable, "-m", "gpt2lab", "play", str(work / "run"), "--port", "0", "--no-browser", *host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        said = server.stdout.readline()
        assert re.fullmatch(rf"play at http://\S+:\d+/{token}#/run/run/write \(Ctrl-C ends\)\n", said), said
        server.send_signal(2)
        assert server.wait(5) == 0
        assert server.stderr.read() == ""


def test_what_cannot_be_played_is_refused(work: Path, tmp_path: Path, refused: Output) -> None:
    assert "holds no run" in refused("play", tmp_path)
    assert "does not exist" in refused("play", tmp_path / "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert re.search(rf"port {port} is in use; port \d+ is free", refused("play", work / "run", "--port", port))
