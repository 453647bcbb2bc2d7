"""From text to a folder of token files: chunk by chunk, to be stopped at any moment and gone on with.

    sources -> chunks     for each: fetch -> documents -> splits -> ids -> token files -> delete what was fetched
                            in the end: names, manifest                         bounded memory, a given amount of disk

Every document begins with ``<|endoftext|>``, as in llm.c's files:

    eot d d d d eot d d eot d d d ...

so what is predicted of a document has a context that begins where it does, and a split of D documents has D tokens more
than its text. All but the first token are predicted: every token of the text once, and D - 1 ends. By the chain rule
their loss is on average at least the documents' -log2 probabilities (an end that is certain costs nothing).

A token file holds documents of one chunk, so any number of processes can share the chunks out: chunk i is done
by process i mod world. No process waits for another. Whichever completes the last chunk writes the manifest, and a
process that fails stops nobody else: what it lacks is done when the command is run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from gpt2lab.data.corpora import CORPORA
from gpt2lab.data.dataset import TOKENIZER, TokenDataset
from gpt2lab.data.download import DiskBudget, DiskFull, Unreachable, bytes_below, explaining_full_disk
from gpt2lab.data.selection import FEW_DOCUMENTS, SPLITS, Cleaner, SplitRule, overlap, read_hashes
from gpt2lab.data.shards import (
    MANIFEST,
    DataManifest,
    LeftOut,
    ShardInfo,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
    format_for,
    is_incomplete,
)
from gpt2lab.data.sources import Chunk, fetched, here, read_chunk, resolve
from gpt2lab.data.writing import SOURCE, Journal, Plan, Record, Writing, take_tokens, write_documents
from gpt2lab.errors import InputError
from gpt2lab.files import locked
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

CLAIMS = "claims"


class AlreadyPreparing(InputError):
    """Another process works on what was asked for."""


@contextmanager
def preparation_lock(folder: Path, chunks: Sequence[int]) -> Iterator[None]:
    """Keep other processes from some chunks of the journal in ``folder``.

    Raises:
        AlreadyPreparing: Another process works on one of them.
    """
    if not chunks:  # whoever completes the others may already be deleting the folder
        yield
        return
    taken = AlreadyPreparing(f"{folder.parent} is being prepared by another process; wait for it, or end it")
    with locked(folder / CLAIMS, taken, chunks):
        yield


DEFAULT_FRACTION = 0.05
_ENOUGH_HELD_OUT = 10_000
"""Documents below which no smaller share than that is held out of the beginning of a large corpus."""
_SAMPLE = """The town lies where two rivers meet, and for three hundred years its people have lived from what they
carry. "Nobody plans a harbour here," said Dr. Ines Walker, who has studied the region since 1994. "It grew, one
warehouse at a time." In the last decade, however, the number of ships has fallen by 38%, and the council must decide by
September whether to spend $12 million on a new bridge. What would visitors see? A market, a museum of clocks, and some
of the best bread in the country: small reasons, perhaps, but they're enough for us to come back every year.
"""
"""English as it stands on the web: how many bytes a tokenizer's token has there, before anything is downloaded."""


@dataclass(frozen=True)
class PrepareConfig:
    """What is prepared: these options decide every byte that is written."""

    sources: tuple[str, ...]
    """Files (.txt, .jsonl or .parquet, also as .gz or .zst), directories, quoted patterns of names, corpora (see
    data list), or hub:OWNER/NAME."""
    seed: int = 0
    """Seed of "stories"."""
    max_documents: int | None = None
    """Use only the first N documents (of each split, for a corpus that comes in splits)."""
    column: str | None = None
    """Name of the text column of JSON lines and Parquet files. Default: "text"."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not valid UTF-8: reject the file ("strict") or replace each of them ("replace")."""
    val_fraction: float | None = None
    """Fraction of the documents held out for validation; 0 for none. Default: the corpus's own fraction, else 0.05,
    or none for a corpus that comes in splits."""
    test_fraction: float | None = None
    """Fraction of the documents held out for the final test, with the same default; 0 for none."""
    min_length: int = 0
    """Drop documents with fewer characters."""
    deduplicate: bool = False
    """Drop documents that are exact copies of an earlier one; needs 8 bytes of memory per document."""
    shard_tokens: int = 100_000_000
    """Tokens per shard file."""

    def arguments(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return them as they are written down, with the tokenizer's fingerprint."""
        return {**asdict(self), "sources": list(self.sources), "tokenizer": tokenizer.fingerprint}


def make_plan(config: PrepareConfig, tokenizer: Tokenizer, max_disk: int | None, world: int) -> Plan:
    """Look at every source and plan its chunks.

    Raises:
        InputError: A source or an argument cannot be used.
        DiskFull: The output and the largest download of each process will not fit in ``max_disk``.
    """
    if config.min_length < 0:
        raise InputError(f"min_length is {config.min_length}; it must be 0 or more characters")
    if max_disk is not None and max_disk < 1:
        raise InputError(f"max_disk is {max_disk}; it must be 1 byte or more, or be left out")
    chunks = tuple(
        resolve(
            config.sources,
            seed=config.seed,
            max_documents=config.max_documents,
            column=config.column,
            errors=config.errors,
        )
    )
    if any(chunk.cut == "tokens" for chunk in chunks):
        _refuse_for_tokens(config)
    rule, chunks = _divided(config, chunks)
    needed = world * max(chunk.download for chunk in chunks) + output_bytes(chunks, tokenizer)
    if max_disk is not None and config.max_documents is None and needed > max_disk:
        raise DiskFull(
            f"about {needed:,} bytes are needed (token files and what is downloaded at once), "
            f"--max-disk allows {max_disk:,}; give more, or take a smaller corpus"
        )
    return Plan(config.arguments(tokenizer), rule, chunks)


def output_bytes(chunks: Sequence[Chunk], tokenizer: Tokenizer) -> int:
    """Return about how many bytes of token files the chunks will make."""
    size = format_for(tokenizer.n_vocab).dtype.itemsize
    rate = len(tokenizer.encode(_SAMPLE)) / len(_SAMPLE.encode())
    text = sum(chunk.text_bytes for chunk in chunks if chunk.cut != "tokens")
    return int(text * rate) * size + sum(chunk.download for chunk in chunks if chunk.cut == "tokens")


def _refuse_for_tokens(config: PrepareConfig) -> None:
    names = ("max_documents", "min_length", "deduplicate", "column", "val_fraction", "test_fraction")
    if given := [name for name in names if getattr(config, name)]:
        option = "--" + given[0].replace("_", "-")
        raise InputError(f"{', '.join(config.sources)}: comes as tokens, taken as they are; leave {option} out")


def _divided(config: PrepareConfig, chunks: tuple[Chunk, ...]) -> tuple[SplitRule, tuple[Chunk, ...]]:
    """Return the rule of the splits, and the chunks, of which those without a split are divided by it."""
    held = {chunk.split for chunk in chunks}
    if "" in held:
        return _rule(config, chunks, _default_fraction(config)), chunks
    for split, fraction in (("val", config.val_fraction), ("test", config.test_fraction)):
        if fraction is not None and split in held:
            raise InputError(
                f"{', '.join(config.sources)}: comes in splits of its own, {split} too; leave --{split}-fraction out"
            )
    if not (config.val_fraction or config.test_fraction):
        return SplitRule("given", 0.0, 0.0), chunks
    cut = tuple(replace(one, split="") if one.split == "train" else one for one in chunks)
    return _rule(config, cut, 0.0), cut  # what it lacks is held out of what it trains on


def _rule(config: PrepareConfig, chunks: Sequence[Chunk], default: float) -> SplitRule:
    val = default if config.val_fraction is None else config.val_fraction
    test = default if config.test_fraction is None else config.test_fraction
    few = _count(chunks, config.max_documents) < FEW_DOCUMENTS
    return SplitRule("position" if few else "hash", val, test)


def _default_fraction(config: PrepareConfig) -> float:
    """Return the smallest of the sources' shares; of the first documents only, more, so that no split is empty."""
    default = min(CORPORA[name].held_out if name in CORPORA else DEFAULT_FRACTION for name in config.sources)
    if config.max_documents is None:
        return default
    return min(DEFAULT_FRACTION, max(default, _ENOUGH_HELD_OUT / config.max_documents))


def _count(chunks: Sequence[Chunk], limit: int | None) -> int:
    """Return the number of documents, or `FEW_DOCUMENTS` where it is that or more."""
    most = FEW_DOCUMENTS if limit is None else min(FEW_DOCUMENTS, limit)
    if any(file.url and not file.name.endswith(".txt") for chunk in chunks for file in chunk.files):
        return most
    fetched = sum(bool(file.url) for chunk in chunks for file in chunk.files)  # a text of the catalogue is one
    local = chain.from_iterable(read_chunk(p, here(p)) for p in chunks if not p.download)
    return min(most, fetched + sum(1 for _ in islice(local, FEW_DOCUMENTS)))


def is_complete(out: Path, config: PrepareConfig, tokenizer: Tokenizer) -> bool:
    """Return whether a folder holds what a config makes."""
    if not (out / MANIFEST).exists():
        return False
    manifest = DataManifest.load(out)
    return (
        manifest.source == source_info(config)
        and manifest.tokenizer.fingerprint == tokenizer.fingerprint
        and config.val_fraction in (None, manifest.split_rule.val_fraction)
        and config.test_fraction in (None, manifest.split_rule.test_fraction)
    )


def source_info(config: PrepareConfig) -> SourceInfo:
    """Return what the manifest says of the sources."""
    return SourceInfo(
        config.sources,
        config.seed,
        config.max_documents,
        config.column,
        config.errors,
        config.min_length,
        config.deduplicate,
        config.shard_tokens,
    )


def finish(plan: Plan, journal: Journal, tokenizer: Tokenizer, config: PrepareConfig, out: Path) -> TokenDataset | None:
    """Name the token files and write the manifest, if all chunks are complete; else return None.

    Raises:
        InputError: A split that is wanted has nothing; the folder is removed, as going on would end here again.
    """
    indices = range(len(plan.chunks))
    if not all(map(journal.is_complete, indices)):
        return TokenDataset(out) if (out / MANIFEST).exists() else None  # another process was quicker
    try:
        records = [journal.record(index) for index in indices]
        splits = {split: info for split in SPLITS if (info := _sum(split, records)).documents}
        _require_all(splits, plan.rule, out)
        given = any(chunk.split for chunk in plan.chunks)
        folders = [journal.of(index) for index in indices]
        left_out = LeftOut(
            sum(record.short for record in records),
            sum(record.duplicates for record in records),
            overlap(folders) if given and not config.deduplicate else 0,
        )
        tokenizer.save(out / TOKENIZER)
        assert tokenizer.eot is not None
        DataManifest(
            source=source_info(config),
            tokenizer=TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot),
            split_rule=plan.rule,
            splits=splits,
            shards=tuple(_named(journal, records)),
            left_out=left_out,
        ).save(out)
    except (OSError, InputError):
        if not (out / MANIFEST).exists():
            raise
    journal.remove()
    return TokenDataset(out)


def _named(journal: Journal, records: Sequence[Record]) -> Iterator[ShardInfo]:
    """Give the token files of all chunks their names, split by split."""
    for split in SPLITS:
        number = count()
        for index, record in enumerate(records):
            for shard in record.shards:
                if shard.split == split:
                    yield journal.finish(index, shard, f"{split}_{next(number):06d}.bin")


def _sum(split: str, records: Sequence[Record]) -> SplitInfo:
    infos = [record.splits[split] for record in records if split in record.splits]
    bits = [info.entropy_bits for info in infos]
    return SplitInfo(
        sum(info.documents for info in infos),
        sum(info.tokens for info in infos),
        sum(info.bytes for info in infos),
        None if None in bits else sum(bit for bit in bits if bit is not None),
    )


def _require_all(splits: dict[str, SplitInfo], rule: SplitRule, out: Path) -> None:
    if empty := [split for split in rule.wanted() if split not in splits]:
        shutil.rmtree(out, ignore_errors=True)  # going on would end here again
        raise InputError(
            f"the text is too short to hold out val {rule.val_fraction:g} and test {rule.test_fraction:g} of it: "
            f"nothing is left for {' and '.join(empty)}; give more text, larger fractions, or 0 for none"
        )


ProgressCallback: TypeAlias = Callable[[int, int, int, int], None]
"""Called with the documents, bytes of text and tokens written so far, and about how many bytes it will be in all."""
_SMALL_FILES = 1 << 23
"""More bytes than plan, tokenizer and manifest take."""


def prepare(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    out: Path,
    *,
    max_disk: int | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> TokenDataset:
    """Tokenize the sources into the directory ``out`` and open it. The same arguments give the same bytes.

    Args:
        sources: Files, directories, patterns, names of corpora, datasets of the Hub; see `documents`.
        tokenizer: Encodes the text; saved with the data.
        out: Directory to create; it must not exist, unless an earlier call with the same arguments was stopped.
        max_disk: Bytes that downloads and token files may occupy at any moment.
        progress: Called after each batch.
        options: Fields of `PrepareConfig`, such as ``val_fraction=0.1``.

    Raises:
        InputError: ``out`` holds something else, a source cannot be read, an argument is out of range, a split would
            be empty, or the tokenizer has no ``<|endoftext|>``.
        DiskFull: The disk or ``max_disk`` is exhausted; finished parts are kept.
        Unreachable: A download failed repeatedly; finished parts are kept.
        AlreadyPreparing: Another process is preparing the same directory.
    """
    config = PrepareConfig(tuple(sources), **options)
    dataset = prepare_shards(config, tokenizer, out, max_disk=max_disk, progress=progress)
    assert dataset is not None  # a single process prepares everything
    return dataset


def prepare_shards(
    config: PrepareConfig,
    tokenizer: Tokenizer,
    out: Path,
    *,
    max_disk: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: ProgressCallback | None = None,
) -> TokenDataset | None:
    """Do process ``rank``'s share of `prepare`; return the data where that completes it, else None.

    All processes write to the same folder, each in its own subfolders, and keep to ``max_disk / world``.
    """
    if tokenizer.eot is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; train one with it")
    if world > 1 and (config.deduplicate or config.max_documents):
        option = "--deduplicate" if config.deduplicate else "--max-documents"
        raise InputError(f"{option} goes through all documents in order; prepare with one process, not {world}")
    is_new = not is_incomplete(out)
    journal = Journal(out)
    if is_new and out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (world > 1 or journal.folder.exists()) and is_complete(out, config, tokenizer):
            journal.remove()  # where a kill came after the manifest
            return TokenDataset(out)
        raise InputError(f"{out}: exists already and is left as it is; choose a folder that does not exist")
    with explaining_full_disk(out, _SMALL_FILES):
        plan = journal.plan(config.arguments(tokenizer), partial(make_plan, config, tokenizer, max_disk, world))
    own = range(rank, len(plan.chunks), world)
    try:
        with preparation_lock(journal.folder, [index for index in own if not journal.is_complete(index)]):
            _Preparation(plan, journal, tokenizer, max_disk and max_disk // world, own).run(progress)
        with explaining_full_disk(out, _SMALL_FILES):
            return finish(plan, journal, tokenizer, config, out)
    except (DiskFull, Unreachable, AlreadyPreparing):
        raise
    except InputError:
        if is_new and world == 1 and not any(map(journal.is_complete, own)):
            shutil.rmtree(out, ignore_errors=True)  # it is ours, and nothing in it is of use
        raise


class _Preparation:
    """One process's part of preparing a folder."""

    def __init__(self, plan: Plan, journal: Journal, tokenizer: Tokenizer, max_disk: int | None, own: range) -> None:
        self._plan = plan
        self._journal = journal
        self._tokenizer = tokenizer
        self._own = own
        for index in own:  # what a kill left
            if journal.is_complete(index):
                journal.delete_fetched(index)
            elif journal.of(index).exists():
                journal.begin(index)
        self._budget = DiskBudget(max_disk, sum(bytes_below(journal.of(index)) for index in own))
        self._done: list[Record] = []

    def run(self, progress: ProgressCallback | None) -> None:
        """Write every chunk of the process that is not complete."""
        for index in self._own:
            if not self._journal.is_complete(index):
                left = [self._plan.chunks[i] for i in self._own if i >= index]
                needed = output_bytes(left, self._tokenizer) + max(chunk.download for chunk in left)
                with explaining_full_disk(self._journal.folder, needed):
                    self._write(index, progress)
            self._done.append(self._journal.record(index))

    def _write(self, index: int, progress: ProgressCallback | None) -> None:
        chunk, arguments = self._plan.chunks[index], self._plan.arguments
        limit = arguments["max_documents"]
        if limit is not None and (limit := limit - self._read_of(chunk.split)) == 0:
            self._journal.begin(index)
            self._journal.complete(index, Record(0, 0, 0, {}, ()))
            return
        folder = self._journal.begin(index)
        seen = [self._journal.of(i) for i in range(index)] if arguments["deduplicate"] else []
        writing = Writing(
            folder=folder,
            tokenizer=self._tokenizer,
            rule=self._plan.rule,
            split=chunk.split,
            shard_tokens=arguments["shard_tokens"],
            reserve=self._budget.reserve,
            advance=self._teller(index, progress),
            cleaner=Cleaner(arguments["min_length"], arguments["deduplicate"], read_hashes(seen, SPLITS)),
            keeps_hashes=self._plan.keeps_hashes,
        )
        self._journal.complete(index, write_chunk(chunk, writing, self._budget, limit))
        self._budget.release(chunk.fetched_only)

    def _read_of(self, split: str) -> int:
        """Return the documents read so far of the chunks that came in a split, or in none."""
        done = zip(self._own, self._done, strict=False)
        return sum(record.documents for index, record in done if self._plan.chunks[index].split == split)

    def _teller(self, index: int, progress: ProgressCallback | None) -> Callable[[int, int, int], None]:
        """Return what adds a chunk's counts to those of the chunks before it."""
        if progress is None:
            return lambda documents, size, tokens: None
        before = [split for record in self._done for split in record.splits.values()]
        documents, size, tokens = (sum(getattr(s, name) for s in before) for name in ("documents", "bytes", "tokens"))
        after = sum(self._plan.chunks[i].text_bytes for i in self._own if i > index)
        here = self._plan.chunks[index].text_bytes
        return lambda d, b, t: progress(documents + d, size + b, tokens + t, size + max(here, b) + after)


def write_chunk(chunk: Chunk, how: Writing, budget: DiskBudget, limit: int | None = None) -> Record:
    """Write the token files of a chunk, of at most ``limit`` documents, to ``how.folder``; return what they hold.

    What is fetched lies in its subfolder `SOURCE`: to be deleted, and released from the budget, by who calls this.
    """
    paths = _fetch(chunk, how.folder / SOURCE, budget) if chunk.download else here(chunk)
    if chunk.cut == "tokens":
        return take_tokens(paths[0], how)
    return write_documents(read_chunk(chunk, paths), how, limit)


def _fetch(chunk: Chunk, folder: Path, budget: DiskBudget) -> list[Path]:
    folder.mkdir(exist_ok=True)
    budget.reserve(chunk.download - bytes_below(folder))
    return fetched(chunk, folder)
