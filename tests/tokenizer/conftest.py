"""The tokenizers that the tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from gpt2lab import Tokenizer
from gpt2lab.tokenizer.bpe import unicode_to_bytes


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    """Five merges: lo low er lower, and the space before them."""
    return Tokenizer.train(["low low lower lower"], 262)


@pytest.fixture
def edited(tiny: Tokenizer, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Save the tiny tokenizer, change the tree of its tokenizer.json, and return that file."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        tiny.save(tmp_path)
        file = tmp_path / "tokenizer.json"
        tree = json.loads(file.read_bytes())
        change(tree)
        file.write_text(json.dumps(tree), encoding="utf-8")
        return file

    return edit


@pytest.fixture(scope="session")
def gpt2(gpt2_vocabulary: Path) -> Tokenizer:
    """GPT-2's tokenizer."""
    return Tokenizer.gpt2(gpt2_vocabulary)


@pytest.fixture(scope="session")
def oracle(gpt2_vocabulary: Path) -> tiktoken.Encoding:
    """tiktoken's own GPT-2, built by hand from OpenAI's file."""
    ids = json.loads((gpt2_vocabulary / "encoder.json").read_text(encoding="utf-8"))
    end = ids.pop("<|endoftext|>")
    return tiktoken.Encoding(
        "gpt2-by-hand",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        mergeable_ranks={unicode_to_bytes(token): number for token, number in ids.items()},
        special_tokens={"<|endoftext|>": end},
    )
