from __future__ import annotations

import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from gpt2lab.evaluation.text_metrics import (
    METRICS,
    ScoredText,
    TextSet,
    ends_in_a_loop,
    judge_stories,
    names_and_objects,
    text_stats,
)
from gpt2lab.stories.corpus import parse, stories

STORIES = [story.text for story in islice(stories(seed=5), 8)]


def texts_of(*continuations: str, prompt: str = "") -> TextSet:
    """Texts in which each word is a token of 1 nat."""
    texts = tuple(
        ScoredText(prompt, text, tuple(hash(word) for word in text.split()), float(len(text.split())), True)
        for text in continuations
    )
    return TextSet(texts, continuations, stories=False)


def test_perplexity_is_over_all_tokens() -> None:
    texts = (ScoredText("", "a", (1, 2, 3), 6.0, True), ScoredText("", "b", (4,), 1.0, True))
    assert METRICS["perplexity"](TextSet(texts, ("", ""), False)) == pytest.approx(math.exp(7 / 4))


def test_distinct_by_hand() -> None:
    """a b a b | a c: 6 words of 3 kinds; pairs ab ba ab ac, 3 kinds of 4; triples aba bab, 2 of 2."""
    figures = text_stats(texts_of("a b a b", "a c"))
    assert (figures["distinct_1"], figures["distinct_2"], figures["distinct_3"]) == (3 / 6, 3 / 4, 2 / 2)
    assert "distinct_3" not in text_stats(texts_of("a b", "c"))


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
def test_loop_is_a_phrase_of_two_tokens_three_times_at_the_end(ids: list[int], loops: bool) -> None:
    assert ends_in_a_loop(ids) == loops


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), min_size=2, max_size=6))
def test_any_phrase_three_times_is_a_loop_whatever_precedes_it(before: list[int], phrase: list[int]) -> None:
    assert ends_in_a_loop([*before, *phrase * 3])
    assert not ends_in_a_loop([*range(10, 10 + len(before)), *dict.fromkeys(phrase)])


def test_repetition_is_the_share_of_texts_with_a_loop() -> None:
    assert METRICS["repetition"](texts_of("so on so on so on", "it ended well", "a b a b a b", "a")) == 0.5


def test_self_bleu_is_the_mean_score_of_sacrebleu() -> None:
    texts = ["the cat sat on the mat .", "the dog sat on the mat .", "a boat came to the old harbour at night ."]
    expected = [sentence_bleu(t, [o for o in texts if o != t]).score for t in texts]
    assert METRICS["self_bleu"](texts_of(*texts)) == pytest.approx(sum(expected) / 3)
    assert METRICS["self_bleu"](texts_of("same words in each", "same words in each")) == pytest.approx(100.0)
    assert METRICS["self_bleu"](texts_of("only one")) is None


def test_relevance_counts_names_and_objects_that_recur() -> None:
    prompt = "One day Lily lost her big red boat in the park."
    assert names_and_objects(prompt) == {"lily", "boat", "park"}
    assert METRICS["relevance"](texts_of("Lily found the boat.", "He slept.", prompt=prompt)) == pytest.approx(
        2 / 3 / 2
    )
    assert METRICS["relevance"](texts_of("Lily slept.", prompt="then and there")) is None


def test_truncated_stories_count_as_wrong() -> None:
    texts = tuple(ScoredText(text[:20], text[20:], (1,), 1.0, True) for text in STORIES[:4])
    figures = text_stats(TextSet(texts, (), stories=True))
    assert (figures["grammatical"], figures["consistent"]) == (1.0, 1.0)
    cut = tuple(ScoredText(t.prompt, t.continuation, t.ids, t.nats, n < 2) for n, t in enumerate(texts))
    assert text_stats(TextSet(cut, (), stories=True))["grammatical"] == 0.5
    assert "grammatical" not in text_stats(TextSet(texts, (), stories=False))


def test_metric_is_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/metrics.md."""
    from sacrebleu.metrics.bleu import BLEU

    def bleu(text_set: TextSet) -> float:
        return BLEU().corpus_score([text.continuation for text in text_set.texts], [list(text_set.references)]).score

    monkeypatch.setitem(METRICS, "bleu", bleu)
    assert text_stats(texts_of("the cat sat on the mat .", "a boat came at night ."))["bleu"] == pytest.approx(100.0)


def contradict(text: str) -> str:
    """Change one word of a story so that it remains grammatical but contradicts itself."""
    words = sorted({word.strip(".,!?\"'") for word in text.split()} - {""})
    for old in words:
        for new in words:
            changed = new.join(text.rsplit(old, 1))
            verdict = parse(changed)
            if verdict.grammatical and not verdict.consistent:
                return changed
    raise AssertionError("no word of this story can be changed so")


def test_generated_stories_are_grammatical_and_consistent() -> None:
    quality = judge_stories(STORIES)
    assert (quality.texts, quality.grammatical, quality.consistent, quality.errors) == (8, 1.0, 1.0, ())
    assert quality.protocol.startswith("Shares of 8 whole texts that the grammar of the stories can generate")


def test_truncated_and_contradictory_stories_lower_the_shares() -> None:
    cut, wrong = STORIES[0][:-20], contradict(STORIES[1])
    quality = judge_stories([*STORIES[2:6], cut, wrong, "Hello.", ""])
    assert quality.grammatical == 5 / 8
    assert quality.consistent == 4 / 8
    assert quality.figures == {"grammatical": 5 / 8, "consistent": 4 / 8}
    assert [error.split(",")[0] for error in quality.errors] == ["text 4", "text 5", "text 6", "text 7"]


def test_errors_name_the_character_and_show_the_surrounding_text() -> None:
    text = STORIES[0]
    at = text.index(" ", len(text) // 2) + 1
    (broken,) = judge_stories([text, text[:at] + "zebras\nsing."]).errors
    verdict = parse(text[:at] + "zebras\nsing.")
    excerpt = broken.removeprefix(f"text 1, character {verdict.offset}: {verdict.message}: ")
    assert excerpt != broken and ">>>" in excerpt
    assert excerpt.replace(">>>", "") in (text[:at] + "zebras sing.").replace("\n", " ")


@pytest.mark.parametrize("errors", [0, 2])
def test_at_most_the_given_number_of_errors_is_kept(errors: int) -> None:
    quality = judge_stories(["a", "b", "c"], errors=errors)
    assert len(quality.errors) == errors
    assert quality.grammatical == 0.0
