"""A probabilistic grammar in which every text has exactly one derivation, so that its exact probability is known.

A story is a random walk through an acyclic graph. At a node with n branches the walk takes each with probability 1/n:

    P(story) = 1 / (n_1 n_2 ... n_k),        -log2 P(story) = log2(n_1 n_2 ... n_k) bits.

The mean of this over stories is their entropy, and no model can have a lower loss (Shannon 1948). The same walk has two
interpreters (`corpus.py`): the writer chooses at random at each node, the reader takes the branch whose text comes next
and so recovers the product n_1 n_2 ... n_k from a text. That it can is the one law of the grammar, checked at each
node: *no branch's text is a prefix of another's*, as in a prefix code (Kraft 1949).

The plots and the words (`plots.toml`, `lexicon.toml`) are written in a language that is compiled to the graph:

    {hero:girl} had {color.a:color} {thing:toy}.       draw a word of a pool and remember it under a name
    One (day|morning), the {thing} was gone.           choose; refer to what was drawn
    | "Where is my {color} {thing}?" cried {hero}.     another way to say the line above
    |                                                  or nothing at all
    <search>                                           the lines of another rule

``{slot.form}`` takes another form of the word (``{hero.his}``, ``{color.a}``), ``{:pool}`` draws without remembering,
``{slot:one/other}`` draws among the words that the named slots hold. Words drawn from one pool under names are all
different. Lines are joined by spaces; an empty line starts a paragraph.

The words of a pool are separated by commas. Their notation, the second part of its key, says which forms they have::

    word       apple, dog: said barked           a, A (with the article), s (the plural), and one of its own
    she, he    Lily/Lil                          short, and pronouns: he, him, his, He, His
    phrase     the river                         A (at the start of a sentence)
    deed       fly/flew/flying kites             did, doing
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

END = "\0"  # stands for the end of the story where texts are compared
_MAX_LOOKAHEAD = 4  # literals after which a choice counts as ambiguous


class AmbiguityError(Exception):
    """Two branches can begin with the same text: the grammar is at fault, not its user."""


# ------------------------------------------------------------------------------------------------ telling texts apart

Trie: TypeAlias = "dict[str, Trie] | int"


def build_trie(texts: Sequence[tuple[str, int]], depth: int = 0) -> Trie:
    """Index numbered texts by their characters, from ``depth`` on and as deep as needed to know the number.

    Raises:
        AmbiguityError: A text is a prefix of one with another number.
    """
    first = texts[0][1]
    if all(number == first for _, number in texts):
        return first
    below: dict[str, list[tuple[str, int]]] = {}
    for text, number in texts:
        if len(text) == depth:
            raise AmbiguityError(f"two branches begin with {text!r}")
        below.setdefault(text[depth], []).append((text, number))
    return {char: build_trie(part, depth + 1) for char, part in below.items()}


@dataclass(frozen=True, eq=False, slots=True)
class Word:
    """A word of a pool, with its forms by name; the plain form is ``""``."""

    forms: Mapping[str, str]


class SurfaceForms:
    """Words in one form: their distinct ``texts`` in order ("he" once for all boys), and the trie of these."""

    def __init__(self, words: Sequence[Word], form: str) -> None:
        self.words = words
        self.texts = tuple(dict.fromkeys(word.forms[form] for word in words))

    @cached_property
    def trie(self) -> Trie:
        """Gives the number of the text that comes next."""
        return build_trie([(text, number) for number, text in enumerate(self.texts)])


# ---------------------------------------------------------------------------------------------------------- the graph
# No repr: it would spell out the whole graph below a node.


@dataclass(frozen=True, eq=False, repr=False)
class Literal:
    """Text that every story on this walk contains."""

    text: str
    after: Node


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """One of n branches, each with probability 1/n."""

    branches: Sequence[Node]

    @cached_property
    def _lookahead(self) -> tuple[int, Trie]:
        """The smallest look-ahead that can tell the branches apart, and the trie of what it sees."""
        depth = 1
        while True:
            seen = [(text, i) for i, branch in enumerate(self.branches) for text in continuations(branch, depth)]
            try:
                return depth, build_trie(seen)
            except AmbiguityError:
                if depth == _MAX_LOOKAHEAD:
                    raise
            depth += 1

    @property
    def trie(self) -> Trie:
        """Gives the number of the branch whose text comes next."""
        return self._lookahead[1]

    @property
    def expected(self) -> Iterator[str]:
        """Everything that may come next, as far as the trie looks ahead."""
        return continuations(self, self._lookahead[0])


@dataclass(frozen=True, eq=False, repr=False)
class Draw:
    """A word of a pool for a slot, uniform over those that no other slot has taken from the pool.

    The pool ``among`` slots is what they hold. A draw for the slot ``""`` is not remembered. A draw from no pool is a
    reference: the word that the slot holds, in one of its forms. ``legal`` are all words that the slot may hold.
    """

    slot: str
    form: str
    pool: str
    among: Sequence[str]
    words: SurfaceForms
    legal: SurfaceForms
    after: Node


Node: TypeAlias = "Literal | Choice | Draw | None"  # None: the story ends


def continuations(node: Node, depth: int) -> Iterator[str]:
    """Yield every text with which a story can continue at ``node``, up to the end of its ``depth``-th literal."""
    match node:
        case None:
            yield END
        case Literal():
            yield from (node.text + rest for rest in (continuations(node.after, depth - 1) if depth > 1 else ("",)))
        case Choice():
            for branch in node.branches:
                yield from continuations(branch, depth)
        case Draw():
            yield from (text + rest for text in node.words.texts for rest in continuations(node.after, depth))


# ----------------------------------------------------------------------------------------------------------- the walk


class Walk(ABC):
    """One walk through the graph. An interpreter decides where there is a choice, and keeps what it wants."""

    def __init__(self) -> None:
        self.slots: dict[str, Word] = {}
        self.taken: dict[str, list[Word]] = {}  # by pool
        self.outcomes = 1  # 1 / probability, an exact integer: all interpreters agree to the last bit

    def run(self, node: Node) -> None:
        """Walk from ``node`` to the end."""
        while node is not None:
            if isinstance(node, Choice):
                self.outcomes *= len(node.branches)
                node = node.branches[self.choose(node)]
                continue
            if isinstance(node, Literal):
                self.literal(node.text)
            else:
                self._draw(node)
            node = node.after

    def _draw(self, node: Draw) -> None:
        if not node.pool:
            self.draw(node, [self.slots[node.slot]])
            return
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
    def literal(self, text: str) -> None:
        """Pass a literal."""

    @abstractmethod
    def choose(self, choice: Choice) -> int:
        """Choose a branch; return its number."""

    @abstractmethod
    def draw(self, draw: Draw, words: Sequence[Word]) -> Word:
        """Choose one of ``words``, the only one of a reference."""


# ------------------------------------------------------------------------------------------------------- the notation

_PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her"},
    "he": {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His"},
}


def read_pool(pool: Mapping[str, str]) -> tuple[Word, ...]:
    """Return the words of a pool of `lexicon.toml`: lists of words by their notation."""
    return tuple(Word(_forms(item.strip(), notation)) for notation, items in pool.items() for item in items.split(","))


def _forms(item: str, notation: str) -> dict[str, str]:
    match notation:
        case "she" | "he":
            name, _, short = item.partition("/")
            return {"": name, "short": short or name, **_PRONOUNS[notation]}
        case "phrase":
            return {"": item, "A": item[0].upper() + item[1:]}
        case "deed":
            verb, rest = item.split(" ", 1)
            return {form: f"{verb} {rest}" for form, verb in zip(("", "did", "doing"), verb.split("/"), strict=True)}
        case _:
            word, *own = re.split(r": (\w+) ", item)
            a = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
            forms = {"": word, "a": a, "A": a.capitalize(), "s": word + ("es" if word.endswith("ch") else "s")}
            return forms | dict([own] if own else [])


@dataclass(frozen=True)
class _Slot:
    """``{slot.form:pool}``; without a pool, a reference."""

    slot: str
    form: str
    pool: str


_Part: TypeAlias = "str | _Slot | list[list[_Part]]"  # a list stands for alternatives, each a list of parts
_SLOT = re.compile(r"\{(\w*)(?:\.(\w+))?(?::([\w/]+))?\}")
_TOKEN = re.compile(_SLOT.pattern + r"|<(?P<rule>\w+)>|(?P<mark>[(|)])|(?P<text>[^{}<>(|)]+)")


class Grammar:
    """Rules and pools of words, by name; ``start`` is the first node of the graph of all their texts."""

    def __init__(self, rules: Mapping[str, str], pools: Mapping[str, Sequence[Word]], first: str = "story") -> None:
        self._rules, self._pools = rules, pools
        self._surface_forms: dict[tuple[Sequence[str], str], SurfaceForms] = {}
        self._drawn_from: dict[str, list[str]] = {}  # slot -> the names of the pools that fill it anywhere
        for slot, _, pool in _SLOT.findall("\n".join(rules.values())):
            if pool:
                self._drawn_from.setdefault(slot, []).append(pool)
        self.start = self._link(self._rule(first), None)

    def _rule(self, name: str) -> list[_Part]:
        parts: list[_Part] = []
        separator = joint = ""
        for line in self._rules[name].strip().splitlines():
            line = line.strip()
            if not line:
                separator = "\n"
                continue
            if line.startswith("|"):
                step = parts[-1]
                assert isinstance(step, list)
                step.append(self._line(line[1:].strip(), joint))
            else:
                joint = separator
                parts.append([self._line(line, joint)])
                separator = " "
        return parts

    def _line(self, line: str, separator: str) -> list[_Part]:
        tokens = _TOKEN.finditer(re.sub(" +", " ", line))
        return [separator, *self._alternatives(tokens)[0]] if line else []

    def _alternatives(self, tokens: Iterator[re.Match[str]]) -> list[list[_Part]]:
        """Parse up to the closing parenthesis or the end."""
        alternatives: list[list[_Part]] = [[]]
        for token in tokens:
            if token["rule"]:
                alternatives[-1] += self._rule(token["rule"])
            elif token["mark"] == "(":
                alternatives[-1].append(self._alternatives(tokens))
            elif token["mark"] == ")":
                break
            elif token["mark"] == "|":
                alternatives.append([])
            else:
                alternatives[-1].append(token["text"] or _Slot(token[1] or "", token[2] or "", token[3] or ""))
        return alternatives

    def _link(self, parts: list[_Part], after: Node) -> Node:
        for part in reversed(parts):
            after = self._node(part, after)
        return after

    def _node(self, part: _Part, after: Node) -> Node:
        if isinstance(part, list):
            branches = [self._link(alternative, after) for alternative in part]
            return branches[0] if len(branches) == 1 else Choice(branches)
        if isinstance(part, _Slot):
            return self._slot_node(part, after)
        if not part:
            return after
        return Literal(part + after.text, after.after) if isinstance(after, Literal) else Literal(part, after)

    def _slot_node(self, part: _Slot, after: Node) -> Node:
        legal = self._forms(self._drawn_from[part.slot] if part.slot else (part.pool,), part.form)
        words = self._forms((part.pool,), part.form) if part.pool else legal
        among = part.pool.split("/") if "/" in part.pool else ()
        return Draw(part.slot, part.form, part.pool, among, words, legal, after)

    def _forms(self, pools: Sequence[str], form: str) -> SurfaceForms:
        key = (tuple(pools), form)
        if key not in self._surface_forms:
            words = dict.fromkeys(word for pool in pools for word in self._words(pool))
            self._surface_forms[key] = SurfaceForms(tuple(words), form)
        return self._surface_forms[key]

    def _words(self, pool: str) -> Iterator[Word]:
        """Yield the words of a pool; for ``one/other``, all words that the named slots may hold."""
        if "/" not in pool:
            yield from self._pools[pool]
            return
        for slot in pool.split("/"):
            for name in self._drawn_from[slot]:
                yield from self._words(name)
