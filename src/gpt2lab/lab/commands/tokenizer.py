"""What ``gpt2lab tokenizer ...`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from gpt2lab.data import texts
from gpt2lab.errors import InputError
from gpt2lab.lab import console
from gpt2lab.tokenizer import Tokenizer


def train_tokenizer(
    sources: Sequence[str],
    vocab_size: int,
    out: Path,
    pattern: str,
    special_tokens: Sequence[str],
    max_documents: int | None,
    column: str | None,
    errors: str,
) -> Tokenizer:
    """Train a tokenizer on text and save it.

    Raises:
        InputError: The directory exists, a source cannot be read, or a setting is out of range.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another --out")
    corpus = texts(sources, max_documents=max_documents, column=column, errors=errors)
    with console.bar("merges") as progress:
        tokenizer = Tokenizer.train(corpus, vocab_size, special_tokens, pattern=pattern, progress=progress)
    tokenizer.save(out)
    if tokenizer.n_vocab < vocab_size:
        print(f"the text gives {tokenizer.n_vocab:,} entries, not {vocab_size:,}: no pair is left that comes twice")
    print(f"{out}: {tokenizer.n_vocab:,} entries, fingerprint {tokenizer.fingerprint[:16]}")
    return tokenizer


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from its own directory, or from that of a run or of prepared data."""
    return Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)


def encode_lines(path: Path, source: BinaryIO, out: TextIO) -> None:
    """Write the ids of each line of ``source``, its newline included, as a line of ``out``.

    Raises:
        InputError: The input is not UTF-8 (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: line {number} is not UTF-8 at its byte {error.start}") from error
        out.write(" ".join(map(str, tokenizer.encode(text))) + "\n")


def decode_lines(path: Path, source: BinaryIO, out: BinaryIO) -> None:
    """Write the bytes of the ids in ``source``.

    Raises:
        InputError: Something is not an id of the vocabulary (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            out.write(tokenizer.decode_bytes([int(word) for word in line.decode("ascii").split()]))
        except ValueError as error:
            raise InputError(f"standard input: line {number}: {error}; give ids parted by spaces") from error
