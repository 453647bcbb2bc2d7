"""What ``gpt2lab data ...`` does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from gpt2lab.data.corpora import CORPORA, Corpus
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.download import Unreachable, size_of
from gpt2lab.data.prepare import Recipe, prepare_share
from gpt2lab.errors import InputError
from gpt2lab.lab import console
from gpt2lab.lab.commands.tokenizer import open_tokenizer


def prepare_data(recipe: Recipe, tokenizer: Path, out: Path, max_disk: str | None, fall_back: bool) -> None:
    """Prepare token shards, as one process or as one of torchrun's, and print what they hold.

    Raises:
        InputError: Something given cannot be used (see `prepare`).
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    allowed = None if max_disk is None else size_of(max_disk)
    instead = tuple(CORPORA[name].fall_back or name if name in CORPORA else name for name in recipe.names)
    if fall_back and instead == recipe.names:
        raise InputError(f"there is nothing to take instead of {' '.join(recipe.names)}; leave --fall-back out")
    opened = open_tokenizer(tokenizer)
    console.log_to_console()

    def prepare(wanted: Recipe) -> TokenDataset | None:
        with console.preparing_bar() as show:
            return prepare_share(wanted, opened, out, max_disk=allowed, rank=rank, world=world, progress=show)

    try:
        dataset = prepare(recipe)
    except Unreachable as error:
        if instead == recipe.names or out.exists():
            raise
        if not fall_back:
            raise InputError(f"{error}; --fall-back takes {' '.join(instead)} instead") from error
        print(f"{' '.join(recipe.names)} cannot be reached ({error}); taking {' '.join(instead)} instead")
        dataset = prepare(replace(recipe, names=instead))
    if dataset is None:
        print(f"process {rank} of {world} has done its share; another completes {out}")
    else:
        _print_contents(dataset)


def _print_contents(dataset: TokenDataset) -> None:
    for split, info in dataset.manifest.splits.items():
        counts = f"{info.documents:,} documents  {info.tokens:,} tokens  {info.bytes:,} bytes"
        print(f"{split:5}  {counts} ({info.bytes / info.tokens:.2f} a token)")
    left_out = dataset.manifest.left_out
    if left_out.short:
        print(f"{left_out.short:,} documents left out: they are short")
    if left_out.duplicates:
        print(f"{left_out.duplicates:,} documents left out: they came before")
    if left_out.held_out_in_train:
        count = f"{left_out.held_out_in_train:,} documents of validation and test"
        print(f"{count} stand in train as well; --deduplicate leaves them out there")
    print(f"{dataset.directory}: fingerprint {dataset.fingerprint[:16]}")


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
