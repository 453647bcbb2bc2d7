"""A grammar whose every text has one derivation, so that its exact probability is known: write it, or read it back.

A story is a walk through a graph without cycles. Where n ways lead on, the walk takes each with probability 1/n, so

    P(story) = 1 / (n_1 n_2 ... n_k),        -log2 P(story) = log2(n_1 n_2 ... n_k) bits,

whose mean over stories is their entropy: no model can do better (Shannon 1948). The same walk has two interpreters
(`stories.py`): the writer draws at each place, the reader takes the way whose text comes next. That it can is the
grammar's one law, checked place by place: *no way's text is a prefix of another's*, as in a prefix code (Kraft 1949).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

END = "\0"  # stands for the end of the story where texts are compared
_DEEPEST_LOOK = 4  # literals to look ahead before a choice counts as ambiguous


class AmbiguityError(Exception):
    """Two ways on can begin with the same text: the grammar is at fault, not its user."""


# ------------------------------------------------------------------------------------------------ telling texts apart

Trie: TypeAlias = "dict[str, Trie] | int"


def build_trie(texts: Sequence[tuple[str, int]], depth: int = 0) -> Trie:
    """Index numbered texts by their characters, from ``depth`` on and as deep as it takes to know the number.

    Raises :class:`AmbiguityError` where a text is a prefix of one with another number.
    """
    first = texts[0][1]
    if all(number == first for _, number in texts):
        return first
    below: dict[str, list[tuple[str, int]]] = {}
    for text, number in texts:
        if len(text) == depth:
            raise AmbiguityError(f"two ways on begin with {text!r}")
        below.setdefault(text[depth], []).append((text, number))
    return {char: build_trie(part, depth + 1) for char, part in below.items()}


@dataclass(frozen=True, eq=False, slots=True)
class Word:
    """A word of a pool, with its forms by name; the plain one is ``""``."""

    forms: Mapping[str, str]


class Vocabulary:
    """Words in one form: ``texts`` in order, each once ("he" for all boys), and their trie."""

    def __init__(self, words: Sequence[Word], form: str) -> None:
        self.words = words
        self.texts = tuple(dict.fromkeys(word.forms[form] for word in words))

    @cached_property
    def trie(self) -> Trie:
        """Number the text that comes next."""
        return build_trie([(text, number) for number, text in enumerate(self.texts)])


# ---------------------------------------------------------------------------------------------------------- the graph
# No repr: it would spell out the whole graph behind a node.


@dataclass(frozen=True, eq=False, repr=False)
class Literal:
    """Text that stands in every story that comes by."""

    text: str
    after: Node


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """One of n ways on, each with probability 1/n."""

    ways: Sequence[Node]

    @cached_property
    def _looked(self) -> tuple[int, Trie]:
        depth = 1
        while True:
            try:
                return depth, build_trie([(lead, i) for i, way in enumerate(self.ways) for lead in leads(way, depth)])
            except AmbiguityError:
                if depth == _DEEPEST_LOOK:
                    raise
            depth += 1

    @property
    def trie(self) -> Trie:
        """Number the way whose text comes next, with the least look-ahead that can tell."""
        return self._looked[1]

    @property
    def expected(self) -> Iterator[str]:
        """All that may come next, as far as the trie looks ahead."""
        return leads(self, self._looked[0])


@dataclass(frozen=True, eq=False, repr=False)
class Refer:
    """What a slot holds, in one of its forms; ``legal`` is all that may stand in the slot."""

    slot: str
    form: str
    legal: Vocabulary
    after: Node


@dataclass(frozen=True, eq=False, repr=False)
class Draw:
    """A word of a pool for a slot: each that no slot took from the pool before has the same probability.

    The pool ``among`` slots is what they hold. A draw for the slot ``""`` is remembered nowhere.
    """

    slot: str
    form: str
    pool: str
    among: Sequence[str]
    words: Vocabulary
    legal: Vocabulary
    after: Node


Node: TypeAlias = "Literal | Choice | Refer | Draw | None"  # None: the story ends


def leads(node: Node, depth: int) -> Iterator[str]:
    """Yield every text with which a story can go on at ``node``, up to the end of its ``depth``-th literal."""
    match node:
        case None:
            yield END
        case Literal():
            yield from (node.text + lead for lead in (leads(node.after, depth - 1) if depth > 1 else ("",)))
        case Choice():
            for way in node.ways:
                yield from leads(way, depth)
        case Refer():
            yield from (text + lead for text in node.legal.texts for lead in leads(node.after, depth))
        case Draw():
            yield from (text + lead for text in node.words.texts for lead in leads(node.after, depth))


# ----------------------------------------------------------------------------------------------------------- the walk


class Walk(ABC):
    """One way through the graph. An interpreter decides where there is a choice, and keeps what it wants to keep."""

    def __init__(self) -> None:
        self.slots: dict[str, Word] = {}
        self.taken: dict[str, list[Word]] = {}  # by pool
        self.outcomes = 1  # 1 / probability, an exact integer: all interpreters agree to the last bit

    def run(self, node: Node) -> None:
        """Walk from ``node`` to the end."""
        while node is not None:
            if isinstance(node, Literal):
                self.say(node.text)
            elif isinstance(node, Refer):
                self.refer(node, self.slots[node.slot])
            elif isinstance(node, Draw):
                self._draw(node)
            else:
                self.outcomes *= len(node.ways)
                node = node.ways[self.choose(node)]
                continue
            node = node.after

    def _draw(self, node: Draw) -> None:
        words = [self.slots[slot] for slot in node.among] or node.words.words
        taken = self.taken.setdefault(node.pool, []) if node.slot else []
        if taken:
            words = [word for word in words if word not in taken]
        self.outcomes *= len(words)
        word = self.draw(node, words)
        taken.append(word)
        if node.slot:
            self.slots[node.slot] = word

    @abstractmethod
    def say(self, text: str) -> None:
        """Pass a literal."""

    @abstractmethod
    def choose(self, choice: Choice) -> int:
        """Decide for a way; return its number."""

    @abstractmethod
    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        """Decide for one of ``words``."""

    @abstractmethod
    def refer(self, refer: Refer, word: Word) -> None:
        """Pass ``word``, which was drawn before."""
