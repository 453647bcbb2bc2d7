"""The command line as a function: what it prints, or the one line with which it refuses; and one small trained run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from users import new_process, other_user

from gpt2lab.cli.main import main


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed; return what it printed."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as bad input does; return its one line."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        said = capsys.readouterr().err
        assert said.startswith("gpt2lab: ") and said.count("\n") == 1 and "Traceback" not in said, said
        return said

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user who trained a module's run keeps which code he trusts."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def one_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new process of that user."""
    other_user(monkeypatch, home)
    yield
    new_process()


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without drawing curves.png, which takes longer than the steps of a test; `work` has one."""
    monkeypatch.setattr("gpt2lab.training.loop.draw_curves", lambda run: None)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of a training that takes a second."""
    model = ["--model.n-layer=1", "--model.n-head=2", "--model.n-embd=16", "--model.n-ctx=32"]
    return [
        *model,
        "--batch-tokens=128",
        "--log-every=5",
        "--eval-every=50",
        "--eval-tokens=512",
        "--checkpoint-every=10",
    ]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """A tokenizer "tok", prepared "data" and a finished "run", made by the commands themselves; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    tok, data, run = (str(folder / name) for name in ("tok", "data", "run"))
    stories = ["--max-documents", "120"]
    assert main(["tokenizer", "train", "--input", "stories", "--vocab-size", "400", "--out", tok, *stories]) == 0
    assert main(["data", "prepare", "stories", "--tokenizer", tok, "--out", data, *stories]) == 0
    assert main(["train", "--data", data, "--out", run, "--steps", "20", *small]) == 0
    return folder


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(work / "run", tmp_path / "run"))
