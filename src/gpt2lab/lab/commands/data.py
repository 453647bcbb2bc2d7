"""What ``gpt2lab data ...`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2lab.data import TokenDataset, prepare
from gpt2lab.lab import console
from gpt2lab.lab.commands.tokenizer import open_tokenizer


def prepare_data(
    sources: Sequence[str],
    tokenizer: Path,
    out: Path,
    max_documents: int | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    column: str | None,
    errors: str,
) -> TokenDataset:
    """Prepare token shards, and print what they hold."""
    with console.counting("preparing") as show:
        dataset = prepare(
            sources,
            open_tokenizer(tokenizer),
            out,
            seed=seed,
            max_documents=max_documents,
            column=column,
            errors=errors,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            progress=lambda n, size, tokens: show(f"{n:,} documents, {size / 1e6:,.1f} MB, {tokens:,} tokens"),
        )
    for split, info in dataset.manifest.splits.items():
        counts = f"{info.documents:,} documents  {info.tokens:,} tokens  {info.bytes:,} bytes"
        print(f"{split:5}  {counts} ({info.bytes / info.tokens:.2f} a token)")
    print(f"{out}: fingerprint {dataset.fingerprint[:16]}")
    return dataset
