"""HellaSwag (Zellers et al. 2019): which of four endings does a text have? A sum of log-probabilities chooses.

    acc         the ending with the highest  sum log p(ending | context)
    acc_norm    the ending with the highest  sum log p(ending | context) / length of the ending

A figure depends on how context and endings are worded and on what a length is, so there are two styles:

    completion    the context as it is, " " + ending, lengths in tokens: GPT-2 124M has 28.59 / 29.55 (published)
    harness       "activity: context", the marks of WikiHow pages replaced, lengths in characters, as EleutherAI's
                  lm-evaluation-harness does it: GPT-2 124M has 28.92 / 31.14 (published)

Chance is 25 %. The four endings of an item share the reading of its context; see `scoring.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError, one_of
from gpt2lab.evaluation.likelihood import Continuation, score
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

ENDINGS = 4


@dataclass(frozen=True)
class HellaSwagItem:
    """A context, its endings, and which of them is the true one."""

    ind: int
    activity: str
    """What the video shows, or the title of the page."""
    context: str
    endings: tuple[str, ...]
    label: int
    halves: tuple[str, str] | None = None
    """The official file's ``ctx_a`` and ``ctx_b``, which the context consists of."""


@dataclass(frozen=True)
class Style:
    """How an item becomes texts to score, and how long an ending is for ``acc_norm``."""

    encode: Callable[[Tokenizer, HellaSwagItem], list[Continuation]]
    lengths: Callable[[HellaSwagItem, Sequence[Continuation]], list[int]]
    about: str
    """For the protocol."""


@dataclass(frozen=True)
class HellaSwag:
    """What was measured: the ending chosen of each item, and how often it is the true one."""

    style: str
    labels: tuple[int, ...]
    by_sum: tuple[int, ...]
    """The ending chosen by its summed log-probability."""
    by_mean: tuple[int, ...]
    """The ending chosen by that divided by its length."""

    @property
    def acc(self) -> float:
        """Share of items in which the sum chooses the true ending."""
        return _share(self.by_sum, self.labels)

    @property
    def acc_norm(self) -> float:
        """Share of items in which the length-normalised sum does."""
        return _share(self.by_mean, self.labels)

    @property
    def figures(self) -> dict[str, float]:
        """Return the figures by name."""
        return {"acc": self.acc, "acc_norm": self.acc_norm}

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the figures were taken."""
        margin = 1.96 * math.sqrt(0.25 * 0.75 / len(self.labels))
        return (
            f"{STYLES[self.style].about} {len(self.labels):,} items of 4 endings, no examples before them; chance is "
            f"0.25, with a 95 % interval of {margin:.3f} to both sides."
        )


def read_hellaswag(path: Path) -> list[HellaSwagItem]:
    """Read items from a file of the official form, a JSON object a line.

    Needed are ``ctx``, ``endings`` (four texts), ``label`` (0 to 3, a number or its digit) and ``activity_label``;
    ``ind``, ``ctx_a`` and ``ctx_b`` are used where they are there.

    Raises:
        InputError: The file cannot be read, holds no item, or a line is none (with its number and field).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a HellaSwag .jsonl file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; give a HellaSwag .jsonl file") from error
    items = [_parse(line, f"{path}: line {number}", number - 1) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise InputError(f"{path}: holds no item; give a HellaSwag .jsonl file")
    return items


def hellaswag_item(values: dict[str, Any], where: str, number: int) -> HellaSwagItem:
    """Build an item from the fields of the official data.

    Raises:
        InputError: A field is missing or is not what it must be; ``where`` begins the message.
    """
    context, activity = (_field(values, name, str, "text", where) for name in ("ctx", "activity_label"))
    endings = _field(values, "endings", list, f"a list of {ENDINGS} texts", where)
    if len(endings) != ENDINGS or not all(isinstance(ending, str) and ending.strip() for ending in endings):
        raise InputError(f'{where}: field "endings" is {str(endings)[:60]}; it must be a list of {ENDINGS} texts')
    label = str(values.get("label", ""))
    if label not in ("0", "1", "2", "3"):
        raise InputError(f'{where}: field "label" is "{label}"; it must be 0, 1, 2 or 3 (the test split has none)')
    if not context.strip():
        raise InputError(f'{where}: field "ctx" is empty; it must be the text before the endings')
    ind = str(values.get("ind", number))
    if not ind.isdecimal():
        raise InputError(f'{where}: field "ind" is {ind[:60]}; it must be a whole number, or be left out')
    halves = (str(values["ctx_a"]), str(values["ctx_b"])) if "ctx_a" in values and "ctx_b" in values else None
    return HellaSwagItem(int(ind), activity, context, tuple(endings), int(label), halves)


def hellaswag(
    model: GPT,
    tokenizer: Tokenizer,
    items: Sequence[HellaSwagItem],
    style: str = "completion",
    progress: Callable[[int, int], None] | None = None,
) -> HellaSwag:
    """Let a model choose the ending of each item, in evaluation mode and the caller's autocast.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        items: From `read_hellaswag`.
        style: A name of `STYLES`.
        progress: Called with the endings scored so far and their number.

    Raises:
        InputError: No items, no such style, or an ending that is longer than what the model reads.
    """
    encoded = encode_items(tokenizer, items, style, model.config.n_ctx)
    scores = score(model, [ending for endings in encoded for ending in endings], progress)
    by_sum, by_mean = [], []
    for index, (item, endings) in enumerate(zip(items, encoded, strict=True)):
        nats = [s.nats for s in scores[index * ENDINGS : (index + 1) * ENDINGS]]
        lengths = STYLES[style].lengths(item, endings)  # of nothing but marks the harness leaves 0 characters
        means = [n / length if length else math.inf for n, length in zip(nats, lengths, strict=True)]
        by_sum.append(nats.index(min(nats)))  # the first of equals
        by_mean.append(means.index(min(means)))
    return HellaSwag(style, tuple(item.label for item in items), tuple(by_sum), tuple(by_mean))


def encode_items(
    tokenizer: Tokenizer, items: Sequence[HellaSwagItem], style: str, n_ctx: int
) -> list[list[Continuation]]:
    """Return the four continuations of each item. Raises what `hellaswag` does."""
    one_of("style", style, STYLES)
    if not items:
        raise InputError("there are no HellaSwag items to measure; give at least one")
    encoded = [STYLES[style].encode(tokenizer, item) for item in items]
    for item, endings in zip(items, encoded, strict=True):
        longest = max(len(ending.ids) for ending in endings)
        if longest > n_ctx:
            raise InputError(
                f"HellaSwag item {item.ind}: an ending of {longest} tokens; the model reads {n_ctx}: give a model of "
                "more context or a tokenizer of more entries"
            )
    return encoded


def _parse(line: str, where: str, number: int) -> HellaSwagItem:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); give a HellaSwag .jsonl file") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: not an object with fields; give a HellaSwag .jsonl file")
    return hellaswag_item(values, where, number)


def _field(values: dict[str, Any], name: str, kind: type, spoken: str, where: str) -> Any:
    if name not in values:
        raise InputError(f'{where}: field "{name}" is missing; it must be {spoken}')
    if not isinstance(values[name], kind):
        raise InputError(f'{where}: field "{name}" is {str(values[name])[:60]}; it must be {spoken}')
    return values[name]


def _share(chosen: Sequence[int], labels: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(chosen, labels, strict=True)) / len(labels)


def _complete(tokenizer: Tokenizer, item: HellaSwagItem) -> list[Continuation]:
    context = tuple(tokenizer.encode(item.context))
    return [Continuation(context, tuple(tokenizer.encode(f" {ending}"))) for ending in item.endings]


def _token_lengths(item: HellaSwagItem, endings: Sequence[Continuation]) -> list[int]:
    return [len(ending.ids) for ending in endings]


def _harness(tokenizer: Tokenizer, item: HellaSwagItem) -> list[Continuation]:
    """Cut what is encoded whole where the context alone ends, less its last spaces, as the harness does."""
    context = item.context if item.halves is None else f"{item.halves[0]} {item.halves[1].capitalize()}"
    query = _without_marks(f"{item.activity}: {context}")
    before = tuple(tokenizer.encode(query.rstrip()))
    whole = [tuple(tokenizer.encode(f"{query} {_without_marks(ending)}")) for ending in item.endings]
    return [Continuation(before, ids[len(before) :]) for ids in whole]


def _character_lengths(item: HellaSwagItem, endings: Sequence[Continuation]) -> list[int]:
    return [len(_without_marks(ending)) for ending in item.endings]


def _without_marks(text: str) -> str:
    """Replace what WikiHow pages leave in the texts: ``[title]`` by the end of a sentence, other marks by nothing."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


STYLES: dict[str, Style] = {
    "completion": Style(_complete, _token_lengths, "Completion style, endings normalised by their tokens:"),
    "harness": Style(
        _harness, _character_lengths, "Worded as by lm-evaluation-harness, endings normalised by their characters:"
    ),
}
"""The wordings by name."""
