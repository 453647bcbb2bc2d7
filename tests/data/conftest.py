"""What the tests of the data share."""

from __future__ import annotations

import pytest

from gpt2lab.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The byte tokenizer: no merges, and the end of text after the 256 bytes."""
    return Tokenizer.train([], 257)
