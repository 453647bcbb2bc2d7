"""What the tests share: where the real data lies, and one thread so that results do not depend on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GPT2LAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_data(name: str) -> Path:
    """Return a file of real text; skip the test where it is missing, except under CI, where that is a failure."""
    path = DATA / name
    if not path.exists():
        reason = f"needs {name} of the real test data: set GPT2LAB_DATA to the folder that holds it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    """The 1.1 MB of Tiny Shakespeare."""
    return real_data("tinyshakespeare.txt")


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The validation split of WikiText-2."""
    return real_data("wikitext2-valid.txt")


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> Path:
    """The directory of GPT-2's own encoder.json and vocab.bpe."""
    return real_data("gpt2")
