"""``gpt2lab data ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def prepare(
    sources: Positional[tuple[str, ...]],
    tokenizer: Path,
    out: Path,
    max_documents: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    column: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
    min_length: int = 0,
    deduplicate: bool = False,
    shard_tokens: int = 100_000_000,
    max_disk: Annotated[str | None, arg(metavar="20GB")] = None,
    fall_back: bool = False,
) -> int:
    """Turn text into token shards with a manifest, split into train, validation and test.

    Stopped at any moment, the same command goes on. Under torchrun the processes share the work out.

    Args:
        sources: Files (.txt .jsonl .parquet, also .gz or .zst), folders, quoted patterns of names, corpora (see data
            list), or hub:OWNER/NAME.
        tokenizer: Directory of the tokenizer.
        out: Directory to write; it must not exist, unless the same command was stopped.
        max_documents: Take only the first so many documents; where they come in splits, of each.
        val_fraction: Share of the documents held out for validation; 0 for none. By default the corpus's own, else
            0.05, or nothing where it comes in splits.
        test_fraction: Share held out for the final test; 0 for none. The same.
        seed: Seed of "stories".
        column: Where the text of JSON lines and Parquet stands; "text" by default.
        errors: Bytes that are not UTF-8: refuse their file, or replace each and go on.
        min_length: Leave out documents of fewer characters.
        deduplicate: Leave out documents that came before; takes 8 bytes of memory a document.
        shard_tokens: Tokens in a file.
        max_disk: What downloads and token files may take at any moment.
        fall_back: Where wikipedia cannot be reached, take wikitext2.
    """
    from gpt2lab.data.prepare import Recipe
    from gpt2lab.lab.commands.data import prepare_data

    recipe = Recipe(
        names=sources,
        seed=seed,
        max_documents=max_documents,
        column=column,
        errors=errors,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        min_length=min_length,
        deduplicate=deduplicate,
        shard_tokens=shard_tokens,
    )
    prepare_data(recipe, tokenizer, out, max_disk, fall_back)
    return 0


def list_() -> int:
    """List the corpora known by name: size, documents, licence, what each is for."""
    from gpt2lab.lab.commands.data import list_corpora

    list_corpora()
    return 0


def adopt(directory: Positional[Path], tokenizer: Path, raw: bool = False) -> int:
    """Make a folder of token files from elsewhere prepared data: check them, write a manifest beside them.

    Args:
        directory: Holds .bin files of llm.c's format (modded-nanogpt's too) or .npy files (build-nanogpt's), each with
            train, val or test in its name.
        tokenizer: Directory of the tokenizer that the tokens are of, or hub:OWNER/NAME.
        raw: The .bin files have no header: uint16 and nothing else, as nanoGPT writes them.
    """
    from gpt2lab.lab.commands.data_survey import adopt_data

    adopt_data(directory, tokenizer, raw)
    return 0


def show(directory: Positional[Path], documents: int = 3, tokens: int = 10, picture: Path | None = None) -> int:
    """Show what prepared data holds: counts, common tokens, lengths of documents, duplicates, some documents.

    Args:
        directory: Prepared data.
        documents: How many documents of each split to show, cut in tokens.
        tokens: How many of the most frequent tokens to list.
        picture: Also draw token frequencies and document lengths to this PNG, which must not exist.
    """
    from gpt2lab.lab.commands.data_survey import show_data

    show_data(directory, documents, tokens, picture)
    return 0
