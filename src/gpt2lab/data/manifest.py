"""``manifest.json``: what a folder of token files holds, by which it is checked. Written last, so it makes it complete.

DIR/  manifest.json  tokenizer/  train_000000.bin ... val_000000.bin ... test_000000.bin
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2lab.data.split import SPLITS, SplitRule
from gpt2lab.errors import InputError
from gpt2lab.files import read_json, sync_directory, write_json

FORMAT = 1
MANIFEST = "manifest.json"
WORK = "preparing"
"""The folder in which an unfinished preparation keeps its journal; see `journal`."""


@dataclass(frozen=True)
class SourceInfo:
    """Where the text came from and how it was taken: the arguments of `prepare`."""

    names: tuple[str, ...]
    seed: int
    max_documents: int | None
    column: str | None = None
    errors: str = "strict"
    min_length: int = 0
    deduplicate: bool = False
    shard_tokens: int | None = None
    """None where files came as they are."""


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that the ids belong to."""

    fingerprint: str
    n_vocab: int
    eot: int


@dataclass(frozen=True)
class SplitInfo:
    """What one split holds.

    ``bytes`` are those of the text in UTF-8 (the tokens between documents have none). ``entropy_bits`` is the sum of
    the documents' exact -log2 probabilities, where every document has one: no model can do better on average.
    """

    documents: int
    tokens: int
    bytes: int
    entropy_bits: float | None


@dataclass(frozen=True)
class ShardInfo:
    """One token file."""

    name: str
    split: str
    tokens: int
    sha256: str
    form: str = "llm.c"
    """One of `foreign.OPENERS`."""


@dataclass(frozen=True)
class LeftOut:
    """Documents left out on request, and those of validation and test that stand in train as well."""

    short: int = 0
    duplicates: int = 0
    held_out_in_train: int = 0


@dataclass(frozen=True)
class DataManifest:
    """The contents of ``manifest.json``."""

    source: SourceInfo
    tokenizer: TokenizerInfo
    split_rule: SplitRule
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]
    left_out: LeftOut = LeftOut()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokenizer's fingerprint and every shard's: two folders with the same hold the same data."""
        lines = [self.tokenizer.fingerprint, *(f"{shard.split} {shard.sha256}" for shard in self.shards)]
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``manifest.json``."""
        write_json(directory / MANIFEST, {"format": FORMAT, **asdict(self)})
        sync_directory(directory)

    @classmethod
    def load(cls, directory: Path) -> DataManifest:
        """Read ``manifest.json``.

        Raises:
            InputError: The folder is missing or half-written, or its manifest is damaged or of another format.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(_why_no_manifest(directory))
        tree = read_json(path)
        try:
            return _parse(tree)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); prepare the data again") from error


def is_half_written(directory: Path) -> bool:
    """Return whether preparing this folder was stopped before it was complete."""
    return not (directory / MANIFEST).exists() and (directory / WORK).is_dir()


def _why_no_manifest(directory: Path) -> str:
    if directory.is_file():
        return (
            f"{directory}: a file, not a folder of prepared data; make one of it with: "
            f"gpt2lab data prepare {directory} --tokenizer TOKENIZER --out FOLDER"
        )
    if not directory.is_dir():
        return f"{directory}: no such folder of prepared data; make it with: gpt2lab data prepare"
    if is_half_written(directory):
        return f"{directory}: half-written, as preparing it was stopped; run the same command again to go on"
    if any(directory.glob("*.bin")) or any(directory.glob("*.npy")):
        return (
            f"{directory}: holds token files, but no {MANIFEST} that says whose tokens they are; say it with: "
            f"gpt2lab data adopt {directory} --tokenizer TOKENIZER"
        )
    return f"{directory}: holds no prepared data (no {MANIFEST}); make it with: gpt2lab data prepare"


def _parse(tree: dict[str, Any]) -> DataManifest:
    if tree["format"] != FORMAT:
        raise InputError(f"format {tree['format']}; this version reads format {FORMAT}: prepare the data again")
    source = {**tree["source"], "names": tuple(tree["source"]["names"])}
    manifest = DataManifest(
        source=SourceInfo(**source),
        tokenizer=TokenizerInfo(**tree["tokenizer"]),
        split_rule=SplitRule(**tree["split_rule"]),
        splits={name: SplitInfo(**tree["splits"][name]) for name in SPLITS if name in tree["splits"]},
        shards=tuple(ShardInfo(**shard) for shard in tree["shards"]),
        left_out=LeftOut(**tree.get("left_out", {})),
    )
    for name, split in manifest.splits.items():
        held = sum(shard.tokens for shard in manifest.shards if shard.split == name)
        if held != split.tokens:
            raise InputError(f"{split.tokens} tokens of {name}, but {held} in its files; prepare the data again")
    return manifest
