"""``gpt2lab data list|prepare|import|show``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from gpt2lab import formatting
from gpt2lab.cli.arguments import Command
from gpt2lab.data.prepare import PrepareConfig
from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from gpt2lab.data.corpora import Corpus
    from gpt2lab.data.dataset import TokenDataset


@dataclass(frozen=True)
class ListCorpora(Command):
    """List the corpora that are known by name: size, documents, license, purpose."""

    def run(self) -> int:
        """Print them as a table."""
        from gpt2lab.data.corpora import CORPORA

        rows = [("name", "download", "documents", "GPT-2 tokens", "license", "purpose")]
        rows += [(name, *_figures(corpus), corpus.license, corpus.about) for name, corpus in CORPORA.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, size, documents, tokens, license, about in rows:
            figures = f"{size:>{widths[1]}}  {documents:>{widths[2]}}  {tokens:>{widths[3]}}"
            print(f"{name:<{widths[0]}}  {figures}  {license:<{widths[4]}}  {about}")
        print(
            "\nhub:OWNER/NAME [--column text] takes any data set of the Hugging Face Hub that is available as Parquet"
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Prepare(PrepareConfig, Command):
    """Tokenize text into shards with a manifest, split into train, validation and test.

    If it is interrupted, run the same command again to resume. Under torchrun, the processes share the work.
    """

    sources: Positional[tuple[str, ...]]
    """Files (.txt .jsonl .parquet, also .gz or .zst), directories, quoted glob patterns, corpora (see data list), or
    hub:OWNER/NAME."""
    tokenizer: Path
    """Directory of the tokenizer."""
    out: Path
    """Directory to write; it must not exist, unless the same command was interrupted."""
    max_disk: Annotated[str | None, arg(metavar="20GB")] = None
    """Upper bound on the disk space that downloads and shards take at any time."""
    fall_back: bool = False
    """Use wikitext2 if wikipedia cannot be reached."""

    def run(self) -> int:
        """Prepare the data, as one process or as one of torchrun's, and print what it holds."""
        from gpt2lab import console
        from gpt2lab.cli.tokenizer import open_tokenizer
        from gpt2lab.data.corpora import CORPORA
        from gpt2lab.data.download import Unreachable, size_of
        from gpt2lab.data.prepare import prepare_shards

        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        max_disk = None if self.max_disk is None else size_of(self.max_disk)
        names = self.sources
        config = PrepareConfig(**{f.name: getattr(self, f.name) for f in fields(PrepareConfig)})
        instead = tuple(CORPORA[name].fall_back or name if name in CORPORA else name for name in names)
        if self.fall_back and instead == names:
            raise InputError(f"{' '.join(names)} has no fallback; leave out --fall-back")
        tokenizer = open_tokenizer(self.tokenizer)
        console.log_to_console()

        def prepare(config: PrepareConfig) -> TokenDataset | None:
            with console.preparing_bar() as show:
                return prepare_shards(
                    config, tokenizer, self.out, max_disk=max_disk, rank=rank, world=world, progress=show
                )

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
            _print_contents(dataset)
        return 0


@dataclass(frozen=True)
class ImportShards(Command):
    """Use token files of another project as prepared data: check them and write a manifest beside them."""

    directory: Positional[Path]
    """Directory of .bin files in the format of llm.c (also modded-nanogpt) or .npy files (build-nanogpt), each with
    train, val or test in its name."""
    tokenizer: Path
    """Directory of the tokenizer that the tokens belong to, or hub:OWNER/NAME."""
    raw: bool = False
    """The .bin files are plain uint16 without a header, as nanoGPT writes them."""

    def run(self) -> int:
        """Import the files and print what they hold."""
        from gpt2lab.cli.show_data import print_splits
        from gpt2lab.cli.tokenizer import open_tokenizer
        from gpt2lab.data.dataset import import_shards

        print_splits(import_shards(self.directory, open_tokenizer(self.tokenizer), raw=self.raw))
        return 0


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

    def run(self) -> int:
        """Print the survey."""
        from gpt2lab.cli.show_data import show_data

        show_data(self.directory, self.documents, self.tokens, self.picture)
        return 0


def _print_contents(dataset: TokenDataset) -> None:
    for split, info in dataset.manifest.splits.items():
        counts = f"{info.documents:,} documents  {info.tokens:,} tokens  {info.bytes:,} bytes"
        print(f"{split:5}  {counts} ({info.bytes / info.tokens:.2f} bytes/token)")
    left_out = dataset.manifest.left_out
    if left_out.short:
        print(f"{left_out.short:,} documents left out: shorter than --min-length")
    if left_out.duplicates:
        print(f"{left_out.duplicates:,} documents left out: duplicates")
    if left_out.held_out_in_train:
        print(
            f"{left_out.held_out_in_train:,} documents of validation and test are also in train; "
            "--deduplicate removes them there"
        )
    print(f"{dataset.directory}: fingerprint {dataset.fingerprint[:16]}")


def _figures(corpus: Corpus) -> tuple[str, str, str]:
    documents = f"{corpus.documents:,}" if corpus.documents else "-"
    size = formatting.size(corpus.size) if corpus.size else "-"
    return size, documents, formatting.in_words(corpus.tokens) if corpus.tokens else "-"
