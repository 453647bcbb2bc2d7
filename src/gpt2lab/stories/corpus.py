"""The embedded corpus: short children's stories of known entropy, any number of them, the same everywhere.

A seeded probabilistic grammar writes them (the graph: `stories_grammar.py`; the notation: `stories_notation.py`; the
plots and words: `stories_plots.py`, `stories_words.py`). Every story carries its exact -log2 probability, so the mean
over stories is the lowest loss that any model can reach, and :func:`parse` says of any text whether the grammar
can write it, and where it first breaks. Stories in the manner of TinyStories (Eldan & Li 2023).

Story ``index`` depends on ``(seed, index)`` only, through integers only: any process can write any part of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import log2
from typing import NoReturn

from gpt2lab.errors import InputError
from gpt2lab.stories.grammar import END, Choice, Draw, Refer, Trie, Walk, Word
from gpt2lab.stories.lexicon import POOLS
from gpt2lab.stories.notation import Grammar
from gpt2lab.stories.plots import PLOTS

_MASK = (1 << 64) - 1
_SHOWN = 5  # expectations named in a message


@dataclass(frozen=True)
class Story:
    """A text, and its information: ``bits`` = -log2 of the probability with which the grammar writes it."""

    text: str
    bits: float


@dataclass(frozen=True)
class Verdict:
    """What the grammar says of a text; ``offset`` is the character at which it first breaks, ``message`` how.

    ``grammatical``: each sentence is one that can stand in its place, and the text is complete. ``consistent``: what
    refers back agrees with what was said, as far as the text could be read. ``bits`` is None unless both hold.
    """

    grammatical: bool
    consistent: bool
    bits: float | None
    offset: int | None
    message: str | None


@cache
def grammar() -> Grammar:
    """The grammar of the stories, compiled at the first call."""
    return Grammar(PLOTS, POOLS)


def write_story(seed: int, index: int) -> Story:
    """Write story ``index`` of corpus ``seed``; both in [0, 2**64). 60 to 250 words of ASCII, no newline at the end."""
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value <= _MASK:
            raise InputError(f"{name} of the stories is {value}; give an integer from 0 to 2**64 - 1")
    return write(grammar(), splitmix64(seed, index))


def stories(seed: int = 0, start: int = 0) -> Iterator[Story]:
    """Write the stories ``start``, ``start + 1``, ... of corpus ``seed``, without end."""
    return (write_story(seed, index) for index in count(start))


def parse(text: str) -> Verdict:
    """Judge a text: can the grammar write it, does it agree with itself, and how probable is it."""
    return read(grammar(), text)


def splitmix64(seed: int, index: int) -> Callable[[int], int]:
    """Return ``pick(n)``, which draws integers in [0, n): SplitMix64 (Steele et al. 2014), started at a hash of both.

    Multiplying up a 64-bit draw favours no number by more than n / 2**64: nothing that a corpus could show.
    """
    state = _mix(_mix(seed) ^ index)

    def pick(n: int) -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        return _mix(state) * n >> 64

    return pick


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


# ---------------------------------------------------------------------------------------------------------------------
# One grammar, two interpreters


class _Writer(Walk):
    """Decides by ``pick(n)``, an integer in [0, n), and writes."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        super().__init__()
        self.pick = pick
        self.parts: list[str] = []

    def say(self, text: str) -> None:
        self.parts.append(text)

    def choose(self, choice: Choice) -> int:
        return self.pick(len(choice.ways))

    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        word = words[self.pick(len(words))]
        self.parts.append(word.forms[draw.form])
        return word

    def refer(self, refer: Refer, word: Word) -> None:
        self.parts.append(word.forms[refer.form])


class _Break(Exception):
    """The text goes on as the grammar cannot."""


class _Reader(Walk):
    """Decides by the text that comes next, and notes the first thing that is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text + END
        self.position = 0
        self.consistent = True
        self.offset: int | None = None
        self.message: str | None = None

    def say(self, text: str) -> None:
        if not self.text.startswith(text, self.position):
            self._break([text])
        self.position += len(text)

    def choose(self, choice: Choice) -> int:
        way = self._decide(choice.trie)
        if way is None:
            self._break(choice.expected)
        return way

    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        expected = [word.forms[draw.form] for word in words]
        word = draw.legal.words[self._word(draw, expected)]
        if word not in words:
            self._disagree(expected, word.forms[draw.form])
        return word

    def refer(self, refer: Refer, word: Word) -> None:
        expected = word.forms[refer.form]
        if self.text.startswith(expected, self.position):
            self.position += len(expected)
        else:
            self._disagree([expected], refer.legal.texts[self._word(refer, [expected])])

    def finish(self) -> None:
        """The text must end where the grammar does."""
        if self.text[self.position :] != END:
            self._break([END])

    def _word(self, node: Draw | Refer, expected: Sequence[str]) -> int:
        """Pass any word that is legal in the slot; return its number."""
        number = self._decide(node.legal.trie)
        if number is None or not self.text.startswith(node.legal.texts[number], self.position):
            self._break(expected)
        self.position += len(node.legal.texts[number])
        return number

    def _disagree(self, expected: Sequence[str], found: str) -> None:
        """The word just passed is legal, but not after what was said."""
        self.consistent = False
        self._note(self.position - len(found), expected, found)

    def _decide(self, trie: Trie) -> int | None:
        """Return the number that the next characters lead to."""
        below: Trie | None = trie
        position = self.position
        while isinstance(below, dict):
            below = below.get(self.text[position])
            position += 1
        return below

    def _note(self, offset: int, expected: Sequence[str], found: str) -> None:
        """Remember the first fault."""
        if self.offset is None:
            self.offset = offset
            self.message = f"expected {_listed(expected)}, found {_shown(found)}"

    def _break(self, expected: Iterable[str]) -> NoReturn:
        """Say at which character the text leaves every continuation that the grammar has, and stop."""
        rest = self.text[self.position :]
        shared = [(_shared(text, rest), text) for text in expected]
        length = max(n for n, _ in shared)
        begin = max(rest.rfind(" ", 0, length), rest.rfind("\n", 0, length)) + 1  # show the whole word
        words = [_first_word(text[begin:]) for n, text in shared if n == length]
        self._note(self.position + length, words, _first_word(rest[begin:]))
        raise _Break


def _shared(a: str, b: str) -> int:
    """Count the characters with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _first_word(text: str) -> str:
    return text.split(END)[0][: len(text) - len(text.lstrip()) + len((text.split() or [""])[0])]


def _shown(word: str) -> str:
    return json.dumps(word) if word else "the end of the text"


def _listed(words: Sequence[str]) -> str:
    """``"a"``, ``"a" or "b"``, ``"a", "b" or 7 others``."""
    names = [_shown(word) for word in sorted(set(words))]
    if len(names) > _SHOWN:
        names[_SHOWN - 1 :] = [f"{len(names) - _SHOWN + 1} others"]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def write(grammar: Grammar, pick: Callable[[int], int]) -> Story:
    """Write one text of a grammar; ``pick(n)`` decides between n ways."""
    writer = _Writer(pick)
    writer.run(grammar.start)
    return Story("".join(writer.parts), log2(writer.outcomes))


def read(grammar: Grammar, text: str) -> Verdict:
    """Judge a text by a grammar."""
    reader = _Reader(text)
    try:
        reader.run(grammar.start)
        reader.finish()
    except _Break:
        return Verdict(False, reader.consistent, None, reader.offset, reader.message)
    bits = log2(reader.outcomes) if reader.consistent else None
    return Verdict(True, reader.consistent, bits, reader.offset, reader.message)
