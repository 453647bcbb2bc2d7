"""A grammar whose every text has one derivation, so that its exact probability is known: write it, or read it back.

A story is a walk through a graph without cycles. At a node with n branches the walk takes each with probability 1/n, so

    P(story) = 1 / (n_1 n_2 ... n_k),        -log2 P(story) = log2(n_1 n_2 ... n_k) bits,

which is the story's share of the corpus' entropy: no model can do better on average (Shannon 1948, theorem 9). The same
walk has two interpreters (`stories.py`): the writer draws at each branch, the reader takes the branch whose text comes
next. That it can is the grammar's one law: *no branch's text is a prefix of another's*, checked at each node, as for a
prefix code (Kraft 1949).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

END = "\0"  # stands for the end of the text where the next characters are compared
_DEEPEST_LOOK = 4  # literals to look ahead before a choice counts as ambiguous


class AmbiguityError(Exception):
    """Two branches of a choice can begin with the same text: the grammar is at fault, not its user."""


@dataclass(frozen=True, eq=False, slots=True)
class Word:
    """A word of a pool with its forms by name; the plain one is ``""``."""

    forms: Mapping[str, str]


# ---------------------------------------------------------------------------------------------------------------------
# Telling branches apart


Trie: TypeAlias = "dict[str, Trie] | int"


def build_trie(leads: Sequence[tuple[str, int]], depth: int = 0) -> Trie:
    """Index texts, each labelled with its branch, by their characters, as deep as it takes to tell the branches apart.

    Raises :class:`AmbiguityError` where the text of one branch is a prefix of another branch's.
    """
    first = leads[0][1]
    if all(branch == first for _, branch in leads):
        return first
    below: dict[str, list[tuple[str, int]]] = {}
    for text, branch in leads:
        if len(text) == depth:
            raise AmbiguityError(f"two branches begin with {text!r}")
        below.setdefault(text[depth], []).append((text, branch))
    return {char: build_trie(part, depth + 1) for char, part in below.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The graph


class Node(ABC):
    """A place of the walk; None stands for the end of the story."""

    @abstractmethod
    def follow(self, walk: Walk) -> Node | None:
        """Act, and return the next place."""

    @abstractmethod
    def successors(self) -> Sequence[Node | None]:
        """The places that may come next."""

    @abstractmethod
    def leads(self, depth: int) -> Iterator[str]:
        """Every text with which a story can go on from here, up to the end of its ``depth``-th literal."""


def leads_of(node: Node | None, depth: int) -> Iterator[str]:
    """:meth:`Node.leads`, also past the end of the story."""
    if node is None:
        yield END
    elif depth == 0:
        yield ""
    else:
        yield from node.leads(depth)


class Literal(Node):
    """Text that stands in every story that comes by."""

    def __init__(self, text: str, after: Node | None) -> None:
        self.text, self.after = text, after

    def follow(self, walk: Walk) -> Node | None:
        walk.say(self.text)
        return self.after

    def successors(self) -> Sequence[Node | None]:
        return (self.after,)

    def leads(self, depth: int) -> Iterator[str]:
        return (self.text + lead for lead in leads_of(self.after, depth - 1))


class Choice(Node):
    """One of n branches, each with probability 1/n; None is the end of the story."""

    def __init__(self, branches: Sequence[Node | None]) -> None:
        self.branches = branches

    def follow(self, walk: Walk) -> Node | None:
        walk.outcomes *= len(self.branches)
        return self.branches[walk.choose(self)]

    def successors(self) -> Sequence[Node | None]:
        return self.branches

    def leads(self, depth: int) -> Iterator[str]:
        for branch in self.branches:
            yield from leads_of(branch, depth)

    def labelled_leads(self, depth: int) -> list[tuple[str, int]]:
        """:meth:`leads`, each with its branch's number."""
        return [(lead, i) for i, branch in enumerate(self.branches) for lead in leads_of(branch, depth)]

    @cached_property
    def trie(self) -> Trie:
        """Tell the branch from the characters that come next, with the least look-ahead that suffices."""
        depth = 1
        while True:
            try:
                return build_trie(self.labelled_leads(depth))
            except AmbiguityError:
                if depth == _DEEPEST_LOOK:
                    raise
            depth += 1


class Vocabulary:
    """The words that may stand in a slot, in one form, found by the characters that come next."""

    def __init__(self, words: Sequence[Word], form: str) -> None:
        self.words = words
        self.texts = tuple(dict.fromkeys(word.forms[form] for word in words))  # in order, each once: "he" for all boys

    @cached_property
    def trie(self) -> Trie:
        return build_trie([(text, i) for i, text in enumerate(self.texts)])


class Refer(Node):
    """A word that was drawn before, in one of its forms."""

    def __init__(self, slot: str, form: str, legal: Vocabulary, after: Node | None) -> None:
        self.slot, self.form, self.legal, self.after = slot, form, legal, after

    def follow(self, walk: Walk) -> Node | None:
        walk.refer(self, walk.bound[self.slot])
        return self.after

    def successors(self) -> Sequence[Node | None]:
        return (self.after,)

    def leads(self, depth: int) -> Iterator[str]:
        return (text + lead for text in self.legal.texts for lead in leads_of(self.after, depth))


class Draw(Node):
    """A word of a pool, each with the same probability, that no earlier named draw from this pool has taken.

    ``pool`` is its name, ``drawn`` what it holds, ``legal`` what may stand in this slot wherever it is drawn.
    """

    def __init__(
        self, slot: str, form: str, pool: str, drawn: Vocabulary, legal: Vocabulary, after: Node | None
    ) -> None:
        self.slot, self.form, self.pool, self.drawn, self.legal, self.after = slot, form, pool, drawn, legal, after
        self.among = pool.split("/") if "/" in pool else ()

    def follow(self, walk: Walk) -> Node | None:
        words = [walk.bound[slot] for slot in self.among] if self.among else self.drawn.words
        if self.slot and (taken := walk.taken.setdefault(self.pool, [])):
            words = [word for word in words if word not in taken]
        walk.outcomes *= len(words)
        word = walk.draw(self, words)
        if self.slot:
            walk.bound[self.slot] = word
            walk.taken[self.pool].append(word)
        return self.after

    def successors(self) -> Sequence[Node | None]:
        return (self.after,)

    def leads(self, depth: int) -> Iterator[str]:
        return (text + lead for text in self.drawn.texts for lead in leads_of(self.after, depth))


# ---------------------------------------------------------------------------------------------------------------------
# The walk


class Walk(ABC):
    """One way through the graph: the words bound to slots, those taken from each pool, and 1 / probability so far."""

    def __init__(self) -> None:
        self.bound: dict[str, Word] = {}
        self.taken: dict[str, list[Word]] = {}
        self.outcomes = 1  # an exact integer, so that writer and reader agree to the last bit

    def run(self, node: Node | None) -> None:
        """Follow the nodes to the end."""
        while node is not None:
            node = node.follow(self)

    @abstractmethod
    def say(self, text: str) -> None:
        """Pass a literal."""

    @abstractmethod
    def choose(self, choice: Choice) -> int:
        """Decide for a branch; return its number."""

    @abstractmethod
    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        """Decide for one of ``words``."""

    @abstractmethod
    def refer(self, refer: Refer, word: Word) -> None:
        """Pass a word that was drawn before."""
