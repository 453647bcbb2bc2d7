from __future__ import annotations

import pytest

from gpt2lab import Tokenizer
from gpt2lab.tokenizer.tokenizer import longest_tokens, measure_compression, render_token


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["lowest lowest lower"], 256 + 5 + 1)


def test_the_fit_counts_tokens_bytes_and_the_share_used(tokenizer: Tokenizer) -> None:
    fit = measure_compression(tokenizer, ["lowest", "lowest st"])
    assert [tokenizer.decode_bytes([i]) for i in tokenizer.encode("lowest")] == [b"lowe", b"st"]
    assert (fit.n_tokens, fit.n_bytes, fit.n_used, fit.n_vocab) == (6, 15, 3, 262)
    assert fit.bytes_per_token == 15 / 6
    assert fit.vocab_used == 3 / 262


def test_no_text_fits_without_dividing_by_zero(tokenizer: Tokenizer) -> None:
    assert measure_compression(tokenizer, []).bytes_per_token == 0.0


def test_the_longest_tokens_are_ordinary_ones(tokenizer: Tokenizer) -> None:
    assert longest_tokens(tokenizer, 3) == [(260, b" lowe"), (258, b"lowe"), (256, b"lo")]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" low", " low"),
        ("é😀".encode(), "é😀"),
        (b"\n\t", r"\n\t"),
        (b"\xf0\x9f", r"\xf0\x9f"),
        (b"\x1b[0m", r"\x1b[0m"),
    ],
)
def test_a_token_is_shown_without_what_would_move_a_terminal(token: bytes, shown: str) -> None:
    assert render_token(token) == shown
