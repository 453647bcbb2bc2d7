"""``gpt2lab data ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def prepare(
    sources: Positional[tuple[str, ...]],
    tokenizer: Path,
    out: Path,
    max_documents: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
    column: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
) -> int:
    """Turn text into token shards with a manifest, split into train, validation and test.

    Args:
        sources: Files (.txt .jsonl .parquet, also .gz or .zst), folders, quoted patterns of names, corpora (see data
            list), or hub:OWNER/NAME.
        tokenizer: Directory of the tokenizer.
        out: Directory to write; it must not exist.
        max_documents: Take only the first so many documents.
        val_fraction: Share of the documents held out for validation; 0 for none.
        test_fraction: Share held out for the final test; 0 for none.
        seed: Seed of "stories".
        column: Where the text of JSON lines and Parquet stands; "text" by default.
        errors: Bytes that are not UTF-8: refuse their file, or replace each and go on.
    """
    from gpt2lab.lab.commands.data import prepare_data

    prepare_data(sources, tokenizer, out, max_documents, val_fraction, test_fraction, seed, column, errors)
    return 0


def list_() -> int:
    """List the corpora known by name: size, documents, licence, what each is for."""
    from gpt2lab.lab.commands.data import list_corpora

    list_corpora()
    return 0
