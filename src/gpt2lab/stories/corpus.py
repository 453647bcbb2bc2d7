"""Short children's stories: generated in any number, the same everywhere, each with its exact probability.

A seeded probabilistic grammar writes them (the graph and its notation in `grammar.py`, the contents in `plots.toml` and
`lexicon.toml`), in the manner of TinyStories (Eldan & Li 2023). Every story carries its information content, -log2 p.
The mean over stories is the entropy of the corpus, which is the lowest loss that any model can reach. :func:`parse`
tells whether the grammar can write a text, and where it first breaks.

Story ``index`` is a function of ``(seed, index)`` alone, computed in integers: any process can write any part of the
corpus.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import log2
from pathlib import Path
from typing import NoReturn

from gpt2lab.errors import require
from gpt2lab.stories.grammar import END, Choice, Draw, Grammar, Trie, Walk, Word, read_pool

_MASK = (1 << 64) - 1
_MAX_SHOWN = 5  # expected words named in a message


@dataclass(frozen=True)
class Story:
    """A text and its information content: ``bits`` = -log2 of the probability with which the grammar writes it."""

    text: str
    bits: float


@dataclass(frozen=True)
class Verdict:
    """What the grammar says about a text.

    Attributes:
        grammatical: The grammar can write each sentence where it stands, and the text is complete.
        consistent: What refers back agrees with what was said, as far as the text could be parsed.
        bits: -log2 of the probability of the text; ``None`` unless it is grammatical and consistent.
        offset: The character at which it first breaks, if it does.
        message: What was expected there and what was found.
    """

    grammatical: bool
    consistent: bool
    bits: float | None
    offset: int | None
    message: str | None


def generate_story(seed: int, index: int) -> Story:
    """Generate story ``index`` of corpus ``seed``: 60 to 250 words of ASCII, without a newline at the end.

    Raises:
        InputError: ``seed`` or ``index`` is outside [0, 2**64).
    """
    for name, value in (("seed", seed), ("index", index)):
        require(0 <= value <= _MASK, f"{name} of the stories", value, "an integer from 0 to 2**64 - 1")
    return generate(grammar(), splitmix64(seed, index))


def stories(seed: int = 0, start: int = 0) -> Iterator[Story]:
    """Generate the stories ``start``, ``start + 1``, ... of corpus ``seed``, without end."""
    return (generate_story(seed, index) for index in count(start))


@cache
def grammar() -> Grammar:
    """The grammar of the stories, compiled at the first call."""
    plots, lexicon = (
        tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for name in ("plots.toml", "lexicon.toml")
    )
    return Grammar(plots, {name: read_pool(pool) for name, pool in lexicon.items()})


def splitmix64(seed: int, index: int) -> Callable[[int], int]:
    """Return ``pick(n)``, which draws integers in [0, n): SplitMix64 (Steele et al. 2014), started at a hash of both.

    Scaling a 64-bit draw favors no number by more than n / 2**64, which no corpus could show.
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


# ---------------------------------------------------------------------------------------------------------- generating


def generate(grammar: Grammar, pick: Callable[[int], int]) -> Story:
    """Generate one text of a grammar; ``pick(n)`` chooses one of n possibilities."""
    writer = Writer(pick)
    writer.run(grammar.start)
    return Story("".join(writer.parts), log2(writer.outcomes))


class Writer(Walk):
    """Chooses by ``pick(n)``, an integer in [0, n), and writes."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        super().__init__()
        self.pick = pick
        self.parts: list[str] = []

    def literal(self, text: str) -> None:
        """Write a literal."""
        self.parts.append(text)

    def choose(self, choice: Choice) -> int:
        """Pick a branch."""
        return self.pick(len(choice.branches))

    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        """Pick a word, unless it is a reference, and write it."""
        word = words[self.pick(len(words)) if draw.pool else 0]
        self.parts.append(word.forms[draw.form])
        return word


# ------------------------------------------------------------------------------------------------------------- parsing


def parse(text: str, rules: Grammar | None = None) -> Verdict:
    """Judge a text: can the grammar write it, does it agree with itself, and how probable is it?

    ``rules`` replaces the grammar of the stories.
    """
    reader = _Reader(text)
    try:
        reader.run((rules or grammar()).start)
        reader.finish()
    except _Break:
        return Verdict(False, reader.consistent, None, reader.offset, reader.message)
    bits = log2(reader.outcomes) if reader.consistent else None
    return Verdict(True, reader.consistent, bits, reader.offset, reader.message)


class _Break(Exception):
    """The text continues as the grammar cannot."""


class _Reader(Walk):
    """Chooses what the text says next, and records the first fault."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text + END
        self.position = 0
        self.consistent = True
        self.offset: int | None = None
        self.message: str | None = None

    def literal(self, text: str) -> None:
        if not self.text.startswith(text, self.position):
            self._break([text])
        self.position += len(text)

    def choose(self, choice: Choice) -> int:
        branch = self._look_up(choice.trie)
        if branch is None:
            self._break(choice.expected)
        return branch

    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        expected = [word.forms[draw.form] for word in words]
        number = self._look_up(draw.legal.trie)
        if number is None or not self.text.startswith(draw.legal.texts[number], self.position):
            self._break(expected)
        found = draw.legal.texts[number]
        if found not in expected:  # legal, but contradicts what was said
            self.consistent = False
            self._record(self.position, expected, found)
        self.position += len(found)
        return draw.legal.words[number]

    def finish(self) -> None:
        """Require that the text ends where the grammar does."""
        if self.text[self.position :] != END:
            self._break([END])

    def _look_up(self, trie: Trie) -> int | None:
        """Return the number that the next characters lead to."""
        below: Trie | None = trie
        position = self.position
        while isinstance(below, dict):
            below = below.get(self.text[position])
            position += 1
        return below

    def _break(self, expected: Iterable[str]) -> NoReturn:
        """Record the character at which the text leaves every continuation that the grammar has, and stop."""
        rest = self.text[self.position :]
        common = [(_common_length(text, rest), text) for text in expected]
        length = max(n for n, _ in common)
        begin = max(rest.rfind(" ", 0, length), rest.rfind("\n", 0, length)) + 1  # show the whole word
        words = [_first_word(text[begin:]) for n, text in common if n == length]
        self._record(self.position + length, words, _first_word(rest[begin:]))
        raise _Break

    def _record(self, offset: int, expected: Sequence[str], found: str) -> None:
        if self.offset is None:  # the first fault
            self.offset = offset
            self.message = f"expected {_listed(expected)}, found {_quoted(found)}"


def _common_length(a: str, b: str) -> int:
    """Count the characters that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _first_word(text: str) -> str:
    return text.split(END)[0][: len(text) - len(text.lstrip()) + len((text.split() or [""])[0])]


def _quoted(word: str) -> str:
    return json.dumps(word) if word else "the end of the text"


def _listed(words: Sequence[str]) -> str:
    """``"a"``, ``"a" or "b"``, ``"a", "b" or 7 others``."""
    names = [_quoted(word) for word in sorted(set(words))]
    if len(names) > _MAX_SHOWN:
        names[_MAX_SHOWN - 1 :] = [f"{len(names) - _MAX_SHOWN + 1} others"]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
