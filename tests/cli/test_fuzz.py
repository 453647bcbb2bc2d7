"""300 cases of `benchmarks/fuzz.py`: a damaged file is refused in one line, or changes no number."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
NAMES = (
    "tokenizer",
    "data",
    "chat",
    "perplexity",
    "perplexity-data",
    "sample",
    "resume",
    "report",
    "import-hf",
    "hellaswag",
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a hang is noticed by SIGALRM")


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "made"
    fuzz.build(folder)
    return folder


def test_every_target_is_tried(fuzz: ModuleType) -> None:
    assert tuple(target.name for target in fuzz.TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_noticed_or_changes_no_number(name: str, fuzz: ModuleType, made: Path) -> None:
    count = 12 if name == "report" else 36
    found = list(fuzz.cases(made, count, seed=2026, only=name))
    assert [problem for _, _, problem in found if problem] == []
    assert len(found) == count
    assert name == "report" or {"refused", "noticed"} & {result for _, result, _ in found}
