"""What the tests of the data share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpt2lab.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The byte tokenizer: no merges, and the end of text after the 256 bytes."""
    from gpt2lab.tokenizer import Tokenizer

    return Tokenizer.train([], 257)
