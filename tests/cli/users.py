"""Users of the command line who have imported nothing yet, and processes that have just begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2lab import imports
from gpt2lab.imports import FILES
from gpt2lab.model.parts import BUILT_IN, IMPORTED, known

ITEM = {"ind": 0, "activity_label": "Games", "ctx": "A dog", "endings": ["runs.", "sits.", "eats.", "is."], "label": 0}
"""A question of HellaSwag."""


def new_process() -> None:
    """Forget what was imported, as a process that has just begun."""
    for memory in (FILES, IMPORTED, imports._refused):
        memory.clear()
    imports._set_known({key: part for key, part in known().items() if key in BUILT_IN})


def other_user(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Continue in a new process, of a user who has imported nothing yet."""
    monkeypatch.setenv("GPT2LAB_HOME", str(home))
    new_process()
