"""The command line as a function: what it prints, or the one line with which it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
