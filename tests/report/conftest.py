"""A finished run for the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_directories import make_run

from gpt2lab.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "stories-tiny")
