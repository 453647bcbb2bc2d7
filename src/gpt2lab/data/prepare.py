"""From text to a folder of token files: portion by portion, to be stopped at any moment and gone on with.

    sources -> portions     for each: fetch -> documents -> splits -> ids -> token files -> delete what was fetched
                            in the end: names, manifest                         bounded memory, a given amount of disk

Every document begins with ``<|endoftext|>``, as in llm.c's files:

    eot d d d d eot d d eot d d d ...

so what is predicted of a document has a context that begins where it does, and a split of D documents has D tokens more
than its text. All but the first token are predicted: every token of the text once, and D - 1 ends. By the chain rule
their loss is on average at least the documents' -log2 probabilities (an end that is certain costs nothing).

A token file holds documents of one portion, so any number of processes can share the portions out: portion i is done
by process i mod world. No process waits for another. Whichever completes the last portion writes the manifest, and a
process that fails stops nobody else: what it lacks is done when the command is run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from gpt2lab.data.claim import Claimed, claimed
from gpt2lab.data.cleaning import Cleaner, read_hashes
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.disk import DiskBudget, DiskFull, bytes_below, explaining_full_disk
from gpt2lab.data.download import Unreachable
from gpt2lab.data.finishing import finish, is_complete
from gpt2lab.data.journal import SOURCE, Journal, Plan, Record
from gpt2lab.data.manifest import is_half_written
from gpt2lab.data.planning import Recipe, make_plan, output_bytes
from gpt2lab.data.portions import Portion, read_portion
from gpt2lab.data.sources import fetched, here
from gpt2lab.data.split import SPLITS
from gpt2lab.data.writing import Writing, take_tokens, write_documents
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import END_OF_TEXT, Tokenizer

Progress: TypeAlias = Callable[[int, int, int, int], None]
"""Called with the documents, bytes of text and tokens written so far, and about how many bytes it will be in all."""
_SMALL_FILES = 1 << 23
"""More bytes than plan, tokenizer and manifest take."""


def prepare(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    out: Path,
    *,
    seed: int = 0,
    max_documents: int | None = None,
    column: str | None = None,
    errors: str = "strict",
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    min_length: int = 0,
    deduplicate: bool = False,
    shard_tokens: int = 100_000_000,
    max_disk: int | None = None,
    progress: Progress | None = None,
) -> TokenDataset:
    """Write the sources' tokens to the folder ``out`` and open it. The same arguments give the same bytes.

    Args:
        sources: Files, folders, patterns, names of corpora, data sets of the hub; see `documents`.
        tokenizer: Encodes the text; saved with the data.
        out: Folder to make; it must not exist, unless an earlier call with the same arguments was stopped.
        seed: Seed of the stories.
        max_documents: Take only the first so many documents; where they come in splits, of each.
        column: Where the text of JSON lines and Parquet stands; ``text`` by default.
        errors: What to do with files that are not UTF-8: ``"strict"`` or ``"replace"``.
        val_fraction: Share held out for validation; 0 for none. By default what the catalogue says, else 0.05.
        test_fraction: Share held out for the test; 0 for none. The same.
        min_length: Leave out documents of fewer characters.
        deduplicate: Leave out documents that came before; takes 8 bytes of memory a document (see `cleaning`).
        shard_tokens: Tokens in a file.
        max_disk: Bytes that downloads and token files may take at any moment.
        progress: Told how far it is after each batch.

    Raises:
        InputError: ``out`` holds something else, a source cannot be read, an argument is out of range, a split would
            be empty, or the tokenizer has no ``<|endoftext|>``.
        DiskFull: It does not fit; what is finished is kept.
        Unreachable: A download failed again and again; what is finished is kept.
        Claimed: Another process prepares the same folder.
    """
    recipe = Recipe(
        names=tuple(sources),
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
    dataset = prepare_share(recipe, tokenizer, out, max_disk=max_disk, progress=progress)
    assert dataset is not None  # the only process does every portion
    return dataset


def prepare_share(
    recipe: Recipe,
    tokenizer: Tokenizer,
    out: Path,
    *,
    max_disk: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> TokenDataset | None:
    """Do process ``rank``'s share of `prepare`; return the data where that completes it, else None.

    All processes write to the same folder, each in its own subfolders, and keep to ``max_disk / world``.
    """
    if tokenizer.eot is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; train one with it")
    if world > 1 and (recipe.deduplicate or recipe.max_documents):
        option = "--deduplicate" if recipe.deduplicate else "--max-documents"
        raise InputError(f"{option} goes through all documents in order; prepare with one process, not {world}")
    is_new = not is_half_written(out)
    journal = Journal(out)
    if is_new and out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (world > 1 or journal.folder.exists()) and is_complete(out, recipe, tokenizer):
            journal.remove()  # where a kill came after the manifest
            return TokenDataset(out)
        raise InputError(f"{out}: exists already and is left as it is; choose a folder that does not exist")
    with explaining_full_disk(out, _SMALL_FILES):
        plan = journal.plan(recipe.arguments(tokenizer), partial(make_plan, recipe, tokenizer, max_disk, world))
    own = range(rank, len(plan.portions), world)
    try:
        with claimed(journal.folder, [index for index in own if not journal.is_complete(index)]):
            _Preparation(plan, journal, tokenizer, max_disk and max_disk // world, own).run(progress)
        with explaining_full_disk(out, _SMALL_FILES):
            return finish(plan, journal, tokenizer, recipe, out)
    except (DiskFull, Unreachable, Claimed):
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

    def run(self, progress: Progress | None) -> None:
        """Write every portion of the process that is not complete."""
        for index in self._own:
            if not self._journal.is_complete(index):
                left = [self._plan.portions[i] for i in self._own if i >= index]
                needed = output_bytes(left, self._tokenizer) + max(portion.download for portion in left)
                with explaining_full_disk(self._journal.folder, needed):
                    self._write(index, progress)
            self._done.append(self._journal.record(index))

    def _write(self, index: int, progress: Progress | None) -> None:
        portion, arguments = self._plan.portions[index], self._plan.arguments
        limit = arguments["max_documents"]
        if limit is not None and (limit := limit - self._read_of(portion.split)) == 0:
            self._journal.begin(index)
            self._journal.complete(index, Record(0, 0, 0, {}, ()))
            return
        folder = self._journal.begin(index)
        seen = [self._journal.of(i) for i in range(index)] if arguments["deduplicate"] else []
        writing = Writing(
            folder=folder,
            tokenizer=self._tokenizer,
            rule=self._plan.rule,
            split=portion.split,
            shard_tokens=arguments["shard_tokens"],
            reserve=self._budget.reserve,
            advance=self._teller(index, progress),
            cleaner=Cleaner(arguments["min_length"], arguments["deduplicate"], read_hashes(seen, SPLITS)),
            keeps_hashes=self._plan.keeps_hashes,
        )
        self._journal.complete(index, write_portion(portion, writing, self._budget, limit))
        self._budget.release(portion.fetched_only)

    def _read_of(self, split: str) -> int:
        """Return the documents read so far of the portions that came in a split, or in none."""
        done = zip(self._own, self._done, strict=False)
        return sum(record.documents for index, record in done if self._plan.portions[index].split == split)

    def _teller(self, index: int, progress: Progress | None) -> Callable[[int, int, int], None]:
        """Return what adds a portion's counts to those of the portions before it."""
        if progress is None:
            return lambda documents, size, tokens: None
        before = [split for record in self._done for split in record.splits.values()]
        documents, size, tokens = (sum(getattr(s, name) for s in before) for name in ("documents", "bytes", "tokens"))
        after = sum(self._plan.portions[i].text_bytes for i in self._own if i > index)
        here = self._plan.portions[index].text_bytes
        return lambda d, b, t: progress(documents + d, size + b, tokens + t, size + max(here, b) + after)


def write_portion(portion: Portion, how: Writing, budget: DiskBudget, limit: int | None = None) -> Record:
    """Write the token files of a portion, of at most ``limit`` documents, to ``how.folder``; return what they hold.

    What is fetched lies in its subfolder `SOURCE`: to be deleted, and released from the budget, by who calls this.
    """
    paths = _fetch(portion, how.folder / SOURCE, budget) if portion.download else here(portion)
    if portion.cut == "tokens":
        return take_tokens(paths[0], how)
    return write_documents(read_portion(portion, paths), how, limit)


def _fetch(portion: Portion, folder: Path, budget: DiskBudget) -> list[Path]:
    folder.mkdir(exist_ok=True)
    budget.reserve(portion.download - bytes_below(folder))
    return fetched(portion, folder)
