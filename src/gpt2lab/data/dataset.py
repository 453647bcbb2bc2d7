"""Prepared data: the manifest, validation, statistics, and the import of token files of other projects."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from gpt2lab.data.documents import SPLITS, SplitRule
from gpt2lab.data.shards import FORMS, Shard, TokenStream, checked_sha256, mask_of, open_shard, with_mask
from gpt2lab.errors import InputError, one_of
from gpt2lab.files import from_json, read_checked_json, sha256_of, sync, write_checked_json
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = "preparing"
"""Subdirectory that holds the journal of an unfinished preparation; see `writing.Journal`."""
TOKENIZER = "tokenizer"
"""Subdirectory of prepared data that holds its tokenizer."""
HELD_OUT = "held-out"
"""Subdirectory of a streamed corpus that holds its validation and test splits, as prepared data."""
_SPLIT = re.compile(r"(?:^|[._-])(train|val|validation|test)(?=[._-])")


@dataclass(frozen=True)
class SourceInfo:
    """Where the text came from and how it was selected; see `prepare.PrepareConfig`."""

    names: tuple[str, ...]
    seed: int
    max_documents: int | None
    column: str | None = None
    errors: str = "strict"
    min_length: int = 0
    deduplicate: bool = False
    shard_tokens: int | None = None
    """None for imported files."""
    format: str = "text"
    """text or chat."""


_LATER_FIELDS = [("format", "text"), ("mask_sha256", None)]
"""Fields of a manifest, and the values that older manifests imply: these are left out, and equal data stay equal."""


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer of the ids."""

    fingerprint: str
    n_vocab: int
    eot: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerInfo:
        """Describe a tokenizer. Raises `InputError` if it has no ``<|endoftext|>``."""
        if tokenizer.eot is None:
            raise InputError(f"the tokenizer has no {END_OF_TEXT} to separate documents; use one that has it")
        return cls(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot)


@dataclass(frozen=True)
class SplitInfo:
    """Size of one split.

    ``bytes`` counts the text in UTF-8, without ``<|endoftext|>``. ``entropy_bits`` is the sum of the exact -log2
    probabilities of the documents, if all are known: the lowest loss any model can reach on average.
    """

    documents: int
    tokens: int
    bytes: int
    entropy_bits: float | None

    def __add__(self, other: SplitInfo) -> SplitInfo:
        bits = (self.entropy_bits, other.entropy_bits)
        return SplitInfo(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            None if bits[0] is None or bits[1] is None else bits[0] + bits[1],
        )


NOTHING = SplitInfo(0, 0, 0, 0.0)


@dataclass(frozen=True)
class ShardInfo:
    """One token file."""

    name: str
    split: str
    tokens: int
    sha256: str
    form: str = "llm.c"
    """A key of `FORMS`."""
    mask_sha256: str | None = None
    """SHA-256 of its mask; None if all tokens count in the loss."""


@dataclass(frozen=True)
class LeftOut:
    """Documents dropped on request, held-out documents that also occur in train, and why files were skipped."""

    short: int = 0
    duplicates: int = 0
    held_out_in_train: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


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
        """SHA-256 over the tokenizer's fingerprint and every shard's and mask's SHA-256: equal for equal data."""
        lines = [self.tokenizer.fingerprint]
        lines += [" ".join(filter(None, (shard.split, shard.sha256, shard.mask_sha256))) for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``manifest.json``."""
        tree = asdict(self, dict_factory=lambda items: dict(item for item in items if item not in _LATER_FIELDS))
        write_checked_json(directory / MANIFEST, {"format": MANIFEST_VERSION, **tree})
        sync(directory)

    @classmethod
    def load(cls, directory: Path) -> DataManifest:
        """Read ``manifest.json``.

        Raises:
            InputError: The directory is missing or incomplete, or its manifest is damaged or of another format version.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(_why_no_manifest(directory))
        tree = read_checked_json(path)
        version = tree.pop("format", None) if isinstance(tree, dict) else MANIFEST_VERSION
        if version != MANIFEST_VERSION:
            raise InputError(
                f"{path}: format {version}; this version reads format {MANIFEST_VERSION}: prepare the data again"
            )
        manifest = from_json(cls, tree, path)
        for name, split in manifest.splits.items():
            one_of(f"{path}: split", name, SPLITS)
            held = sum(shard.tokens for shard in manifest.shards if shard.split == name)
            if held != split.tokens:
                raise InputError(
                    f"{path}: {name} has {split.tokens} tokens, but its files hold {held}; prepare the data again"
                )
        return manifest


def is_incomplete(directory: Path) -> bool:
    """Return whether preparing this directory was stopped before it was complete."""
    return not (directory / MANIFEST).exists() and (directory / JOURNAL).is_dir()


def _why_no_manifest(directory: Path) -> str:
    if directory.is_file():
        return (
            f"{directory}: a file, not a directory of prepared data; prepare it with: "
            f"gpt2lab data prepare {directory} --tokenizer TOKENIZER --out DIR"
        )
    if not directory.is_dir():
        return f"{directory}: no such directory of prepared data; create it with: gpt2lab data prepare"
    if is_incomplete(directory):
        return f"{directory}: incomplete, because preparing it was stopped; run the same command again to resume"
    if any(directory.glob("*.bin")) or any(directory.glob("*.npy")):
        return (
            f"{directory}: holds token files, but no {MANIFEST} that names their tokenizer; write one with: "
            f"gpt2lab data import {directory} --tokenizer TOKENIZER"
        )
    return f"{directory}: holds no prepared data (no {MANIFEST}); create it with: gpt2lab data prepare"


class TokenDataset:
    """A directory of token files and the manifest that describes them; see `DataManifest`."""

    def __init__(self, directory: Path) -> None:
        """Open ``directory``; `stream` reads its token files.

        Raises:
            InputError: The data is missing, incomplete or damaged, or there are files that the manifest does not name.
        """
        self.directory = directory
        self.manifest = DataManifest.load(directory)
        named = {shard.name for shard in self.manifest.shards}
        named |= {mask_of(Path(shard.name)).name for shard in self.manifest.shards if shard.mask_sha256 is not None}
        if unnamed := sorted({path.name for end in ("bin", "mask") for path in directory.glob(f"*.{end}")} - named):
            raise InputError(f"{directory / unnamed[0]}: not listed in the manifest; move it elsewhere")

    @property
    def fingerprint(self) -> str:
        """Identifies the shards and their tokenizer, wherever they are stored."""
        return self.manifest.fingerprint

    def stream(self, split: str, every_byte: bool = True) -> TokenStream:
        """Return the tokens of ``"train"``, ``"val"`` or ``"test"`` after checking their files.

        Args:
            split: The split.
            every_byte: Read the files to the end and compare their SHA-256; otherwise only check headers and sizes,
                which is enough when another process checks the same files.

        Raises:
            InputError: No such split, or a file is missing, truncated, changed, or has an id beyond the vocabulary.
        """
        if split not in self.manifest.splits:
            raise InputError(
                f"{self.directory}: has no {split} split, only {', '.join(self.manifest.splits)}; choose one of these, "
                f"or prepare it with --{split}-fraction"
            )
        infos = [shard for shard in self.manifest.shards if shard.split == split]
        return TokenStream(f"{self.directory} ({split})", [self._checked(info, every_byte) for info in infos])

    def _checked(self, info: ShardInfo, every_byte: bool) -> Shard:
        one_of(f"form of {info.name} in {self.directory / MANIFEST}:", info.form, FORMS)
        shard = open_shard(self.directory / info.name, info.form)
        if shard.tokens != info.tokens:
            raise InputError(f"{shard.path}: {shard.tokens} tokens, the manifest says {info.tokens}; prepare it again")
        if every_byte and (sha256 := checked_sha256(shard, self.manifest.tokenizer.n_vocab)) != info.sha256:
            raise InputError(
                f"{shard.path}: changed since it was written (SHA-256 {sha256[:12]}..., the manifest says "
                f"{info.sha256[:12]}...); copy or prepare it again"
            )
        if info.mask_sha256 is None:
            return shard
        shard, mask = with_mask(shard), mask_of(shard.path)
        if every_byte and (sha256 := sha256_of(mask)) != info.mask_sha256:
            raise InputError(
                f"{mask}: changed since it was written (SHA-256 {sha256[:12]}..., the manifest says "
                f"{info.mask_sha256[:12]}...); copy or prepare it again"
            )
        return shard

    def documents(self, split: str) -> Iterator[str]:
        """Yield the text of each document of a split. Raises what `stream` and `tokenizer` do."""
        tokenizer = self.tokenizer()
        for ids in split_documents(self.stream(split).blocks(), self.manifest.tokenizer.eot):
            yield tokenizer.decode(ids.tolist())

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer saved with the data. Raises `InputError` if it is not the one in the manifest."""
        tokenizer, expected = Tokenizer.load(self.directory / TOKENIZER), self.manifest.tokenizer.fingerprint
        if tokenizer.fingerprint != expected:
            raise InputError(
                f"{self.directory / TOKENIZER}: not the tokenizer that the data was made with ({expected[:16]}...); "
                "copy or prepare the data again"
            )
        return tokenizer

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise `InputError` unless the data was made with this tokenizer."""
        expected = self.manifest.tokenizer.fingerprint
        if tokenizer.fingerprint != expected:
            raise InputError(
                f"{self.directory}: made with tokenizer {expected[:16]}..., given {tokenizer.fingerprint[:16]}...; "
                f"use {self.directory / TOKENIZER} or prepare the data with yours"
            )


def split_documents(blocks: Iterable[np.ndarray], eot: int) -> Iterator[np.ndarray]:
    """Yield the ids of each document that is not empty, whether ``<|endoftext|>`` precedes or follows documents."""
    held: list[np.ndarray] = []  # parts of the document that continues in the next block
    for block in chain(blocks, [np.array([eot])]):
        first, *rest = np.split(block, np.flatnonzero(block == eot))
        if len(first):  # the empty part before the last ``eot`` has another dtype
            held.append(first)
        for following in rest:
            if any(map(len, held)):
                yield np.concatenate(held)
            held = [following[1:]]


def documents_with_counts(stream: TokenStream, eot: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of each document that is not empty, and which of them count in the loss."""
    blocks = zip(stream.blocks(), stream.counted_blocks(), strict=True)
    coded = (2 * ids.astype(np.int64) + (counted & (ids != eot)) for ids, counted in blocks)  # a bit beside each id
    for document in split_documents(coded, 2 * eot):
        yield document >> 1, document % 2 == 1


@dataclass(frozen=True)
class Survey:
    """Statistics of a split.

    Attributes:
        counts: (n_vocab,) occurrences of each id.
        lengths: (documents,) tokens of each document, without ``<|endoftext|>``.
        hashes: (documents,) 64 bits of BLAKE2b of each document's ids.
    """

    counts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray


def survey(stream: TokenStream, n_vocab: int, eot: int) -> Survey:
    """Read a split once. Memory: 16 bytes per document, one block of tokens, and the counts."""
    lengths, hashes = array("q"), array("Q")
    counts = np.zeros(n_vocab, dtype=np.int64)

    def counted() -> Iterator[np.ndarray]:
        for block in stream.blocks():
            counts[:] += np.bincount(block, minlength=n_vocab)
            yield block

    for ids in split_documents(counted(), eot):
        lengths.append(len(ids))
        hashes.append(int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "big"))
    return Survey(counts, np.array(lengths), np.array(hashes))


def text_bytes(counts: np.ndarray, tokenizer: Tokenizer) -> int:
    """Return the bytes of text in tokens with these counts, (n_vocab,); ``<|endoftext|>`` has none."""
    sizes = np.zeros(tokenizer.n_vocab, dtype=np.int64)
    for number, token in tokenizer.vocab.items():
        sizes[number] = 0 if number == tokenizer.eot else len(token)
    return int(counts @ sizes)


def import_shards(directory: Path, tokenizer: Tokenizer, *, raw: bool = False) -> TokenDataset:
    """Write ``manifest.json`` and ``tokenizer/`` into a directory of token files, and open it as prepared data.

    Args:
        directory: Holds ``.bin`` files in llm.c's format or ``.npy`` files, each with train, val or test in its name;
            a ``.mask`` beside one says which of its tokens count in the loss (see shards.py).
        tokenizer: The tokenizer of the tokens.
        raw: The ``.bin`` files are plain uint16 without a header, as nanoGPT writes them.

    Raises:
        InputError: There are no such files, or a manifest already; a file is damaged, its name does not tell its
            split, or it has an id beyond the vocabulary; a split has no text; the tokenizer has no ``<|endoftext|>``.
    """
    made_with = TokenizerInfo.of(tokenizer)
    if (directory / MANIFEST).exists():
        raise InputError(f"{directory}: already has a {MANIFEST}; it is prepared data as it is")
    paths = sorted([*directory.glob("*.bin"), *directory.glob("*.npy")])
    if not paths:
        raise InputError(f"{directory}: holds no .bin and no .npy files; give the directory of the token files")
    forms = {path: "npy" if path.suffix == ".npy" else "raw" if raw else "llm.c" for path in paths}
    shards = {path: open_shard(path, form) for path, form in forms.items()}
    shards |= {path: with_mask(shard) for path, shard in shards.items() if mask_of(path).exists()}
    infos = tuple(
        ShardInfo(
            *(path.name, _split_of(path), shard.tokens, checked_sha256(shard, tokenizer.n_vocab), forms[path]),
            sha256_of(mask_of(path)) if shard.masked else None,
        )
        for path, shard in shards.items()
    )
    splits = {split: [shards[directory / info.name] for info in infos if info.split == split] for split in SPLITS}
    manifest = DataManifest(
        source=SourceInfo((str(directory),), 0, None),
        tokenizer=made_with,
        split_rule=SplitRule("given", 0.0, 0.0),
        splits={split: _info(split, found, tokenizer) for split, found in splits.items() if found},
        shards=infos,
    )
    tokenizer.save(directory / TOKENIZER)
    manifest.save(directory)
    return TokenDataset(directory)


def _split_of(path: Path) -> str:
    named = set(_SPLIT.findall(path.name))
    if len(named) != 1:
        raise InputError(f"{path}: its name must contain exactly one of train, val and test, as in train_0.bin")
    return named.pop().removesuffix("idation")


def _info(split: str, shards: Sequence[Shard], tokenizer: Tokenizer) -> SplitInfo:
    stream, made_with = TokenStream(split, shards), TokenizerInfo.of(tokenizer)
    found = survey(stream, made_with.n_vocab, made_with.eot)
    if not len(found.lengths):
        raise InputError(
            f"{shards[0].path}: {split} holds {len(stream)} tokens and no text; copy it again or remove it"
        )
    return SplitInfo(len(found.lengths), len(stream), text_bytes(found.counts, tokenizer), None)
