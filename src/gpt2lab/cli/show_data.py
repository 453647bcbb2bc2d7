"""What ``gpt2lab data show`` prints."""

from __future__ import annotations

from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2lab import console, plots
from gpt2lab.data.dataset import Survey, TokenDataset, split_documents, survey
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer, render_token

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SHOWN = 80
"""Tokens shown of a document."""
_STEPS = 12
"""Bins of the length histogram."""
_WIDTH = 40
"""Characters of the longest bar."""


def show_data(directory: Path, documents: int, tokens: int, picture: Path | None) -> None:
    """Print what prepared data holds, and plot it if asked.

    Raises:
        InputError: The data is missing or damaged, a number is negative, or the picture exists.
    """
    for name, number in (("--documents", documents), ("--tokens", tokens)):
        if number < 0:
            raise InputError(f"{name} is {number}; it must be 0 or more")
    if picture is not None and picture.exists():
        raise InputError(f"{picture} exists; give another --picture")
    dataset = TokenDataset(directory)
    tokenizer = dataset.tokenizer()
    print_splits(dataset)
    eot = dataset.manifest.tokenizer.eot
    streams = {split: dataset.stream(split) for split in dataset.manifest.splits}
    with console.counting("reading"):
        found = {split: survey(stream, tokenizer.n_vocab, eot) for split, stream in streams.items()}
    _print_duplicates(found)
    _print_lengths(np.concatenate([of_split.lengths for of_split in found.values()]))
    _print_tokens(np.sum([of_split.counts for of_split in found.values()], axis=0), tokenizer, tokens)
    vocabulary = tokenizer.vocab
    for split, stream in streams.items():
        for number, ids in enumerate(islice(split_documents(stream, eot), documents), start=1):
            print(f"\n{split}, document {number}, {len(ids):,} tokens:")
            console.print_tokens([render_token(vocabulary[token]) for token in ids[:_SHOWN].tolist()])
    if picture is not None:
        plots.write_png(picture, _draw(found, str(directory)))
        print(f"\n{picture}")


def print_splits(dataset: TokenDataset) -> None:
    """Print the files, fingerprints and counts of prepared data."""
    manifest = dataset.manifest
    print(f"{dataset.directory}: {len(manifest.shards)} files, vocabulary size {manifest.tokenizer.n_vocab:,}")
    print(f"tokenizer {manifest.tokenizer.fingerprint[:16]}, data {dataset.fingerprint[:16]}")
    for split, info in manifest.splits.items():
        counts = f"{info.documents:>13,} documents  {info.tokens:>15,} tokens  {info.bytes:>16,} bytes"
        print(f"{split:5}{counts}  ({info.bytes / info.tokens:.2f} bytes/token)")


def _print_duplicates(found: dict[str, Survey]) -> None:
    """Print the number of duplicate documents, within each split and across splits."""
    distinct = {split: np.unique(of_split.hashes) for split, of_split in found.items()}
    again = {split: len(found[split].hashes) - len(hashes) for split, hashes in distinct.items()}
    print("duplicate documents: " + ", ".join(f"{number:,} in {split}" for split, number in again.items()))
    for one, other in combinations(distinct, 2):
        shared = len(np.intersect1d(distinct[one], distinct[other], assume_unique=True))
        print(f"documents of {other} that are also in {one}: {shared:,}")


def _print_lengths(lengths: np.ndarray) -> None:
    """Print a histogram of document lengths with logarithmic bins."""
    if not len(lengths):
        print("\nall documents are empty")
        return
    print(f"\ntokens per document: median {np.median(lengths):,.0f}, mean {lengths.mean():,.1f}, max {lengths.max():,}")
    edges = _edges(lengths, _STEPS)
    numbers = np.histogram(lengths, edges)[0]
    for first, end, number in zip(edges, edges[1:], numbers.tolist(), strict=False):
        print(f"{first:>11,} to {end - 1:>11,}  {number:>11,}  {_bar(number, max(numbers))}".rstrip())


def _edges(lengths: np.ndarray, steps: int) -> np.ndarray:
    """Return the edges of at most this many logarithmic bins."""
    return np.unique(np.geomspace(lengths.min(), lengths.max() + 1, steps + 1).round().astype(int))


def _bar(number: int, most: int) -> str:
    """Return a bar, of at least one character for a positive number."""
    return "#" * -(-number * _WIDTH // int(most))


def _print_tokens(counts: np.ndarray, tokenizer: Tokenizer, number: int) -> None:
    """List the most frequent tokens, and the part of the vocabulary that is used."""
    total, vocabulary = int(counts.sum()), tokenizer.vocab
    print(f"\n{np.count_nonzero(counts):,} of {len(counts):,} tokens are used; the most frequent:")
    for token in np.argsort(-counts, kind="stable")[:number].tolist():
        bar = _bar(int(counts[token]), int(counts.max()))
        print(
            f'{counts[token]:>15,}  {counts[token] / total:>6.2%}  {bar:{_WIDTH}}  "{render_token(vocabulary[token])}"'
        )


def _draw(found: dict[str, Survey], title: str) -> Figure:
    """Plot token frequency against rank, and the distribution of document lengths."""
    counts = np.sort(np.sum([of_split.counts for of_split in found.values()], axis=0))[::-1]
    lengths = np.concatenate([of_split.lengths for of_split in found.values()])
    edges = _edges(lengths, 40).tolist() if len(lengths) else []
    return plots.token_statistics(counts[counts > 0].tolist(), lengths.tolist(), edges, title)
