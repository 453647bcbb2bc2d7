"""``gpt2lab tokenizer ...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def train(
    input: Annotated[tuple[str, ...], arg(metavar="FILE")],
    vocab_size: int,
    out: Path,
    pattern: str = "gpt2",
    special_tokens: tuple[str, ...] = ("<|endoftext|>",),
    max_documents: int | None = None,
    column: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
) -> int:
    """Learn a byte-level BPE from text.

    Args:
        input: Files (.txt .jsonl .parquet, also .gz or .zst), folders, quoted patterns of names, corpora (see data
            list), or hub:OWNER/NAME.
        vocab_size: Entries: 256 bytes, then merges, then the special tokens. 257 gives the byte tokenizer.
        out: Directory to write; it must not exist.
        pattern: How text is split before merging: gpt2, cl100k, or a regular expression.
        special_tokens: Entries that text cannot produce.
        max_documents: Use only so many documents.
        column: Where the text of JSON lines and Parquet stands; "text" by default.
        errors: Bytes that are not UTF-8: refuse their file, or replace each and go on.
    """
    from gpt2lab.lab.commands.tokenizer import train_tokenizer

    train_tokenizer(input, vocab_size, out, pattern, special_tokens, max_documents, column, errors)
    return 0


def show(
    tokenizer: Positional[Path],
    text: str | None = None,
    input: Annotated[tuple[str, ...], arg(metavar="FILE")] = (),
    gpt2: str | None = None,
    longest: int = 10,
    max_documents: int | None = None,
    column: str | None = None,
) -> int:
    """Show how a tokenizer splits text and how well its vocabulary fits.

    Args:
        tokenizer: Directory of a tokenizer, of a run, or of prepared data; or hub:OWNER/NAME.
        text: What to split; by default the beginning of the input, or a sample.
        input: Text to measure bytes per token on: what train takes; by default the text.
        gpt2: Compare with GPT-2's own: its directory, "tiktoken" for tiktoken's cache, or hub:OWNER/NAME.
        longest: How many of the longest tokens to list.
        max_documents: Measure only so many documents.
        column: Where the text of JSON lines and Parquet stands; "text" by default.
    """
    from gpt2lab.lab.commands.tokenizer import show_tokenizer

    show_tokenizer(tokenizer, text, input, gpt2, longest, max_documents, column)
    return 0


def export(
    tokenizer: Positional[Path], out: Path, format: Literal["huggingface", "gpt2", "tiktoken"] = "huggingface"
) -> int:
    """Write a tokenizer in the form of another program.

    Args:
        tokenizer: Directory of a tokenizer, of a run, or of prepared data; or hub:OWNER/NAME.
        out: Directory to write into; no file in it is overwritten.
        format: Hugging Face's tokenizer.json, GPT-2's vocab.json and merges.txt, or a rank file of tiktoken.
    """
    from gpt2lab.lab.commands.tokenizer import export_tokenizer

    export_tokenizer(tokenizer, out, format)
    return 0


def encode(tokenizer: Positional[Path]) -> int:
    """Turn text on standard input into ids on standard output, a line for a line.

    Args:
        tokenizer: Directory of a tokenizer, or of a run.
    """
    from gpt2lab.lab.commands.tokenizer import encode_lines

    encode_lines(tokenizer, sys.stdin.buffer, sys.stdout)
    return 0


def decode(tokenizer: Positional[Path]) -> int:
    """Turn ids on standard input, parted by spaces, into text on standard output.

    Args:
        tokenizer: Directory of a tokenizer, or of a run.
    """
    from gpt2lab.lab.commands.tokenizer import decode_lines

    decode_lines(tokenizer, sys.stdin.buffer, sys.stdout.buffer)
    return 0
