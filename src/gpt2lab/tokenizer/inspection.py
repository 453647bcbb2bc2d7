"""Looking into a tokenizer: how it cuts a text, and how well its vocabulary fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpt2lab.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fit:
    """How a vocabulary fits some texts.

    Attributes:
        n_tokens: What the texts become.
        n_bytes: What they are, as UTF-8.
        n_used: Different tokens among them.
        n_vocab: Tokens that there are.
    """

    n_tokens: int
    n_bytes: int
    n_used: int
    n_vocab: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a token stands for on average: the more, the shorter the text is for a model."""
        return self.n_bytes / self.n_tokens if self.n_tokens else 0.0

    @property
    def share_used(self) -> float:
        """The share of the vocabulary that occurs in the texts, 0 to 1."""
        return self.n_used / self.n_vocab


def measure_fit(tokenizer: Tokenizer, texts: Iterable[str]) -> Fit:
    """Measure how a tokenizer fits some texts; they are read once and not held."""
    n_tokens = n_bytes = 0
    used: set[int] = set()
    for text in texts:
        ids = tokenizer.encode(text)
        n_tokens += len(ids)
        n_bytes += len(tokenizer.decode_bytes(ids))
        used.update(ids)
    return Fit(n_tokens, n_bytes, len(used), tokenizer.n_vocab)


def split_text(tokenizer: Tokenizer, text: str) -> list[bytes]:
    """Return the tokens of a text as their bytes, in order; they join to the text."""
    vocabulary = tokenizer.vocab
    return [vocabulary[number] for number in tokenizer.encode(text)]


def longest_tokens(tokenizer: Tokenizer, number: int) -> list[tuple[int, bytes]]:
    """Return the ordinary tokens of most bytes, the longest first, each with its id."""
    special = set(tokenizer.special_tokens.values())
    ordinary = [(i, token) for i, token in tokenizer.vocab.items() if i not in special]
    return sorted(ordinary, key=lambda item: -len(item[1]))[:number]


def show_token(token: bytes) -> str:
    r"""Return a token as a terminal can show it, with escapes for what is not printable and for parts of characters."""
    text = token.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
