"""The stories: what is generated parses with exactly its probability, and probabilities sum to one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.errors import InputError
from gpt2lab.stories.corpus import Verdict, Writer, generate, generate_story, grammar, parse, splitmix64, stories
from gpt2lab.stories.grammar import AmbiguityError, Choice, Draw, Grammar, Literal, Node, Word

SEED = 0
SAMPLE = [generate_story(SEED, index) for index in range(2_000)]

PEOPLE = {
    "girl": (Word({"": "Ann", "he": "she"}), Word({"": "Eve", "he": "she"})),
    "boy": (Word({"": "Bob", "he": "he"}), Word({"": "Jim", "he": "he"})),
    "toy": (Word({"": "ball"}), Word({"": "kite"}), Word({"": "top"})),
}
TOY = Grammar(
    {
        "story": """
            <child> had a {thing:toy}.
            Then ({other:girl}|{other:boy}) came, and {taker:hero/other} took the {thing}, not a {:toy}.
            | {hero} was glad, (and {hero.he} sang|but {hero.he} did not sing).
            |

            The end.
        """,
        "child": "({hero:girl}|{hero:boy})",
    },
    PEOPLE,
)


def nodes(start: Node) -> Iterator[Literal | Choice | Draw]:
    """Every node of a graph, once."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        waiting += node.branches if isinstance(node, Choice) else [node.after]
        yield node


def every_text(toy: Grammar) -> Iterator[tuple[str, Fraction, float]]:
    """Each derivation of a small grammar: its text, the product of its choices' probabilities, and its bits."""
    waiting: list[list[int]] = [[]]
    while waiting:
        decided = waiting.pop()
        sizes: list[int] = []

        def pick(n: int, decided: list[int] = decided, sizes: list[int] = sizes) -> int:
            sizes.append(n)
            return decided[len(sizes) - 1] if len(sizes) <= len(decided) else 0

        story = generate(toy, pick)
        probability = Fraction(1)
        for n in sizes:
            probability /= n
        yield story.text, probability, story.bits
        for at in range(len(decided), len(sizes)):
            waiting += [decided + [0] * (at - len(decided)) + [k] for k in range(1, sizes[at])]


class TestAmbiguity:
    def test_every_choice_and_every_word_in_its_slot_can_be_told_from_the_text(self) -> None:
        every = list(nodes(grammar().start))
        assert sum(isinstance(node, Choice) for node in every) > 150
        for node in every:
            if not isinstance(node, Literal):  # building a trie raises AmbiguityError if the rule is broken
                assert (node if isinstance(node, Choice) else node.legal).trie is not None
            if isinstance(node, Draw) and node.pool:
                assert len(node.legal.texts) == len(node.legal.words), f"the text does not tell {node.slot}"

    @pytest.mark.parametrize("rule", ["(a|a)", "({hero:girl}|Ann) sang", "(red|red ball)( ball|) lay there"])
    def test_an_ambiguous_grammar_is_refused(self, rule: str) -> None:
        broken = Grammar({"story": rule}, PEOPLE)
        with pytest.raises(AmbiguityError):
            parse(generate(broken, lambda n: 0).text, broken)

    def test_the_probabilities_of_all_texts_sum_to_one(self) -> None:
        texts = list(every_text(TOY))
        assert len(texts) == len({text for text, _, _ in texts}) > 100
        assert sum(probability for _, probability, _ in texts) == 1
        for text, probability, bits in texts:
            assert 2**-bits == pytest.approx(float(probability), rel=1e-12)
            assert parse(text, TOY).bits == bits

    def test_texts_are_as_frequent_as_their_bits_say(self) -> None:
        n = 6_000
        found = Counter(generate(TOY, splitmix64(7, index)).text for index in range(n))
        for text, probability, _ in every_text(TOY):
            expected = n * float(probability)
            assert abs(found[text] - expected) < 6 * expected**0.5


class TestGenerating:
    def test_the_bytes_are_the_same_everywhere(self) -> None:
        digest = hashlib.sha256("\0".join(story.text for story in SAMPLE[:300]).encode("ascii")).hexdigest()
        assert digest == "04491adeb0fa08c82c193ec9ce7bd31883c344c83c9e7e4422cd503b9401074f"

    def test_a_story_depends_on_seed_and_index_only(self) -> None:
        assert list(islice(stories(SEED, start=5), 20)) == SAMPLE[5:25]
        assert generate_story(SEED, 2**64 - 1) == generate_story(SEED, 2**64 - 1)
        assert generate_story(SEED + 1, 5) != generate_story(SEED, 5)

    def test_no_story_is_generated_twice(self) -> None:
        assert len({story.text for story in SAMPLE}) == len(SAMPLE)

    def test_every_possible_story_has_60_to_250_words(self) -> None:
        """The shortest and the longest branch through the graph, counted in spaces."""

        @cache
        def bounds(node: Node) -> tuple[int, int]:
            if node is None:
                return 1, 1
            if isinstance(node, Choice):
                branches = [bounds(branch) for branch in node.branches]
                return min(low for low, _ in branches), max(high for _, high in branches)
            texts = (node.text,) if isinstance(node, Literal) else node.legal.texts
            blanks = [len(re.findall(r"[ \n]", text)) for text in texts]
            low, high = bounds(node.after)
            return low + min(blanks), high + max(blanks)

        shortest, longest = bounds(grammar().start)
        assert 60 <= shortest <= min(len(story.text.split()) for story in SAMPLE)
        assert max(len(story.text.split()) for story in SAMPLE) <= longest <= 250

    def test_texts_are_clean_english_prose(self) -> None:
        for story in SAMPLE:
            assert story.text.isascii()
            assert story.text == story.text.strip()
            assert not re.search(r"  |\n\n| \n|\n | [.,?!]|[{}<>|()]", story.text)
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", story.text, re.IGNORECASE)
            assert re.search(r'[.!?]"?$', story.text)
            assert not re.search(r'[.!?]"? [a-z]', re.sub(r'[!?]" [a-z]', "", story.text))
            assert all(paragraph.count('"') % 2 == 0 for paragraph in story.text.split("\n"))

    def test_most_stories_have_references_over_more_than_100_words(self) -> None:
        far = 0
        for index in range(500):
            walk = Distances(splitmix64(SEED, index))
            walk.run(grammar().start)
            assert "".join(walk.parts) == SAMPLE[index].text
            far += max(walk.found, default=0) > 100
        assert far / 500 > 0.9

    @pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
    def test_a_seed_or_index_out_of_range_is_refused(self, seed: int, index: int) -> None:
        with pytest.raises(InputError, match=r"must be an integer from 0 to 2\*\*64 - 1"):
            generate_story(seed, index)


class Distances(Writer):
    """Generate, and record how many words separate each reference from its draw."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        super().__init__(pick)
        self.drawn_at: dict[Word, int] = {}
        self.found: list[int] = []

    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        before, word = len("".join(self.parts).split()), super().draw(draw, words)
        self.drawn_at.setdefault(word, before)
        if not draw.pool:
            self.found.append(before - self.drawn_at[word])
        return word


class TestParsing:
    def test_a_generated_story_parses_with_exactly_its_bits(self) -> None:
        for story in SAMPLE:
            assert parse(story.text) == Verdict(True, True, story.bits, offset=None, message=None)

    @given(st.randoms(use_true_random=False))
    def test_any_derivation_parses_with_exactly_its_bits(self, random: object) -> None:
        story = generate(grammar(), random.randrange)  # type: ignore[attr-defined]
        assert parse(story.text).bits == story.bits

    def test_a_truncated_text_is_ungrammatical_where_it_ends(self) -> None:
        text = SAMPLE[0].text
        for end in range(len(text)):
            verdict = parse(text[:end])
            assert verdict == Verdict(False, True, None, end, verdict.message)
            assert verdict.message and "\n" not in verdict.message

    def test_text_after_the_end_is_ungrammatical(self) -> None:
        text = SAMPLE[0].text
        expected = Verdict(False, True, None, len(text), 'expected the end of the text, found " And"')
        assert parse(text + " And then?") == expected

    @given(st.integers(0, 199), st.data())
    def test_a_changed_character_breaks_nothing_before_it(self, index: int, data: st.DataObject) -> None:
        text = SAMPLE[index].text
        at = data.draw(st.integers(0, len(text) - 1))
        changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
        verdict = parse(changed)
        assert (verdict.bits is None) == (verdict.offset is not None) == (verdict.message is not None)
        if not verdict.grammatical and verdict.consistent:
            assert verdict.offset is not None
            assert at <= verdict.offset <= len(changed)

    @given(st.text())
    def test_any_text_gets_a_verdict(self, text: str) -> None:
        verdict = parse(text)
        assert not verdict.grammatical
        assert verdict.offset is not None


THE_END = "\nThe end."
FAULTS = {  # a text of the small grammar: is it grammatical and consistent, where does it first break, and how
    "Ann had a bell. The end.": (False, True, 11, 'expected "ball", found "bell."'),
    f"Ann had a top. Eve was glad, and he sang.{THE_END}": (True, False, 15, 'expected "Ann", found "Eve"'),
    f"Bob had a top. Bob was glad, and she sang.{THE_END}": (True, False, 33, 'expected "he", found "she"'),
    f"Bob had a top. Then Bob came, and Bob took the top, not a top.{THE_END}": (
        *(True, False, 20, 'expected "Jim", found "Bob"'),
    ),
    f"Bob had a top. Then Eve came, and Jim took the top, not a top.{THE_END}": (
        *(True, False, 34, 'expected "Bob" or "Eve", found "Jim"'),
    ),
    "Bob had a top. Jim was glad, and he sat.": (False, False, 15, 'expected "Bob", found "Jim"'),
}


class TestConsistency:
    @pytest.mark.parametrize(("text", "fault"), FAULTS.items())
    def test_the_first_fault_is_named(self, text: str, fault: tuple[bool, bool, int, str]) -> None:
        grammatical, consistent, offset, message = fault
        assert parse(text, TOY) == Verdict(grammatical, consistent, None, offset, message)

    def test_a_story_whose_end_forgets_a_name_is_inconsistent(self) -> None:
        story = next(story.text for story in SAMPLE if re.search(r"From that \w+ on, \w+ and \w+", story.text))
        match = re.search(r"From that \w+ on, (\w+) and", story)
        assert match
        name = "Lily" if match[1] != "Lily" else "Mia"
        verdict = parse(story[: match.start(1)] + name + story[match.end(1) :])
        assert (verdict.grammatical, verdict.consistent, verdict.offset) == (True, False, match.start(1))
        assert verdict.message == f'expected "{match[1]}", found "{name}"'
