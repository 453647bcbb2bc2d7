"""A folder of prepared data, opened and checked."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2lab.data.selection import SPLITS, SplitRule
from gpt2lab.data.shards import (
    MANIFEST,
    OPENERS,
    DataManifest,
    Shard,
    ShardInfo,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
    TokenStream,
    checked_sha256,
)
from gpt2lab.errors import InputError, one_of
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

_BLOCK = 1 << 20
"""Tokens read, and counted, at once."""


@dataclass(frozen=True)
class Survey:
    """Figures of a split.

    Attributes:
        counts: (n_vocab,) how often each id comes.
        lengths: (documents,) tokens of each document, its ``<|endoftext|>`` not counted.
        hashes: (documents,) 64 bits of BLAKE2b of each document's ids: equal where the documents are.
    """

    counts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray


def split_documents(stream: TokenStream, eot: int) -> Iterator[np.ndarray]:
    """Yield the ids of each document that is not empty, whether ``<|endoftext|>`` comes before documents or after."""
    held: list[np.ndarray] = []  # of the document that a block ends in
    for start in range(0, len(stream), _BLOCK):
        block = stream.read(np.array([start]), min(_BLOCK, len(stream) - start))[0]
        first, *rest = np.split(block, np.flatnonzero(block == eot))
        held.append(first)
        for following in rest:
            yield from _whole(held)
            held = [following[1:]]
    yield from _whole(held)


def _whole(parts: list[np.ndarray]) -> Iterator[np.ndarray]:
    if sum(map(len, parts)):
        yield np.concatenate(parts)


def survey(stream: TokenStream, n_vocab: int, eot: int) -> Survey:
    """Read a split once. Memory: 16 bytes a document, the ids of a few, and the counts."""
    lengths, hashes = array("q"), array("Q")
    counts = np.zeros(n_vocab, dtype=np.int64)
    size, waiting = 0, list[np.ndarray]()  # to be counted together, for the vocabulary is longer than a document
    for ids in split_documents(stream, eot):
        lengths.append(len(ids))
        hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "big"))
        waiting.append(ids)
        size += len(ids)
        if size >= _BLOCK:
            counts += np.bincount(np.concatenate(waiting), minlength=n_vocab)
            size, waiting = 0, []
    if waiting:
        counts += np.bincount(np.concatenate(waiting), minlength=n_vocab)
    counts[eot] = len(stream) - sum(lengths)  # which no document holds
    return Survey(counts, np.array(lengths), np.array(hashes))


TOKENIZER = "tokenizer"
"""Subfolder of prepared data that holds its tokenizer."""
HELD_OUT = "held-out"
"""Subfolder of a streamed corpus that holds its validation and test splits, as prepared data."""


class TokenDataset:
    """A folder of token files with its manifest; see `DataManifest` for what it says of them."""

    def __init__(self, directory: Path) -> None:
        """Open ``directory``; its token files are read when `stream` asks for them.

        Raises:
            InputError: No prepared data there, half-written, damaged, or files that the manifest does not name.
        """
        self.directory = directory
        self.manifest = DataManifest.load(directory)
        named = {shard.name for shard in self.manifest.shards}
        if unnamed := sorted({path.name for path in directory.glob("*.bin")} - named):
            raise InputError(f"{directory / unnamed[0]}: not named by the manifest; move it elsewhere")

    @property
    def fingerprint(self) -> str:
        """The same for the same shards of the same tokenizer, wherever they lie."""
        return self.manifest.fingerprint

    def stream(self, split: str, every_byte: bool = True) -> TokenStream:
        """Return the tokens of ``"train"``, ``"val"`` or ``"test"`` after checking their files.

        Args:
            split: The split.
            every_byte: Whether files are read to the end and compared by SHA-256; else only headers and sizes are
                looked at, which is enough where another process has the same files checked.

        Raises:
            InputError: No such split, or a file that is missing, truncated, changed, or holds an id that is none.
        """
        if split not in self.manifest.splits:
            held = ", ".join(self.manifest.splits)
            raise InputError(
                f"{self.directory}: has no {split} split, only {held}; choose one of these, or prepare it with "
                f"--{split}-fraction"
            )
        infos = [shard for shard in self.manifest.shards if shard.split == split]
        return TokenStream(f"{self.directory} ({split})", [self._checked(info, every_byte) for info in infos])

    def _checked(self, info: ShardInfo, every_byte: bool) -> Shard:
        one_of(f"form of {info.name} in {self.directory / MANIFEST}:", info.form, OPENERS)
        shard = OPENERS[info.form](self.directory / info.name)
        if shard.tokens != info.tokens:
            raise InputError(f"{shard.path}: {shard.tokens} tokens, the manifest says {info.tokens}; prepare it again")
        if not every_byte:
            return shard
        sha256 = checked_sha256(shard, self.manifest.tokenizer.n_vocab)
        if sha256 != info.sha256:
            raise InputError(
                f"{shard.path}: changed since it was written (SHA-256 {sha256[:12]}..., the manifest says "
                f"{info.sha256[:12]}...); copy or prepare it again"
            )
        return shard

    def documents(self, split: str) -> Iterator[str]:
        """Yield the text of each document of a split. Raises what `stream` and `tokenizer` do."""
        tokenizer = self.tokenizer()
        for ids in split_documents(self.stream(split), self.manifest.tokenizer.eot):
            yield tokenizer.decode(ids.tolist())

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer saved with the data. Raises `InputError` where it is not the one of the manifest."""
        tokenizer = Tokenizer.load(self.directory / TOKENIZER)
        if tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise InputError(
                f"{self.directory / TOKENIZER}: not the tokenizer that the data was made with "
                f"({self._made_with}...); copy or prepare the data again"
            )
        return tokenizer

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise `InputError` unless the data was made with this tokenizer."""
        if tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise InputError(
                f"{self.directory}: made with tokenizer {self._made_with}..., given {tokenizer.fingerprint[:16]}...; "
                f"use {self.directory / TOKENIZER} or prepare the data with yours"
            )

    @property
    def _made_with(self) -> str:
        return self.manifest.tokenizer.fingerprint[:16]


_SPLIT = re.compile(r"(?:^|[._-])(train|val|validation|test)(?=[._-])")


def import_shards(directory: Path, tokenizer: Tokenizer, *, raw: bool = False) -> TokenDataset:
    """Write ``manifest.json`` and ``tokenizer/`` into a folder of token files, and open it as prepared data.

    Args:
        directory: Holds ``.bin`` files of llm.c's format or ``.npy`` files, each with train, val or test in its name.
        tokenizer: The one that the tokens are of.
        raw: The ``.bin`` files have no header: uint16 and nothing else, as nanoGPT writes them.

    Raises:
        InputError: No such files, a manifest that is there already, a damaged file, a name that tells no split, a split
            without text, an id beyond the vocabulary, or a tokenizer without ``<|endoftext|>``.
    """
    if tokenizer.eot is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; give the files' own")
    if (directory / MANIFEST).exists():
        raise InputError(f"{directory}: has a {MANIFEST} already; it is prepared data as it is")
    forms = {path: _form_of(path, raw) for path in _files(directory)}
    shards = {path: OPENERS[form](path) for path, form in forms.items()}
    infos = tuple(
        ShardInfo(path.name, _split_of(path), shard.tokens, checked_sha256(shard, tokenizer.n_vocab), forms[path])
        for path, shard in shards.items()
    )
    splits = {split: [shards[directory / info.name] for info in infos if info.split == split] for split in SPLITS}
    manifest = DataManifest(
        source=SourceInfo((str(directory),), 0, None),
        tokenizer=TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot),
        split_rule=SplitRule("given", 0.0, 0.0),
        splits={split: _describe(split, found, tokenizer) for split, found in splits.items() if found},
        shards=infos,
    )
    tokenizer.save(directory / TOKENIZER)
    manifest.save(directory)
    return TokenDataset(directory)


def _files(directory: Path) -> list[Path]:
    files = sorted([*directory.glob("*.bin"), *directory.glob("*.npy")])
    if not files:
        raise InputError(f"{directory}: holds no .bin and no .npy files; give the folder that the token files lie in")
    return files


def _form_of(path: Path, raw: bool) -> str:
    if path.suffix == ".npy":
        return "npy"
    return "raw" if raw else "llm.c"


def _split_of(path: Path) -> str:
    named = set(_SPLIT.findall(path.name))
    if len(named) != 1:
        raise InputError(f"{path}: its name must tell its split by one of train, val and test, as train_0.bin does")
    return named.pop().removesuffix("idation")


def _describe(split: str, shards: list[Shard], tokenizer: Tokenizer) -> SplitInfo:
    assert tokenizer.eot is not None
    stream = TokenStream(split, shards)
    found = survey(stream, tokenizer.n_vocab, tokenizer.eot)
    if not len(found.lengths):
        raise InputError(
            f"{shards[0].path}: {split} holds {len(stream)} tokens and no text; copy it again, or remove it"
        )
    sizes = np.array([len(token) for token in tokenizer.vocab.values()])
    sizes[tokenizer.eot] = 0  # no text
    return SplitInfo(len(found.lengths), len(stream), int(found.counts @ sizes), None)
