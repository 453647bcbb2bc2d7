"""Metrics of generated text, after Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

Decoding that always takes the most probable token writes text that is more probable than any human text, and repeats
itself. Sampling from the whole distribution writes text that is less probable than human text, and falls apart. No
single metric shows both, so each is compared with its value on held-out text: the closer, the more human.

`METRICS` is the registry: a metric is a function of a `TextSet`, and docs/metrics.md says how to add one. For stories
of the embedded corpus, the grammar that generates them also judges whether a text is well-formed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2lab.errors import InputError
from gpt2lab.stories.corpus import parse

LOOP_TIMES, LOOP_TOKENS = 3, 2
"""A text ends in a loop if its last phrase, of at least 2 tokens, occurs 3 times in a row (Holtzman et al. 2020)."""
BLEU_TEXTS = 64
"""Texts compared by self-BLEU at most; the work grows with their square."""
PROTOCOL = (
    "perplexity is that of the evaluated model, without decoding settings; distinct-n and self-BLEU (of at most "
    f"{BLEU_TEXTS} texts) are over words; repetition is the share of texts that end in {LOOP_TIMES} equal phrases of "
    f"{LOOP_TOKENS} tokens or more"
)


@dataclass(frozen=True)
class ScoredText:
    """A continuation of a prompt, generated or human, with its probability under the evaluated model."""

    prompt: str
    continuation: str
    ids: tuple[int, ...]
    """Tokens of the continuation, including the end-of-text token if it has one."""
    nats: float
    """Sum of the model's -ln p over the tokens."""
    ended: bool
    """Whether the text came to its end, rather than being cut off."""


@dataclass(frozen=True)
class TextSet:
    """Continuations of the same prompts with one decoding strategy, or the held-out ones."""

    texts: tuple[ScoredText, ...]
    references: tuple[str, ...]
    """Reference continuation of each prompt: the held-out text."""
    stories: bool
    """Whether the texts are whole stories of the embedded corpus, which its grammar can judge."""


Metric = Callable[[TextSet], float | None]
"""A metric of texts; None where it is undefined."""


def perplexity(text_set: TextSet) -> float:
    """Return exp of the mean -ln p of all tokens under the evaluated model, given their prompts."""
    tokens = sum(len(text.ids) for text in text_set.texts)
    return math.exp(sum(text.nats for text in text_set.texts) / tokens) if tokens else math.nan


def distinct(n: int) -> Metric:
    """Return the metric distinct-n (Li et al. 2016): the share of distinct n-grams of words, over all texts."""

    def share(text_set: TextSet) -> float | None:
        parts = [words(text.continuation) for text in text_set.texts]
        grams = [tuple(part[i : i + n]) for part in parts for i in range(len(part) - n + 1)]
        return len(set(grams)) / len(grams) if grams else None

    return share


def repetition(text_set: TextSet) -> float:
    """Return the share of texts that end in a loop."""
    return sum(ends_in_a_loop(text.ids) for text in text_set.texts) / len(text_set.texts)


def self_bleu(text_set: TextSet) -> float | None:
    """Return the mean BLEU-4 of each text against all others (Zhu et al. 2018), 0 to 100: high if they are similar."""
    from sacrebleu.metrics.bleu import BLEU

    texts = [text.continuation for text in text_set.texts if text.continuation.strip()][:BLEU_TEXTS]
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    return sum(bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)) / len(texts)


def mean_length(text_set: TextSet) -> float:
    """Return the mean number of tokens."""
    return sum(len(text.ids) for text in text_set.texts) / len(text_set.texts)


def relevance(text_set: TextSet) -> float | None:
    """Return the mean share of a prompt's names and objects that recur in its continuation."""
    shares = [
        len(named & {word.lower() for word in words(text.continuation)}) / len(named)
        for text in text_set.texts
        if (named := names_and_objects(text.prompt))
    ]
    return sum(shares) / len(shares) if shares else None


def story_share(name: str) -> Metric:
    """Return the metric of a share in `StoryQuality`. A story that was cut off counts as wrong, however it began."""

    def share(text_set: TextSet) -> float | None:
        stories = [text.prompt + text.continuation if text.ended else "" for text in text_set.texts]
        return judge_stories(stories).figures[name] if text_set.stories else None

    return share


METRICS: dict[str, Metric] = {
    "perplexity": perplexity,
    "distinct_1": distinct(1),
    "distinct_2": distinct(2),
    "distinct_3": distinct(3),
    "repetition": repetition,
    "self_bleu": self_bleu,
    "mean_length": mean_length,
    "relevance": relevance,
    "grammatical": story_share("grammatical"),
    "consistent": story_share("consistent"),
}
"""The metrics by name, in the order of the table."""


def text_stats(text_set: TextSet) -> dict[str, float]:
    """Return every metric that is defined for the texts, by name."""
    return {name: value for name, metric in METRICS.items() if (value := metric(text_set)) is not None}


_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_DETERMINERS = frozenset({"a", "an", "the", "his", "her", "its", "my", "your", "our", "their", "this", "that", "some"})
_FUNCTION_WORDS = _DETERMINERS | {
    "and", "or", "but", "nor", "so", "yet", "for", "of", "in", "on", "at", "to", "by", "with", "from", "as",
    "than", "into", "onto", "over", "under", "behind", "beside", "near", "after", "before", "while", "when",
    "where", "who", "which", "what", "i", "you", "he", "she", "it", "we", "they", "me", "him", "us", "them",
    "is", "am", "are", "was", "were", "be", "been", "being", "do", "does", "did", "has", "have", "had", "will",
    "would", "can", "could", "shall", "should", "may", "might", "must", "not", "no", "then", "there", "here",
    "very", "too", "said",
}  # fmt: skip
"""Words that end a noun phrase, or cannot be part of one."""


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in order.

    >>> words("Lily's boat, a red one!")
    ["Lily's", 'boat', ',', 'a', 'red', 'one', '!']
    """
    return _WORD.findall(text)


def ends_in_a_loop(ids: Sequence[int]) -> bool:
    """Return whether the last phrase, of at least 2 tokens, occurs 3 times in a row at the end.

    >>> ends_in_a_loop([9, 1, 2, 1, 2, 1, 2]), ends_in_a_loop([1, 2, 1, 2, 3])
    (True, False)
    """
    return any(
        all(ids[-n * (k + 1) : len(ids) - n * k] == ids[-n:] for k in range(1, LOOP_TIMES))
        for n in range(LOOP_TOKENS, len(ids) // LOOP_TIMES + 1)
    )


def names_and_objects(text: str) -> set[str]:
    """Return, in lower case, capitalized words within sentences and nouns after a determiner.

    The noun is taken to be the last of at most five words between the determiner and a punctuation mark or function
    word. There is no part-of-speech tagger: the heuristic errs, but equally on generated and on human text.

    >>> sorted(names_and_objects("One day Lily lost her big red boat in the park."))
    ['boat', 'lily', 'park']
    """
    found, parts = set(), words(text)
    for index, word in enumerate(parts):
        starts_sentence = index == 0 or not parts[index - 1][-1].isalnum()
        if word[0].isupper() and not starts_sentence and word.lower() not in _FUNCTION_WORDS:
            found.add(word.lower())
        if word.lower() in _DETERMINERS and (phrase := _noun_phrase(parts[index + 1 : index + 6])):
            found.add(phrase[-1].lower())
    return found


def _noun_phrase(following: Sequence[str]) -> Sequence[str]:
    """Return the words up to a punctuation mark or function word; nothing if there is neither."""
    for length, word in enumerate(following):
        if not word[0].isalnum() or word.lower() in _FUNCTION_WORDS:
            return following[:length]
    return []


EXCERPT = 40
"""Characters shown on either side of an error in a story, before which ``>>>`` stands."""


@dataclass(frozen=True)
class StoryQuality:
    """How many of a number of texts are well-formed stories."""

    texts: int
    figures: dict[str, float]
    """``grammatical``: the share of texts that are complete, and whose sentences the grammar allows in this order;
    ``consistent``: the share of texts that are grammatical and do not contradict themselves."""
    errors: tuple[str, ...]
    """Where each of the first few wrong texts violates the grammar or contradicts itself, with the text around it."""

    @property
    def protocol(self) -> str:
        """How the shares were measured, in one sentence."""
        return (
            f"Shares of {self.texts:,} whole texts that the grammar of the stories can generate (grammatical) and that "
            "also do not contradict themselves (consistent); a truncated text is neither."
        )


def judge_stories(texts: Sequence[str], errors: int = 5) -> StoryQuality:
    """Judge texts by the grammar of the stories, and keep the first ``errors`` errors.

    Raises:
        InputError: There are no texts.
    """
    if not texts:
        raise InputError("there are no stories to judge; generate at least one")
    verdicts = [parse(text) for text in texts]
    counts = {
        "grammatical": sum(verdict.grammatical for verdict in verdicts),
        "consistent": sum(verdict.grammatical and verdict.consistent for verdict in verdicts),
    }
    found = []
    for index, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        offset, message = verdict.offset, verdict.message
        if offset is not None and message is not None:
            excerpt = f"{text[:offset][-EXCERPT:]}>>>{text[offset:][:EXCERPT]}".replace("\n", " ")
            found.append(f"text {index}, character {offset}: {message}: {excerpt}")
    return StoryQuality(len(texts), {name: n / len(texts) for name, n in counts.items()}, tuple(found[:errors]))
