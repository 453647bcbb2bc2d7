"""From text to a directory of token files, chunk by chunk; it can be stopped at any moment and resumed.

    sources -> chunks     for each chunk: download -> documents -> splits -> ids -> shards -> delete the download
                          at the end: names, manifest                     bounded memory, bounded disk on request

Every document begins with ``<|endoftext|>``, as in llm.c's files:

    eot d d d d eot d d eot d d d ...

So the predictions within a document have a context that begins where the document does, and a split of D documents has
D tokens more than its text. All but the first token are predicted: every token of the text once, and D - 1 ends. By the
chain rule their mean loss is at least that of the documents' -log2 probabilities (a certain end costs nothing).

A shard holds documents of one chunk only, so any number of processes can share the work: chunk i is written by process
i mod world. No process waits for another; whichever finishes the last chunk writes the manifest. A process that fails
does not stop the others: what it leaves unfinished is done when the same command is run again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeAlias

from gpt2lab.data.dataset import (
    MANIFEST,
    NOTHING,
    TOKENIZER,
    DataManifest,
    LeftOut,
    ShardInfo,
    SourceInfo,
    SplitInfo,
    TokenDataset,
    TokenizerInfo,
    is_incomplete,
)
from gpt2lab.data.documents import FEW_DOCUMENTS, SPLITS, SplitRule, overlap, read_hashes
from gpt2lab.data.shards import format_for, mask_of
from gpt2lab.data.sources import CORPORA, Chunk, SourceConfig, files_of, read_chunk, require_some, resolve
from gpt2lab.data.writing import (
    ChunkRecord,
    ChunkWriter,
    DiskBudget,
    DiskFull,
    Journal,
    PreparePlan,
    explaining_full_disk,
)
from gpt2lab.errors import InputError, TemporaryError
from gpt2lab.files import bytes_below, locked
from gpt2lab.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

DEFAULT_FRACTION = 0.05
_ENOUGH_HELD_OUT = 10_000
"""Held-out documents that are enough: the default fraction of the first N documents aims at no more."""
_SAMPLE = """The town lies where two rivers meet, and for three hundred years its people have lived from what they
carry. "Nobody plans a harbour here," said Dr. Ines Walker, who has studied the region since 1994. "It grew, one
warehouse at a time." In the last decade, however, the number of ships has fallen by 38%, and the council must decide by
September whether to spend $12 million on a new bridge. What would visitors see? A market, a museum of clocks, and some
of the best bread in the country: small reasons, perhaps, but they're enough for us to come back every year.
"""
"""English as it is on the web, to estimate a tokenizer's bytes per token before anything is downloaded."""
_SMALL_FILES = 1 << 23
"""More bytes than the plan, the tokenizer and the manifest take."""

ProgressCallback: TypeAlias = Callable[[int, int, int, int], None]
"""Called with the documents, bytes of text and tokens written so far, and the estimated bytes of text in total."""


class AlreadyPreparing(TemporaryError):
    """Another process is preparing the same directory."""


@dataclass(frozen=True)
class PrepareConfig(SourceConfig):
    """What is prepared: these options decide every byte that is written."""

    val_fraction: float | None = None
    """Fraction of documents held out for validation. Default: the corpus's own, 0 if it comes in splits, else 0.05."""
    test_fraction: float | None = None
    """Fraction of the documents held out for the final test, with the same default; 0 for none."""
    min_length: int = 0
    """Drop documents with fewer characters."""
    deduplicate: bool = False
    """Drop documents that are exact copies of an earlier one; needs 8 bytes of memory per document."""
    shard_tokens: int = 100_000_000
    """Tokens per shard file."""
    special_tokens: bool = False
    """Recognize special tokens in the text, except <|endoftext|>; by default their texts are ordinary text."""

    def arguments(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return what the plan records: the tokenizer's fingerprint and the options, with which alone it resumes.

        What ``on_error`` stopped may resume by skipping, so this is not recorded.
        """
        options = {**asdict(self), "sources": list(self.sources), "tokenizer": tokenizer.fingerprint}
        del options["on_error"]
        unset = (("format", "text"), ("special_tokens", False))  # plans made before these options lack them
        return {name: value for name, value in options.items() if (name, value) not in unset}


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
    """Do the share of process ``rank`` in `prepare`; return the data if that completes it, else None.

    All processes write to the same directory, each to its own chunks, and each uses at most ``max_disk / world``.
    """
    TokenizerInfo.of(tokenizer)
    if config.special_tokens and tokenizer.special_tokens.keys() <= {END_OF_TEXT}:
        raise InputError(
            f"--special-tokens, but the tokenizer has none besides {END_OF_TEXT}; leave it out, or add some with "
            "gpt2lab tokenizer add-special"
        )
    if world > 1 and (config.deduplicate or config.max_documents):
        option = "--deduplicate" if config.deduplicate else "--max-documents"
        raise InputError(f"{option} needs all documents in order; prepare with one process, not {world}")
    is_new = not is_incomplete(out)
    journal = Journal(out)
    if is_new and out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (world > 1 or journal.folder.exists()) and _is_complete(out, config, tokenizer):
            journal.remove()  # left by a kill between the manifest and this
            return TokenDataset(out)
        raise InputError(f"{out}: already exists and was not changed; choose a directory that does not exist")
    with explaining_full_disk(out, _SMALL_FILES):
        plan = journal.plan(config.arguments(tokenizer), partial(make_plan, config, tokenizer, max_disk, world))
    taken = AlreadyPreparing(f"{out} is being prepared by another process; wait until it ends, or stop it")
    own = range(rank, len(plan.chunks), world)
    try:
        unfinished = [index for index in own if not journal.is_complete(index)]
        # with nothing left to do here, whoever completes the others may already be deleting the journal
        with locked(journal.folder / "lock", taken, unfinished) if unfinished else nullcontext():
            limit = max_disk and max_disk // world
            _write_chunks(plan, journal, tokenizer, own, limit, config.on_error == "skip", progress)
        with explaining_full_disk(out, _SMALL_FILES):
            return finish(plan, journal, tokenizer, config)
    except InputError as error:
        is_useless = is_new and world == 1 and not any(map(journal.is_complete, own))
        if is_useless and not isinstance(error, TemporaryError):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _write_chunks(
    plan: PreparePlan,
    journal: Journal,
    tokenizer: Tokenizer,
    own: Sequence[int],
    max_disk: int | None,
    skip: bool,
    progress: ProgressCallback | None,
) -> None:
    """Write the chunks ``own`` that are not finished."""
    for index in own:  # what a kill left
        if journal.is_complete(index):
            journal.delete_downloads(index)
        elif journal.chunk(index).exists():
            journal.begin(index)
    budget = DiskBudget(max_disk, sum(bytes_below(journal.chunk(index)) for index in own))
    deduplicate, most = plan.arguments["deduplicate"], plan.arguments["max_documents"]
    keep_hashes = deduplicate or any(chunk.split for chunk in plan.chunks)
    done: list[ChunkRecord] = []
    read: Counter[str] = Counter()  # documents of the chunks with a given split
    for index in own:
        chunk = plan.chunks[index]
        if not journal.is_complete(index):
            left = [plan.chunks[i] for i in own if i >= index]
            needed = output_bytes(left, tokenizer) + max(chunk.download for chunk in left)
            with explaining_full_disk(journal.folder, needed):
                writer = ChunkWriter(chunk, journal.begin(index), tokenizer, plan, budget, skip, keep_hashes)
                if deduplicate:
                    writer.seen = read_hashes([journal.chunk(i) for i in range(index)], SPLITS)
                if progress is not None:
                    before = sum((split for record in done for split in record.splits.values()), NOTHING)
                    after = sum(later.text_bytes for later in left[1:])
                    writer.advance = partial(_report, progress, before, chunk.text_bytes, after)
                journal.complete(index, writer.write(None if most is None else most - read[chunk.split]))
        done.append(journal.record(index))
        read[chunk.split] += done[-1].documents


def _report(progress: ProgressCallback, before: SplitInfo, this: int, after: int, now: SplitInfo) -> None:
    """Report what was written ``before`` and ``now`` of a chunk of ``this`` many bytes, with ``after`` to come."""
    total = before + now
    progress(total.documents, total.bytes, total.tokens, before.bytes + max(this, now.bytes) + after)


def make_plan(config: PrepareConfig, tokenizer: Tokenizer, max_disk: int | None, world: int) -> PreparePlan:
    """Look up every source and plan the chunks.

    Raises:
        InputError: A source or an option cannot be used.
        DiskFull: The output and the largest download of each process do not fit in ``max_disk``.
    """
    if config.min_length < 0:
        raise InputError(f"min_length is {config.min_length}; it must be 0 or more characters")
    if max_disk is not None and max_disk < 1:
        raise InputError(f"max_disk is {max_disk}; it must be at least 1 byte")
    chunks = tuple(resolve(config))
    unusable = ("max_documents", "min_length", "deduplicate", "column", "val_fraction", "test_fraction")
    given = ["--" + name.replace("_", "-") for name in unusable if getattr(config, name)]
    if given and any(chunk.cut == "tokens" for chunk in chunks):
        raise InputError(f"{', '.join(config.sources)}: comes as tokens, used unchanged; leave out {given[0]}")
    rule, chunks = _split(config, chunks)
    needed = world * max(chunk.download for chunk in chunks) + output_bytes(chunks, tokenizer)
    if max_disk is not None and config.max_documents is None and needed > max_disk:
        raise DiskFull(
            f"about {needed:,} bytes are needed (shards and concurrent downloads), but --max-disk allows {max_disk:,}; "
            "allow more, or choose a smaller corpus"
        )
    return PreparePlan(config.arguments(tokenizer), rule, chunks)


def output_bytes(chunks: Sequence[Chunk], tokenizer: Tokenizer) -> int:
    """Return about how many bytes the shards of the chunks will take."""
    size = format_for(tokenizer.n_vocab).dtype.itemsize
    rate = len(tokenizer.encode(_SAMPLE)) / len(_SAMPLE.encode())
    text = sum(chunk.text_bytes for chunk in chunks if chunk.cut != "tokens")
    return int(text * rate) * size + sum(chunk.download for chunk in chunks if chunk.cut == "tokens")


def _split(config: PrepareConfig, chunks: tuple[Chunk, ...]) -> tuple[SplitRule, tuple[Chunk, ...]]:
    """Return the split rule and the chunks; the rule divides those without a given split."""
    given = {chunk.split for chunk in chunks}
    default = 0.0
    if "" in given:
        default = _default_fraction(config)
    else:
        for split, fraction in (("val", config.val_fraction), ("test", config.test_fraction)):
            if fraction is not None and split in given:
                raise InputError(
                    f"{', '.join(config.sources)}: comes in splits of its own, including {split}; leave out "
                    f"--{split}-fraction"
                )
        if not (config.val_fraction or config.test_fraction):
            return SplitRule("given", 0.0, 0.0), chunks
        # the split that is missing is held out of the training text
        chunks = tuple(replace(chunk, split="") if chunk.split == "train" else chunk for chunk in chunks)
    val = default if config.val_fraction is None else config.val_fraction
    test = default if config.test_fraction is None else config.test_fraction
    return SplitRule("position" if _are_few(chunks, config) else "hash", val, test), chunks


def _default_fraction(config: PrepareConfig) -> float:
    """Return the smallest fraction of the sources; more for the first N documents only, so that no split is empty."""
    default = min(CORPORA[name].held_out if name in CORPORA else DEFAULT_FRACTION for name in config.sources)
    if config.max_documents is None:
        return default
    return min(DEFAULT_FRACTION, max(default, _ENOUGH_HELD_OUT / config.max_documents))


def _are_few(chunks: Sequence[Chunk], config: PrepareConfig) -> bool:
    """Return whether there are fewer than `FEW_DOCUMENTS` documents; a download other than text is taken for many."""
    if config.format == "chat":  # half a conversation is none
        return False
    if config.max_documents is not None and config.max_documents < FEW_DOCUMENTS:
        return True
    downloads = [file.name for chunk in chunks for file in chunk.files if file.url]
    if not all(name.endswith(".txt") for name in downloads):
        return False
    skipped = {} if config.on_error == "skip" else None
    local = (read_chunk(chunk, files_of(chunk, Path()), skipped) for chunk in chunks if not chunk.download)
    return len(downloads) + sum(1 for _ in islice(chain.from_iterable(local), FEW_DOCUMENTS)) < FEW_DOCUMENTS


def _is_complete(out: Path, config: PrepareConfig, tokenizer: Tokenizer) -> bool:
    """Return whether a directory holds the data that ``config`` describes."""
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
    """Return what the manifest records of the options."""
    options = {field.name: getattr(config, field.name) for field in fields(SourceInfo) if field.name != "names"}
    return SourceInfo(config.sources, **options)


def finish(plan: PreparePlan, journal: Journal, tokenizer: Tokenizer, config: PrepareConfig) -> TokenDataset | None:
    """If all chunks are finished, name the shards, write the manifest and return the data; else return None.

    Raises:
        InputError: A split that was asked for is empty. The directory is removed, since resuming would end here again.
    """
    out, indices = journal.out, range(len(plan.chunks))
    if not all(map(journal.is_complete, indices)):
        return TokenDataset(out) if (out / MANIFEST).exists() else None  # another process completed it
    try:
        records = [journal.record(index) for index in indices]
        infos = {s: sum((r.splits[s] for r in records if s in r.splits), NOTHING) for s in SPLITS}
        splits = {split: info for split, info in infos.items() if info.documents}
        skipped = {name: why for record in records for name, why in record.skipped.items()}
        try:
            require_some(len(splits), skipped)
            _require_all(splits, plan.rule)
        except InputError:
            shutil.rmtree(out, ignore_errors=True)
            raise
        given = any(chunk.split for chunk in plan.chunks)
        left_out = LeftOut(
            sum(record.short for record in records),
            sum(record.duplicates for record in records),
            overlap([journal.chunk(index) for index in indices]) if given and not config.deduplicate else 0,
            skipped,
        )
        tokenizer.save(out / TOKENIZER)
        shards = tuple(_move_shards(journal, records))
        DataManifest(source_info(config), TokenizerInfo.of(tokenizer), plan.rule, splits, shards, left_out).save(out)
    except (OSError, InputError):
        if not (out / MANIFEST).exists():  # else another process completed it meanwhile
            raise
    journal.remove()
    return TokenDataset(out)


def _move_shards(journal: Journal, records: Sequence[ChunkRecord]) -> Iterator[ShardInfo]:
    """Move the shards of all chunks out of the journal, numbered within each split."""
    for split in SPLITS:
        number = count()
        for index, record in enumerate(records):
            for shard in record.shards:
                if shard.split == split:
                    target = journal.out / f"{split}_{next(number):06d}.bin"
                    source = journal.chunk(index) / shard.name
                    if shard.mask_sha256 is not None:
                        _move(mask_of(source), mask_of(target))
                    _move(source, target)
                    yield replace(shard, name=target.name)


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        if not target.exists():  # else an earlier call or another process moved it
            raise


def _require_all(splits: dict[str, SplitInfo], rule: SplitRule) -> None:
    wanted = {"train": 1.0, "val": rule.val_fraction, "test": rule.test_fraction}
    if empty := [split for split in SPLITS if rule.by != "given" and wanted[split] and split not in splits]:
        raise InputError(
            f"the text is too short to hold out val {rule.val_fraction:g} and test {rule.test_fraction:g} of it: "
            f"nothing is left for {' and '.join(empty)}; give more text, larger fractions, or 0 for none"
        )
