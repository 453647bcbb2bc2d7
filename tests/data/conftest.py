"""What the tests of the data share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_hub import Hub, loopback_hub


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The byte tokenizer: no merges, and the end of text after the 256 bytes."""
    return Tokenizer.train([], 257)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub on this machine."""
    with loopback_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
