"""How well a model has learned the grammar of the stories: the share of its own that the grammar could have written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2lab.errors import InputError
from gpt2lab.stories.corpus import Verdict, parse

_SHOWN = 40  # characters of the text on either side of a break


@dataclass(frozen=True)
class Break:
    """Where a text first leaves the grammar or contradicts itself."""

    index: int
    """Which of the texts."""
    offset: int
    """The character at which it breaks."""
    message: str
    """What was expected there, and what was found."""
    excerpt: str
    """The text around it, with ``>>>`` before the character."""

    def __str__(self) -> str:
        return f"text {self.index}, character {self.offset}: {self.message}: {self.excerpt}"


@dataclass(frozen=True)
class StoryQuality:
    """What the parser says of a number of texts. Shares are fractions of all of them."""

    texts: int
    grammatical: float
    """Share in which each sentence can stand in its place, and which are complete."""
    consistent: float
    """Share that are grammatical, and in which what refers back agrees with what was said."""
    breaks: tuple[Break, ...]
    """The first break of each text that is not both, for the first few of them."""

    @property
    def figures(self) -> dict[str, float]:
        """Return the shares by name."""
        return {"grammatical": self.grammatical, "consistent": self.consistent}

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the shares were taken."""
        return (
            f"Of {self.texts:,} whole texts, the share that the stories' grammar can write (grammatical) and that also "
            "agree with themselves (consistent); a text cut off before its end is neither."
        )


def judge_stories(texts: Sequence[str], breaks: int = 5) -> StoryQuality:
    """Judge texts by the grammar of the stories; keep the first ``breaks`` breaks for reading.

    Raises:
        InputError: There are no texts.
    """
    if not texts:
        raise InputError("there are no stories to judge; write at least one")
    verdicts = [parse(text) for text in texts]
    grammatical = sum(verdict.grammatical for verdict in verdicts)
    consistent = sum(verdict.grammatical and verdict.consistent for verdict in verdicts)
    broken = [_break(i, text, verdict) for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))]
    found = tuple(b for b in broken if b is not None)[:breaks]
    return StoryQuality(len(texts), grammatical / len(texts), consistent / len(texts), found)


def _break(index: int, text: str, verdict: Verdict) -> Break | None:
    if verdict.offset is None or verdict.message is None:
        return None
    before, after = text[: verdict.offset][-_SHOWN:], text[verdict.offset :][:_SHOWN]
    excerpt = f"{before}>>>{after}".replace("\n", " ")
    return Break(index, verdict.offset, verdict.message, excerpt)


LOOP_TIMES, LOOP_TOKENS = 3, 2
"""A text ends in a loop when its last phrase, of at least 2 tokens, stands there 3 times (Holtzman et al. 2020)."""
BLEU_TEXTS = 64
"""Texts that self-BLEU compares with each other, at most: its work grows with their square."""
PROTOCOL = (
    "perplexity is the measured model's own, of its unchanged distribution; distinct-n and self-BLEU (of at most "
    f"{BLEU_TEXTS} texts) are over words; repetition is the share of texts that end in {LOOP_TIMES} equal phrases of "
    f"{LOOP_TOKENS} tokens or more"
)
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_ARTICLES = frozenset({"a", "an", "the", "his", "her", "its", "my", "your", "our", "their", "this", "that", "some"})
_NO_NOUNS = _ARTICLES | {
    "and", "or", "but", "nor", "so", "yet", "for", "of", "in", "on", "at", "to", "by", "with", "from", "as",
    "than", "into", "onto", "over", "under", "behind", "beside", "near", "after", "before", "while", "when",
    "where", "who", "which", "what", "i", "you", "he", "she", "it", "we", "they", "me", "him", "us", "them",
    "is", "am", "are", "was", "were", "be", "been", "being", "do", "does", "did", "has", "have", "had", "will",
    "would", "can", "could", "shall", "should", "may", "might", "must", "not", "no", "then", "there", "here",
    "very", "too", "said",
}  # fmt: skip
"""Words of English that end a noun phrase or are none."""


@dataclass(frozen=True)
class ScoredText:
    """A text that someone wrote behind a prompt."""

    prompt: str
    continuation: str
    ids: tuple[int, ...]
    """Tokens of the continuation; its end is one of them."""
    nats: float
    """Sum of the model's -ln p over them."""
    ended: bool
    """Whether it came to its end, rather than being cut off."""


@dataclass(frozen=True)
class TextSet:
    """Texts made in one way behind the same prompts: by a strategy, or by those who wrote the held-out text."""

    texts: tuple[ScoredText, ...]
    references: tuple[str, ...]
    """How the held-out text goes on behind each prompt."""
    stories: bool
    """Whether the prompts are from the embedded corpus, whose grammar can judge them."""


Metric = Callable[[TextSet], float | None]
"""A figure of texts; None where it has no meaning for them."""


def perplexity(text_set: TextSet) -> float:
    """Return exp of the mean -ln p of the texts' tokens under the model that is measured, each after its prompt."""
    tokens = sum(len(text.ids) for text in text_set.texts)
    return math.exp(sum(text.nats for text in text_set.texts) / tokens) if tokens else math.nan


def distinct(n: int) -> Metric:
    """Return the metric distinct-n (Li et al. 2016): different n-grams of words among all, over all texts together."""

    def share(text_set: TextSet) -> float | None:
        grams = [gram for text in text_set.texts for gram in _grams(words(text.continuation), n)]
        return len(set(grams)) / len(grams) if grams else None

    return share


def repetition(text_set: TextSet) -> float:
    """Return the share of texts that end in a loop."""
    return sum(ends_in_a_loop(text.ids) for text in text_set.texts) / len(text_set.texts)


def self_bleu(text_set: TextSet) -> float | None:
    """Return the mean BLEU-4 of each text against all others (Zhu et al. 2018), 0 to 100: high where all are alike."""
    from sacrebleu.metrics.bleu import BLEU

    texts = [text.continuation for text in text_set.texts if text.continuation.strip()][:BLEU_TEXTS]
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


def mean_length(text_set: TextSet) -> float:
    """Return the mean number of tokens."""
    return sum(len(text.ids) for text in text_set.texts) / len(text_set.texts)


def relevance(text_set: TextSet) -> float | None:
    """Return the share of the prompts' names and objects that come back in the text behind them."""
    found = [(things, text) for text in text_set.texts if (things := names_and_objects(text.prompt))]
    if not found:
        return None
    back = [len(things & {word.lower() for word in words(text.continuation)}) / len(things) for things, text in found]
    return sum(back) / len(back)


def grammatical(text_set: TextSet) -> float | None:
    """Return the share of whole stories that the grammar can write; None for other texts."""
    return judge_stories(_whole(text_set)).grammatical if text_set.stories else None


def consistent(text_set: TextSet) -> float | None:
    """Return the share of whole stories that also agree with themselves; None for other texts."""
    return judge_stories(_whole(text_set)).consistent if text_set.stories else None


METRICS: dict[str, Metric] = {
    "perplexity": perplexity,
    "distinct_1": distinct(1),
    "distinct_2": distinct(2),
    "distinct_3": distinct(3),
    "repetition": repetition,
    "self_bleu": self_bleu,
    "mean_length": mean_length,
    "relevance": relevance,
    "grammatical": grammatical,
    "consistent": consistent,
}
"""The metrics by name, in the order of the table."""


def text_stats(text_set: TextSet) -> dict[str, float]:
    """Return every metric that has a meaning for the texts, by name."""
    return {name: value for name, metric in METRICS.items() if (value := metric(text_set)) is not None}


def words(text: str) -> list[str]:
    """Return the words and the marks of a text, in order.

    >>> words("Lily's boat, a red one!")
    ["Lily's", 'boat', ',', 'a', 'red', 'one', '!']
    """
    return _WORD.findall(text)


def ends_in_a_loop(ids: Sequence[int]) -> bool:
    """Return whether the last phrase of at least 2 tokens stands 3 times in a row at the end.

    >>> ends_in_a_loop([9, 1, 2, 1, 2, 1, 2]), ends_in_a_loop([1, 2, 1, 2, 3])
    (True, False)
    """
    return any(
        all(ids[-n * (k + 1) : len(ids) - n * k] == ids[-n:] for k in range(1, LOOP_TIMES))
        for n in range(LOOP_TOKENS, len(ids) // LOOP_TIMES + 1)
    )


def names_and_objects(text: str) -> set[str]:
    """Return, in lower case, words that begin with a capital within a sentence, and nouns behind an article.

    A noun is taken to be the last of the words that follow an article or a possessive, at most four, before a mark or
    a word of the grammar: no tagger, so it errs, but on a strategy's texts as on people's.

    >>> sorted(names_and_objects("One day Lily lost her big red boat in the park."))
    ['boat', 'lily', 'park']
    """
    found, parts = set(), words(text)
    for index, word in enumerate(parts):
        begins = index == 0 or not parts[index - 1][-1].isalnum()
        if word[0].isupper() and not begins and word.lower() not in _NO_NOUNS:
            found.add(word.lower())
        if word.lower() in _ARTICLES:
            phrase = _phrase(parts[index + 1 : index + 6])
            found |= {phrase[-1].lower()} if phrase else set()
    return found


def _phrase(following: Sequence[str]) -> list[str]:
    """Return the words up to a mark or a word of the grammar; nothing where neither comes soon enough."""
    for length, word in enumerate(following):
        if not word[0].isalnum() or word.lower() in _NO_NOUNS:
            return list(following[:length])
    return []


def _grams(parts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]


def _whole(text_set: TextSet) -> list[str]:
    """Return whole stories; what was cut off is none, whatever it could have become."""
    return [text.prompt + text.continuation if text.ended else "" for text in text_set.texts]
