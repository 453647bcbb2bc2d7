"""Strengths and weaknesses of a run, each a rule over its numbers and said with them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpt2lab.lab import words
from gpt2lab.lab.record import Record
from gpt2lab.lab.text_quality import HELD_OUT

NEAR_FLOOR, FAR_FROM_FLOOR = 15.0, 50.0
"""Percent above the entropy of the text."""
OVERFITTING = 0.05
"""Share of the lowest validation loss by which the training loss lies below it, or the last validation above it."""
FALLING = 0.01
"""Share by which the validation loss fell over the last fifth of the run."""
HELPING = 0.01
"""Share by which the loss is lower at the end of a window than at its beginning, at least, where context helps."""
JUDGED = "nucleus 0.9"
"""The strategy whose texts are judged."""
ALIKE = 3.0
"""Points of self-BLEU within which texts are as diverse as others."""
FORGETTING = 0.2
"""Share of the held-out text's relevance that is missed."""
LOOPING = 0.3
"""Share of the word triples of a text that stand earlier in it."""


def strengths(record: Record) -> tuple[str, ...]:
    """Return what speaks for a run."""
    return tuple(text for good, text in _judgements(record) if good)


def weaknesses(record: Record) -> tuple[str, ...]:
    """Return what speaks against it."""
    return tuple(text for good, text in _judgements(record) if not good)


def _judgements(record: Record) -> Iterator[tuple[bool, str]]:
    yield from _against_entropy(record)
    yield from _generalisation(record)
    yield from _still_falling(record)
    yield from _context(record)
    yield from _stories(record)
    yield from _texts(record)
    yield from _loops(record)


def _against_entropy(record: Record) -> Iterator[tuple[bool, str]]:
    gap = record.test_figures().get("gap_percent", math.nan)
    said = f"On the test set it spends {words.percent(gap)} more bits than the text's entropy, which no model can beat"
    if gap <= NEAR_FLOOR:
        yield True, f"{said}: that is close to it."
    elif gap >= FAR_FROM_FLOOR:
        yield False, f"{said}: much is left to learn."


def _generalisation(record: Record) -> Iterator[tuple[bool, str]]:
    val, train = _held_out(record), record.column("train_loss")
    if len(val) < 2 or not train:
        return
    lowest = min(loss for _, loss in val)
    step = next(step for step, loss in val if loss == lowest)
    last = val[-1][1]
    figures = f"training loss {words.number(train[-1])}, validation loss {words.number(last)}"
    if last > (1 + OVERFITTING) * lowest:
        yield (
            False,
            f"It overfits: the validation loss was lowest, {words.number(lowest)}, at step {words.count(step)} and "
            f"rose to {words.number(last)}. The best checkpoint is the one that is measured.",
        )
    elif last - train[-1] > OVERFITTING * last:
        yield False, f"It fits its training text better than others ({figures}): more text or dropout would help."
    else:
        yield True, f"It generalises: at the end {figures}."


def _still_falling(record: Record) -> Iterator[tuple[bool, str]]:
    val = _held_out(record)
    earlier = [loss for step, loss in val if step <= 0.8 * val[-1][0]] if val else []
    if not earlier:
        return
    fall = 1 - val[-1][1] / earlier[-1]
    if fall > FALLING:
        yield (
            False,
            f"It is not trained out: over about the last fifth of the steps the validation loss still fell by "
            f"{words.percent(100 * fall)}.",
        )


def _stories(record: Record) -> Iterator[tuple[bool, str]]:
    shares = {e.metric: e.value for e in record.evals if e.task == "stories"}
    for metric, meaning in (("grammatical", "follow the grammar"), ("consistent", "agree with themselves throughout")):
        share = shares.get(metric)
        if share is not None and not 0.5 < share < 0.9:
            yield share >= 0.9, f"{words.percent(100 * share)} of the stories that it writes {meaning}."


def _context(record: Record) -> Iterator[tuple[bool, str]]:
    points = () if record.positions is None else record.positions.points
    if len(points) < 2:
        return
    (near, first), (far, last) = points[0], points[-1]
    said = f"loss {words.number(first)} with {words.plural(near, 'token')} before it, {words.number(last)} with some "
    said += words.count(far)
    if first - last >= HELPING * first:
        yield True, f"It uses its context: {said}."
    else:
        yield False, f"Context hardly helps it, or not at all: {said}."


def _texts(record: Record) -> Iterator[tuple[bool, str]]:
    if record.texts is None:
        return
    model, human = record.texts.figures_of(JUDGED), record.texts.figures_of(HELD_OUT)
    if "self_bleu" in model.keys() & human.keys():
        more = model["self_bleu"] - human["self_bleu"]
        said = f"self-BLEU {words.number(model['self_bleu'], 3)} against {words.number(human['self_bleu'], 3)}"
        if abs(more) <= ALIKE:
            yield True, f"At {JUDGED} its texts are as diverse as held-out ones: {said}."
        else:
            kind = "more alike" if more > 0 else "more scattered"
            yield False, f"At {JUDGED} its texts are {kind} than held-out ones: {said}."
    if "relevance" in model.keys() & human.keys() and model["relevance"] < (1 - FORGETTING) * human["relevance"]:
        said = f"{words.number(model['relevance'], 3)} against {words.number(human['relevance'], 3)}"
        yield False, f"It brings back less of what a beginning names than held-out text does: relevance {said}."


def _loops(record: Record) -> Iterator[tuple[bool, str]]:
    shares = [repeated(s.text) for s in record.samples if s.strategy == "greedy"]
    if shares and (share := max(shares)) > LOOPING:
        yield (
            False,
            f"Greedy decoding goes round in circles: {words.percent(100 * share)} of a text's word triples stand "
            "earlier in it.",
        )


def repeated(text: str) -> float:
    """Return the share of a text's word triples that stand earlier in it."""
    spoken = text.split()
    triples = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _held_out(record: Record) -> list[tuple[float, float]]:
    """Return step and loss of each validation."""
    rows = [(row["step"], row["val_loss"]) for row in record.metrics]
    return [(step, loss) for step, loss in rows if step is not None and loss is not None and math.isfinite(loss)]
