"""HellaSwag (Zellers et al. 2019): choose the right one of four endings of a text by its log-probability.

    acc         the ending with the highest  sum log p(ending | context)
    acc_norm    the ending with the highest  sum log p(ending | context) / length of the ending

Results depend on how context and endings are worded and on what counts as length, so there are two styles:

    completion    the context as it is, " " + ending, length in tokens; published for GPT-2 124M: 28.59 / 29.55
    harness       "activity: context", the markers of WikiHow pages replaced, length in characters, as in EleutherAI's
                  lm-evaluation-harness; published for GPT-2 124M: 28.92 / 31.14

Chance is 25 %. The context of an item is read once for its four endings; see `likelihood.py`. Contexts are cut from the
left to fit the model, as in the harness. An item with an ending longer than the model's context is left out; the
harness stops there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab.errors import InputError, one_of
from gpt2lab.evaluation.likelihood import Continuation, Progress, score
from gpt2lab.files import read_text
from gpt2lab.formatting import plural
from gpt2lab.hub import fetch_data
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.tokenizer.tokenizer import Tokenizer

ENDINGS = 4
NAMED = 10
"""Items that a protocol names at most."""
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
"""Commit of the author's data set on the Hub, so that everybody gets the same items."""


@dataclass(frozen=True)
class HellaSwagItem:
    """A context, its endings, and the index of the right one."""

    ind: int
    activity: str
    """What the video shows, or the title of the page."""
    context: str
    endings: tuple[str, ...]
    label: int
    halves: tuple[str, str] | None = None
    """``ctx_a`` and ``ctx_b`` of the official file, which the context consists of."""


class EncodedItem(NamedTuple):
    """An item with its four continuations, and their lengths for ``acc_norm``."""

    item: HellaSwagItem
    endings: list[Continuation]
    lengths: list[int]


@dataclass(frozen=True)
class EncodedItems:
    """The items that a model can score, encoded in a style."""

    style: str
    items: list[EncodedItem]
    cut: int
    """Items whose context is cut to fit the model."""
    left_out: tuple[int, ...]
    """``ind`` of the items that cannot be scored: an ending is longer than the model's context."""

    @property
    def fit(self) -> str:
        """What does not fit the model's context, with a leading space; an empty string if everything does."""
        named = ", ".join(map(str, self.left_out[:NAMED])) + (", ..." if len(self.left_out) > NAMED else "")
        cut = f" The context of {plural(self.cut, 'item')} was cut from the left to fit the model."
        left_out = f"{plural(len(self.left_out), 'item')} ({named})"
        out = f" Left out, with an ending longer than the model's context: {left_out}."
        return (cut if self.cut else "") + (out if self.left_out else "")


def encode_items(
    tokenizer: Tokenizer, items: Sequence[HellaSwagItem], n_ctx: int, style: str = "completion"
) -> EncodedItems:
    """Encode the items whose endings a model with the context length ``n_ctx`` can score.

    Args:
        tokenizer: The tokenizer of the model.
        items: From `read_hellaswag`.
        n_ctx: The model's context length.
        style: A name in `STYLES`.

    Raises:
        InputError: The style is unknown, or there are no such items.
    """
    one_of("style", style, STYLES)
    if not items:
        raise InputError("there are no HellaSwag items; give at least one")
    encoded = [EncodedItem(item, *STYLES[style].encode(tokenizer, item)) for item in items]
    scorable = [max(len(ending.ids) for ending in each.endings) <= n_ctx for each in encoded]
    if not any(scorable):
        raise InputError(
            f"none of the {len(items):,} HellaSwag items can be scored: each has an ending longer than the model's "
            f"context of {n_ctx} tokens; use a model with a longer context or a tokenizer with a larger vocabulary"
        )
    scored = list(compress(encoded, scorable))
    return EncodedItems(
        style,
        scored,
        cut=sum(any(not ending.fits(n_ctx) for ending in each.endings) for each in scored),
        left_out=tuple(item.ind for item, fits in zip(items, scorable, strict=True) if not fits),
    )


@dataclass(frozen=True)
class HellaSwag:
    """The result: which endings were chosen, and how often they are right."""

    encoded: EncodedItems
    by_sum: tuple[int, ...]
    """The ending of each item with the highest summed log-probability."""
    by_mean: tuple[int, ...]
    """The ending of each item with the highest summed log-probability per length."""

    @property
    def correct(self) -> dict[str, list[bool]]:
        """Whether the choice is right, item by item, for ``acc`` and ``acc_norm``."""
        labels = [item.label for item, _, _ in self.encoded.items]
        choices = {"acc": self.by_sum, "acc_norm": self.by_mean}
        return {name: [a == b for a, b in zip(chosen, labels, strict=True)] for name, chosen in choices.items()}

    @property
    def figures(self) -> dict[str, float]:
        """The accuracies by name."""
        return {name: sum(correct) / len(correct) for name, correct in self.correct.items()}

    @property
    def protocol(self) -> str:
        """How the accuracies were measured, in a few sentences."""
        count = len(self.by_sum)
        margin = 1.96 * math.sqrt(0.25 * 0.75 / count)
        return (
            f"{STYLES[self.encoded.style].about} {plural(count, 'item')} of 4 endings, zero-shot; chance is 0.25, with "
            f"a 95 % margin of error of {margin:.3f}.{self.encoded.fit}"
        )


def hellaswag(model: LanguageModel, encoded: EncodedItems, progress: Progress | None = None) -> HellaSwag:
    """Choose an ending for each item, in evaluation mode and under the caller's autocast.

    Args:
        model: The model; its mask must be causal.
        encoded: Items encoded for this model's context length.
        progress: Called with the number of endings scored so far and their total.

    Raises what `score` does.
    """
    scores = score(model, [ending for each in encoded.items for ending in each.endings], progress)
    by_sum, by_mean = [], []
    for index, each in enumerate(encoded.items):
        nats = [s.nats for s in scores[index * ENDINGS : (index + 1) * ENDINGS]]
        means = [n / length if length else math.inf for n, length in zip(nats, each.lengths, strict=True)]
        by_sum.append(nats.index(min(nats)))  # the first of equals
        by_mean.append(means.index(min(means)))
    return HellaSwag(encoded, tuple(by_sum), tuple(by_mean))


class Style(NamedTuple):
    """How an item becomes texts to score, and the lengths of the endings for ``acc_norm``."""

    encode: Callable[[Tokenizer, HellaSwagItem], tuple[list[Continuation], list[int]]]
    about: str
    """The beginning of the protocol."""


def _encode_completion(tokenizer: Tokenizer, item: HellaSwagItem) -> tuple[list[Continuation], list[int]]:
    context = tuple(tokenizer.encode(item.context))
    endings = [tuple(tokenizer.encode(f" {ending}")) for ending in item.endings]
    return [Continuation(context, ids) for ids in endings], [len(ids) for ids in endings]


def _encode_harness(tokenizer: Tokenizer, item: HellaSwagItem) -> tuple[list[Continuation], list[int]]:
    """Encode context and ending as one text, then split where the context without trailing spaces ends.

    The length is 0 if an ending has nothing but markers.
    """
    context = item.context if item.halves is None else f"{item.halves[0]} {item.halves[1].capitalize()}"
    query = _without_markers(f"{item.activity}: {context}")
    before = tuple(tokenizer.encode(query.rstrip()))
    endings = [_without_markers(ending) for ending in item.endings]
    whole = [tuple(tokenizer.encode(f"{query} {ending}")) for ending in endings]
    return [Continuation(before, ids[len(before) :]) for ids in whole], [len(ending) for ending in endings]


def _without_markers(text: str) -> str:
    """Replace the markers of WikiHow pages: ``[title]`` by the end of a sentence, others by nothing."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


STYLES = {
    "completion": Style(_encode_completion, "Completion style, endings normalized by their length in tokens."),
    "harness": Style(
        _encode_harness, "Worded as by lm-evaluation-harness, endings normalized by their length in characters."
    ),
}
"""The styles by name."""


def read_hellaswag(path: Path) -> list[HellaSwagItem]:
    """Read items from a file in the official format, one JSON object per line.

    ``ctx``, ``endings`` (four texts), ``label`` (0 to 3, a number or a digit) and ``activity_label`` are required;
    ``ind``, ``ctx_a`` and ``ctx_b`` are optional.

    Raises:
        InputError: The file cannot be read or has no items, or a line is not an item (with its number and field).
    """
    items = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON ({error.msg}); give a HellaSwag .jsonl file") from error
            items.append(hellaswag_item(values, where, number - 1))
    if not items:
        raise InputError(f"{path}: has no items; give a HellaSwag .jsonl file")
    return items


def fetch_hellaswag() -> list[HellaSwagItem]:
    """Return the 10,042 validation items from the Hub. Raises `InputError` if it cannot be reached."""
    file = fetch_data("Rowan/hellaswag", "data/validation-00000-of-00001.parquet", REVISION)
    from pyarrow import parquet  # comes with the extra that fetch_data needs

    rows = parquet.read_table(file).to_pylist()
    return [hellaswag_item(row, f"Rowan/hellaswag, item {n}", n) for n, row in enumerate(rows)]


def hellaswag_item(values: Any, where: str, number: int) -> HellaSwagItem:
    """Build an item from the fields of the official data; ``number`` stands in for a missing ``ind``.

    Raises:
        InputError: A field is missing or invalid; the message begins with ``where``.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: not a JSON object; give a HellaSwag .jsonl file")
    fields: dict[str, Any] = {"label": "", "ind": number, **values}
    context, activity, endings = (fields.get(name) for name in ("ctx", "activity_label", "endings"))
    label, ind = str(fields["label"]), str(fields["ind"])
    four = isinstance(endings, list) and [isinstance(e, str) and e.strip() != "" for e in endings] == [True] * ENDINGS
    for name, valid, expected in (
        ("ctx", isinstance(context, str) and context.strip(), "text before the endings"),
        ("activity_label", isinstance(activity, str), "text"),
        ("endings", four, f"a list of {ENDINGS} texts"),
        ("label", label in ("0", "1", "2", "3"), "0, 1, 2 or 3 (the test split has no labels)"),
        ("ind", ind.isdecimal(), "a whole number, or absent"),
    ):
        if not valid:
            given = f"is {str(values[name])[:60]!r}" if name in values else "is missing"
            raise InputError(f'{where}: field "{name}" {given}; it must be {expected}')
    halves = (str(fields["ctx_a"]), str(fields["ctx_b"])) if "ctx_a" in fields and "ctx_b" in fields else None
    return HellaSwagItem(int(ind), str(activity), str(context), tuple(endings or ()), int(label), halves)
