"""What the tests of a comparison share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import base_config, prepare_text

from gpt2lab.training.config import TrainConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def base(data: Path) -> TrainConfig:
    return base_config(data)
