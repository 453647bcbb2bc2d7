"""What is asked for, and the plan that follows: portions, the rule of the splits, and whether the disk suffices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

from gpt2lab.data.catalogue import CORPORA
from gpt2lab.data.disk import DiskFull
from gpt2lab.data.journal import Plan
from gpt2lab.data.portions import Portion, read_portion
from gpt2lab.data.shards import format_for
from gpt2lab.data.sources import here, resolve
from gpt2lab.data.split import FEW_DOCUMENTS, SplitRule
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import Tokenizer

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
class Recipe:
    """The arguments of `prepare` that decide what is written."""

    names: tuple[str, ...]
    seed: int = 0
    max_documents: int | None = None
    column: str | None = None
    errors: str = "strict"
    val_fraction: float | None = None
    test_fraction: float | None = None
    min_length: int = 0
    deduplicate: bool = False
    shard_tokens: int = 100_000_000

    def arguments(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return them as they are written down, with the tokenizer's fingerprint."""
        return {**asdict(self), "names": list(self.names), "tokenizer": tokenizer.fingerprint}


def make_plan(recipe: Recipe, tokenizer: Tokenizer, max_disk: int | None, world: int) -> Plan:
    """Look at every source and plan its portions.

    Raises:
        InputError: A source or an argument cannot be used.
        DiskFull: The output and the largest download of each process will not fit in ``max_disk``.
    """
    if recipe.min_length < 0:
        raise InputError(f"min_length is {recipe.min_length}; it must be 0 or more characters")
    if max_disk is not None and max_disk < 1:
        raise InputError(f"max_disk is {max_disk}; it must be 1 byte or more, or be left out")
    portions = tuple(
        resolve(
            recipe.names,
            seed=recipe.seed,
            max_documents=recipe.max_documents,
            column=recipe.column,
            errors=recipe.errors,
        )
    )
    if any(portion.cut == "tokens" for portion in portions):
        _refuse_for_tokens(recipe)
    rule, portions = _divided(recipe, portions)
    needed = world * max(portion.download for portion in portions) + output_bytes(portions, tokenizer)
    if max_disk is not None and recipe.max_documents is None and needed > max_disk:
        raise DiskFull(
            f"about {needed:,} bytes are needed (token files and what is downloaded at once), "
            f"--max-disk allows {max_disk:,}; give more, or take a smaller corpus"
        )
    return Plan(recipe.arguments(tokenizer), rule, portions)


def output_bytes(portions: Sequence[Portion], tokenizer: Tokenizer) -> int:
    """Return about how many bytes of token files the portions will make."""
    size = format_for(tokenizer.n_vocab).dtype.itemsize
    rate = len(tokenizer.encode(_SAMPLE)) / len(_SAMPLE.encode())
    text = sum(portion.text_bytes for portion in portions if portion.cut != "tokens")
    return int(text * rate) * size + sum(portion.download for portion in portions if portion.cut == "tokens")


def _refuse_for_tokens(recipe: Recipe) -> None:
    names = ("max_documents", "min_length", "deduplicate", "column", "val_fraction", "test_fraction")
    if given := [name for name in names if getattr(recipe, name)]:
        option = "--" + given[0].replace("_", "-")
        raise InputError(f"{', '.join(recipe.names)}: comes as tokens, which are taken as they are; leave {option} out")


def _divided(recipe: Recipe, portions: tuple[Portion, ...]) -> tuple[SplitRule, tuple[Portion, ...]]:
    """Return the rule of the splits, and the portions, of which those without a split are divided by it."""
    held = {portion.split for portion in portions}
    if "" in held:
        return _rule(recipe, portions, _default_fraction(recipe)), portions
    for split, fraction in (("val", recipe.val_fraction), ("test", recipe.test_fraction)):
        if fraction is not None and split in held:
            raise InputError(
                f"{', '.join(recipe.names)}: comes in splits of its own, {split} too; leave --{split}-fraction out"
            )
    if not (recipe.val_fraction or recipe.test_fraction):
        return SplitRule("given", 0.0, 0.0), portions
    cut = tuple(replace(one, split="") if one.split == "train" else one for one in portions)
    return _rule(recipe, cut, 0.0), cut  # what it lacks is held out of what it trains on


def _rule(recipe: Recipe, portions: Sequence[Portion], default: float) -> SplitRule:
    val = default if recipe.val_fraction is None else recipe.val_fraction
    test = default if recipe.test_fraction is None else recipe.test_fraction
    few = _count(portions, recipe.max_documents) < FEW_DOCUMENTS
    return SplitRule("position" if few else "hash", val, test)


def _default_fraction(recipe: Recipe) -> float:
    """Return the smallest of the sources' shares; of the first documents only, more, so that no split is empty."""
    default = min(CORPORA[name].held_out if name in CORPORA else DEFAULT_FRACTION for name in recipe.names)
    if recipe.max_documents is None:
        return default
    return min(DEFAULT_FRACTION, max(default, _ENOUGH_HELD_OUT / recipe.max_documents))


def _count(portions: Sequence[Portion], limit: int | None) -> int:
    """Return the number of documents, or `FEW_DOCUMENTS` where it is that or more."""
    most = FEW_DOCUMENTS if limit is None else min(FEW_DOCUMENTS, limit)
    if any(file.url and not file.name.endswith(".txt") for portion in portions for file in portion.files):
        return most
    fetched = sum(bool(file.url) for portion in portions for file in portion.files)  # a text of the catalogue is one
    local = chain.from_iterable(read_portion(p, here(p)) for p in portions if not p.download)
    return min(most, fetched + sum(1 for _ in islice(local, FEW_DOCUMENTS)))
