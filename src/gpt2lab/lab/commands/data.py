"""What ``gpt2lab data ...`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2lab.data import CORPORA, Corpus, TokenDataset, prepare
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


def list_corpora() -> None:
    """Print the corpora as a table."""
    rows = [("name", "download", "documents", "GPT-2 tokens", "licence", "what it is for")]
    rows += [(name, *_figures(corpus), corpus.licence, corpus.about) for name, corpus in CORPORA.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, size, documents, tokens, licence, about in rows:
        figures = f"{size:>{widths[1]}}  {documents:>{widths[2]}}  {tokens:>{widths[3]}}"
        print(f"{name:<{widths[0]}}  {figures}  {licence:<{widths[4]}}  {about}")
    print("\nhub:OWNER/NAME [--column text] takes any data set of the hub that is, or was converted to, Parquet")


def _figures(corpus: Corpus) -> tuple[str, str, str]:
    documents = f"{corpus.documents:,}" if corpus.documents else "-"
    return size_in_words(corpus.size), documents, _in_words(corpus.tokens)


def size_in_words(size: int) -> str:
    """Return bytes for people: 30.6 GB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} B" if size else "-"


def _in_words(count: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return "-"
