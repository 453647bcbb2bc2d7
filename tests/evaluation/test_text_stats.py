from __future__ import annotations

import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from gpt2lab.evaluation.text_metrics import METRICS, ScoredText, TextSet, ends_in_a_loop, names_and_objects, text_stats
from gpt2lab.stories.corpus import stories


def written(*continuations: str, prompt: str = "", stories: bool = False, ended: bool = True) -> TextSet:
    """Texts of which each word is a token of 1 nat."""
    texts = tuple(
        ScoredText(prompt, text, tuple(hash(word) for word in text.split()), float(len(text.split())), ended)
        for text in continuations
    )
    return TextSet(texts, continuations, stories)


def test_perplexity_is_over_all_tokens_together() -> None:
    texts = (ScoredText("", "a", (1, 2, 3), 6.0, True), ScoredText("", "b", (4,), 1.0, True))
    assert METRICS["perplexity"](TextSet(texts, ("", ""), False)) == pytest.approx(math.exp(7 / 4))


def test_distinct_by_hand() -> None:
    """a b a b | a c: 6 words of 3 kinds; pairs ab ba ab ac, 3 kinds of 4; triples aba bab, 2 of 2."""
    figures = text_stats(written("a b a b", "a c"))
    assert (figures["distinct_1"], figures["distinct_2"], figures["distinct_3"]) == (3 / 6, 3 / 4, 2 / 2)
    assert "distinct_3" not in text_stats(written("a b", "c"))


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2, 1, 2, 1, 2], True),
        ([9, 9, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3, 1, 2], False),
        ([1, 2, 1, 2], False),
        ([5, 5, 5], False),
        ([5] * 6, True),
        ([], False),
    ],
)
def test_a_loop_is_a_phrase_of_two_tokens_three_times_at_the_end(ids: list[int], loops: bool) -> None:
    assert ends_in_a_loop(ids) == loops


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), min_size=2, max_size=6))
def test_any_phrase_three_times_is_a_loop_whatever_came_before(before: list[int], phrase: list[int]) -> None:
    assert ends_in_a_loop([*before, *phrase * 3])
    assert not ends_in_a_loop([*range(10, 10 + len(before)), *dict.fromkeys(phrase)])


def test_repetition_is_a_share_of_texts() -> None:
    assert METRICS["repetition"](written("so on so on so on", "it ended well", "a b a b a b", "a")) == 0.5


def test_self_bleu_is_the_mean_of_sacrebleus_scores() -> None:
    texts = ["the cat sat on the mat .", "the dog sat on the mat .", "a boat came to the old harbour at night ."]
    expected = [sentence_bleu(t, [o for o in texts if o != t]).score for t in texts]
    assert METRICS["self_bleu"](written(*texts)) == pytest.approx(sum(expected) / 3)
    assert METRICS["self_bleu"](written("same words in each", "same words in each")) == pytest.approx(100.0)
    assert METRICS["self_bleu"](written("only one")) is None


def test_relevance_counts_names_and_objects_that_come_back() -> None:
    prompt = "One day Lily lost her big red boat in the park."
    assert names_and_objects(prompt) == {"lily", "boat", "park"}
    assert METRICS["relevance"](written("Lily found the boat.", "He slept.", prompt=prompt)) == pytest.approx(2 / 3 / 2)
    assert METRICS["relevance"](written("Lily slept.", prompt="then and there")) is None


def test_stories_are_judged_and_what_was_cut_off_is_wrong() -> None:
    whole = [story.text for story in islice(stories(seed=3), 4)]
    texts = tuple(ScoredText(text[:20], text[20:], (1,), 1.0, True) for text in whole)
    figures = text_stats(TextSet(texts, (), stories=True))
    assert (figures["grammatical"], figures["consistent"]) == (1.0, 1.0)
    cut = tuple(ScoredText(t.prompt, t.continuation, t.ids, t.nats, n < 2) for n, t in enumerate(texts))
    assert text_stats(TextSet(cut, (), stories=True))["grammatical"] == 0.5
    assert "grammatical" not in text_stats(TextSet(texts, (), stories=False))


def test_a_metric_is_added_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/metrics.md."""
    from sacrebleu.metrics.bleu import BLEU

    def bleu(text_set: TextSet) -> float:
        return BLEU().corpus_score([text.continuation for text in text_set.texts], [list(text_set.references)]).score

    monkeypatch.setitem(METRICS, "bleu", bleu)
    assert text_stats(written("the cat sat on the mat .", "a boat came at night ."))["bleu"] == pytest.approx(100.0)
