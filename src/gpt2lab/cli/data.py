"""``gpt2lab data list|prepare|import|show``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from gpt2lab import console, formatting, plots
from gpt2lab.cli.arguments import Command, part_of
from gpt2lab.data.dataset import MANIFEST, Survey, TokenDataset, documents_with_counts, import_shards, survey
from gpt2lab.data.prepare import PrepareConfig, prepare_shards
from gpt2lab.data.sources import CORPORA, Corpus
from gpt2lab.errors import InputError, require
from gpt2lab.files import parse_size
from gpt2lab.hub import Unreachable
from gpt2lab.tokenizer.tokenizer import Tokenizer, render_token

_SHOWN = 80
"""Tokens shown of a document."""
_BINS = 12
"""Bins of the length histogram."""
_WIDTH = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class ListCorpora(Command):
    """List the corpora that are known by name: size, documents, license, purpose."""

    def run(self) -> None:
        """Print them as a table."""
        rows = [("name", "download", "documents", "GPT-2 tokens", "license", "purpose")]
        rows += [(name, *_figures(corpus), corpus.license, corpus.about) for name, corpus in CORPORA.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:{align}{width}}" for cell, align, width in zip(row, "<>>><<", widths, strict=True))
            print("  ".join(cells).rstrip())
        print("\nhub:OWNER/NAME [--column text] takes any dataset of the Hugging Face Hub that is available as Parquet")


def _figures(corpus: Corpus) -> tuple[str, str, str]:
    documents = f"{corpus.documents:,}" if corpus.documents else "-"
    size = formatting.size(corpus.size) if corpus.size else "-"
    return size, documents, formatting.in_words(corpus.tokens) if corpus.tokens else "-"


@dataclass(frozen=True, kw_only=True)
class Prepare(PrepareConfig, Command):
    """Tokenize text into shards with a manifest, split into train, validation and test.

    If interrupted, run the same command again to resume. Under torchrun, the processes share the work.
    """

    sources: Positional[tuple[str, ...]]
    """Files (.txt .jsonl .csv .parquet .gz ...), directories, patterns, corpora (see data list), hub:OWNER/NAME."""
    tokenizer: Path
    """Directory of the tokenizer, or a name on the Hub: gpt2, hub:OWNER/NAME."""
    out: Path
    """Directory to write; it must not exist, unless the same command was interrupted."""
    max_disk: Annotated[str | None, arg(metavar="20GB")] = None
    """Upper bound on the disk space that downloads and shards take at any time."""
    fall_back: bool = False
    """Use wikitext2 if wikipedia cannot be reached."""

    def run(self) -> None:
        """Prepare the data, as one process or as one of torchrun's, and print what it holds."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        max_disk = None if self.max_disk is None else parse_size(self.max_disk)
        names = self.sources
        instead = tuple(CORPORA[name].fall_back or name if name in CORPORA else name for name in names)
        if self.fall_back and instead == names:
            raise InputError(f"{' '.join(names)} has no fallback; leave out --fall-back")
        tokenizer = Tokenizer.load(self.tokenizer)
        console.log_to_console()

        def prepare(config: PrepareConfig) -> TokenDataset | None:
            with console.preparing_bar() as show:
                return prepare_shards(
                    config, tokenizer, self.out, max_disk=max_disk, rank=rank, world=world, progress=show
                )

        config = part_of(self, PrepareConfig)
        try:
            dataset = prepare(config)
        except Unreachable as error:
            if instead == names or self.out.exists():
                raise
            if not self.fall_back:
                raise InputError(f"{error}; --fall-back uses {' '.join(instead)} instead") from error
            print(f"{' '.join(names)} cannot be reached ({error}); using {' '.join(instead)} instead")
            dataset = prepare(replace(config, sources=instead))
        if dataset is None:
            print(f"process {rank} of {world} has finished its share; another process completes {self.out}")
        else:
            _print_splits(dataset)
            _print_left_out(dataset)


def _print_splits(dataset: TokenDataset) -> None:
    """Print the files, fingerprints and counts of prepared data."""
    manifest = dataset.manifest
    print(f"{dataset.directory}: {len(manifest.shards)} files, vocabulary size {manifest.tokenizer.n_vocab:,}")
    print(f"tokenizer {manifest.tokenizer.fingerprint[:16]}, data {dataset.fingerprint[:16]}")
    for split, info in manifest.splits.items():
        counts = f"{info.documents:>13,} documents  {info.tokens:>15,} tokens  {info.bytes:>16,} bytes"
        print(f"{split:5}{counts}  ({info.bytes / info.tokens:.2f} bytes/token)")
        if (stream := dataset.stream(split, every_byte=False)).masked:
            counted = sum(int(block.sum()) for block in stream.counted_blocks())
            print(f"{'':5}{counted:,} of them count in the loss ({counted / info.tokens:.1%})")


def _print_left_out(dataset: TokenDataset) -> None:
    left_out = dataset.manifest.left_out
    for count, what in (
        (left_out.short, "left out: shorter than --min-length"),
        (left_out.duplicates, "left out: duplicates"),
        (left_out.held_out_in_train, "of validation and test are also in train; --deduplicate removes them there"),
    ):
        if count:
            print(f"{count:,} documents {what}")
    console.print_skipped(left_out.skipped, f"; see {dataset.directory / MANIFEST}")


@dataclass(frozen=True)
class ImportShards(Command):
    """Use token files of another project as prepared data: check them and write a manifest beside them."""

    directory: Positional[Path]
    """Directory of .bin (llm.c, modded-nanogpt) or .npy files (build-nanogpt) with train, val or test in the name."""
    tokenizer: Path
    """Directory of the tokenizer that the tokens belong to, or a name on the Hub."""
    raw: bool = False
    """The .bin files are plain uint16 without a header, as nanoGPT writes them."""

    def run(self) -> None:
        """Import the files and print what they hold."""
        _print_splits(import_shards(self.directory, Tokenizer.load(self.tokenizer), raw=self.raw))


@dataclass(frozen=True)
class ShowData(Command):
    """Show what prepared data holds: counts, frequent tokens, document lengths, duplicates, some documents."""

    directory: Positional[Path]
    """Directory of prepared data."""
    documents: int = 3
    """Number of documents of each split to print, split into their tokens."""
    tokens: int = 10
    """Number of the most frequent tokens to list."""
    picture: Path | None = None
    """Also plot token frequencies and document lengths to this PNG file, which must not exist."""

    def run(self) -> None:
        """Print the statistics, and plot them if asked."""
        for name, number in (("--documents", self.documents), ("--tokens", self.tokens)):
            require(number >= 0, name, number, "0 or more")
        if self.picture is not None and self.picture.exists():
            raise InputError(f"{self.picture} exists; give another --picture")
        dataset = TokenDataset(self.directory)
        tokenizer = dataset.tokenizer()
        _print_splits(dataset)
        eot = dataset.manifest.tokenizer.eot
        streams = {split: dataset.stream(split) for split in dataset.manifest.splits}
        with console.counting("reading"):
            found = {split: survey(stream, tokenizer.n_vocab, eot) for split, stream in streams.items()}
        lengths = np.concatenate([of_split.lengths for of_split in found.values()])
        counts = np.sum([of_split.counts for of_split in found.values()], axis=0)
        _print_duplicates(found)
        _print_lengths(lengths)
        _print_tokens(counts, tokenizer, self.tokens)
        vocabulary = tokenizer.vocab
        for split, stream in streams.items():
            shown = islice(documents_with_counts(stream, eot), self.documents)
            for number, (ids, counted) in enumerate(shown, start=1):
                some = f", of which {counted.sum():,} count in the loss" if stream.masked else ""
                print(f"\n{split}, document {number}, {len(ids):,} tokens{some}:")
                console.print_tokens([render_token(vocabulary[token]) for token in ids[:_SHOWN].tolist()])
                if stream.masked:
                    print("these count:")
                    tokens = ids[:_SHOWN][counted[:_SHOWN]].tolist()
                    console.print_tokens([render_token(vocabulary[token]) for token in tokens])
        if self.picture is not None:
            plots.write_png(self.picture, _draw(counts, lengths, str(self.directory)))
            print(f"\n{self.picture}")


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
    edges = _edges(lengths, _BINS)
    numbers = np.histogram(lengths, edges)[0]
    for first, end, number in zip(edges, edges[1:], numbers.tolist(), strict=False):
        print(f"{first:>11,} to {end - 1:>11,}  {number:>11,}  {_bar(number, max(numbers))}".rstrip())


def _edges(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Return the edges of at most this many logarithmic bins."""
    return np.unique(np.geomspace(lengths.min(), lengths.max() + 1, bins + 1).round().astype(int))


def _bar(number: int, most: int) -> str:
    """Return a bar, of at least one character for a positive number."""
    return "#" * -(-number * _WIDTH // int(most))


def _print_tokens(counts: np.ndarray, tokenizer: Tokenizer, number: int) -> None:
    """List the most frequent tokens, and the part of the vocabulary that is used."""
    total, vocabulary = int(counts.sum()), tokenizer.vocab
    print(f"\n{np.count_nonzero(counts):,} of {len(counts):,} tokens are used; the most frequent:")
    for token in np.argsort(-counts, kind="stable")[:number].tolist():
        n, shown = int(counts[token]), render_token(vocabulary[token])
        print(f'{n:>15,}  {n / total:>6.2%}  {_bar(n, counts.max()):{_WIDTH}}  "{shown}"')


def _draw(counts: np.ndarray, lengths: np.ndarray, title: str) -> plots.Figure:
    """Plot token frequency against rank, and the distribution of document lengths."""
    edges = _edges(lengths, 40).tolist() if len(lengths) else []
    return plots.token_statistics(np.sort(counts[counts > 0])[::-1].tolist(), lengths.tolist(), edges, title)
