"""The last step of preparing: all portions are complete, so the token files get their names, and the folder a manifest.

Several processes may come here at once, or one again after a stop: each step was done already, or is done now.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from gpt2lab.data.cleaning import overlap
from gpt2lab.data.dataset import TOKENIZER, TokenDataset
from gpt2lab.data.journal import Journal, Plan, Record
from gpt2lab.data.manifest import MANIFEST, DataManifest, LeftOut, ShardInfo, SourceInfo, SplitInfo, TokenizerInfo
from gpt2lab.data.planning import Recipe
from gpt2lab.data.split import SPLITS, SplitRule
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import Tokenizer


def is_complete(out: Path, recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """Return whether a folder holds what a recipe makes."""
    if not (out / MANIFEST).exists():
        return False
    manifest = DataManifest.load(out)
    return (
        manifest.source == source_info(recipe)
        and manifest.tokenizer.fingerprint == tokenizer.fingerprint
        and recipe.val_fraction in (None, manifest.split_rule.val_fraction)
        and recipe.test_fraction in (None, manifest.split_rule.test_fraction)
    )


def source_info(recipe: Recipe) -> SourceInfo:
    """Return what the manifest says of the sources."""
    return SourceInfo(
        recipe.names,
        recipe.seed,
        recipe.max_documents,
        recipe.column,
        recipe.errors,
        recipe.min_length,
        recipe.deduplicate,
        recipe.shard_tokens,
    )


def finish(plan: Plan, journal: Journal, tokenizer: Tokenizer, recipe: Recipe, out: Path) -> TokenDataset | None:
    """Name the token files and write the manifest, if all portions are complete; else return None.

    Raises:
        InputError: A split that is wanted has nothing; the folder is removed, as going on would end here again.
    """
    indices = range(len(plan.portions))
    if not all(map(journal.is_complete, indices)):
        return TokenDataset(out) if (out / MANIFEST).exists() else None  # another process was quicker
    try:
        records = [journal.record(index) for index in indices]
        splits = {split: info for split in SPLITS if (info := _sum(split, records)).documents}
        _require_all(splits, plan.rule, out)
        given = any(portion.split for portion in plan.portions)
        folders = [journal.of(index) for index in indices]
        left_out = LeftOut(
            sum(record.short for record in records),
            sum(record.duplicates for record in records),
            overlap(folders) if given and not recipe.deduplicate else 0,
        )
        tokenizer.save(out / TOKENIZER)
        assert tokenizer.eot is not None
        DataManifest(
            source=source_info(recipe),
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
    """Give the token files of all portions their names, split by split."""
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
