from __future__ import annotations

from itertools import islice

import pytest

from gpt2lab.errors import InputError
from gpt2lab.evaluation.text_metrics import judge_stories
from gpt2lab.stories.corpus import parse, stories

WRITTEN = [story.text for story in islice(stories(seed=5), 8)]


def contradicting(text: str) -> str:
    """Change one word of a story so that it can still be read but contradicts itself."""
    words = sorted({word.strip(".,!?\"'") for word in text.split()} - {""})
    for old in words:
        for new in words:
            changed = new.join(text.rsplit(old, 1))
            verdict = parse(changed)
            if verdict.grammatical and not verdict.consistent:
                return changed
    raise AssertionError("no word of this story can be exchanged")


def test_what_the_grammar_wrote_is_grammatical_and_consistent() -> None:
    quality = judge_stories(WRITTEN)
    assert (quality.texts, quality.grammatical, quality.consistent, quality.breaks) == (8, 1.0, 1.0, ())


def test_shares_count_whole_texts_and_consistent_ones_are_grammatical_too() -> None:
    cut, wrong = WRITTEN[0][:-20], contradicting(WRITTEN[1])
    quality = judge_stories([*WRITTEN[2:6], cut, wrong, "Hello.", ""])
    assert quality.grammatical == 5 / 8
    assert quality.consistent == 4 / 8
    assert quality.figures == {"grammatical": 5 / 8, "consistent": 4 / 8}
    assert [b.index for b in quality.breaks] == [4, 5, 6, 7]


def test_breaks_say_where_and_how_and_show_the_text_around() -> None:
    text = WRITTEN[0]
    at = text.index(" ", len(text) // 2) + 1
    broken = judge_stories([text, text[:at] + "zebras\nsing."]).breaks[0]
    verdict = parse(text[:at] + "zebras\nsing.")
    assert (broken.index, broken.offset, broken.message) == (1, verdict.offset, verdict.message)
    assert ">>>" in broken.excerpt
    assert broken.excerpt.replace(">>>", "") in (text[:at] + "zebras sing.").replace("\n", " ")
    assert str(broken) == f"text 1, character {broken.offset}: {broken.message}: {broken.excerpt}"


@pytest.mark.parametrize("breaks", [0, 2])
def test_as_many_breaks_are_kept_as_asked_for(breaks: int) -> None:
    quality = judge_stories(["a", "b", "c"], breaks=breaks)
    assert len(quality.breaks) == breaks
    assert quality.grammatical == 0.0


def test_the_protocol_says_how_many_texts_and_what_counts() -> None:
    assert judge_stories(WRITTEN).protocol.startswith("Of 8 whole texts, the share that the stories' grammar can write")


def test_no_texts_are_refused() -> None:
    with pytest.raises(InputError, match="there are no stories to judge"):
        judge_stories([])
