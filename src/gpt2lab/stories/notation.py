"""The language in which plots are written, compiled to the graph of `stories_grammar.py`.

    {hero:girl} had {colour.a:colour} {thing:toy}.       draw a word of a pool, remember it under a name
    One (day|morning), the {thing} was gone.             choose; refer to what was drawn
    | "Where is my {colour} {thing}?" cried {hero}.      another way to say the line above
    |                                                    or nothing at all
    <search>                                             the lines of another rule

``{slot.form}`` takes another form of the word (``{hero.his}``, ``{colour.a}``), ``{:pool}`` draws without remembering,
``{slot:one/other}`` draws among the words of the slots named. Words drawn from one pool under names are all different.
Lines are joined by spaces; an empty line starts a paragraph. A backslash at a line's end continues it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gpt2lab.stories.grammar import Choice, Draw, Literal, Node, Refer, Vocabulary, Word


@dataclass(frozen=True)
class _Slot:
    """``{slot.form:pool}``; a reference where no pool is named."""

    slot: str
    form: str
    pool: str


_Part: TypeAlias = "str | _Slot | list[list[_Part]]"  # a list stands for alternatives, each a list of parts
_SLOT = re.compile(r"\{(\w*)(?:\.(\w+))?(?::([\w/]+))?\}")
_TOKEN = re.compile(_SLOT.pattern + r"|<(?P<rule>\w+)>|(?P<mark>[(|)])|(?P<text>[^{}<>(|)]+)")


class Grammar:
    """Rules and pools of words by name; ``start`` is the first node of the graph of everything they can write."""

    def __init__(self, rules: Mapping[str, str], pools: Mapping[str, Sequence[Word]], first: str = "story") -> None:
        self._rules, self._pools = rules, pools
        self._vocabularies: dict[tuple[Sequence[str], str], Vocabulary] = {}
        self._drawn_from: dict[str, list[str]] = {}  # slot -> the names of the pools that fill it anywhere
        for slot, _, pool in _SLOT.findall("\n".join(rules.values())):
            if pool:
                self._drawn_from.setdefault(slot, []).append(pool)
        self.start = self._link(self._rule(first), None)

    # Text to parts

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
        """Read up to the closing bracket or the end."""
        found: list[list[_Part]] = [[]]
        for token in tokens:
            if token["rule"]:
                found[-1] += self._rule(token["rule"])
            elif token["mark"] == "(":
                found[-1].append(self._alternatives(tokens))
            elif token["mark"] == ")":
                break
            elif token["mark"] == "|":
                found.append([])
            else:
                found[-1].append(token["text"] or _Slot(token[1] or "", token[2] or "", token[3] or ""))
        return found

    # Parts to nodes

    def _link(self, parts: list[_Part], after: Node) -> Node:
        for part in reversed(parts):
            after = self._node(part, after)
        return after

    def _node(self, part: _Part, after: Node) -> Node:
        if isinstance(part, list):
            ways = [self._link(alternative, after) for alternative in part]
            return ways[0] if len(ways) == 1 else Choice(ways)
        if isinstance(part, _Slot):
            return self._slot_node(part, after)
        if not part:
            return after
        return Literal(part + after.text, after.after) if isinstance(after, Literal) else Literal(part, after)

    def _slot_node(self, part: _Slot, after: Node) -> Node:
        legal = self._vocabulary(self._drawn_from[part.slot] if part.slot else (part.pool,), part.form)
        if not part.pool:
            return Refer(part.slot, part.form, legal, after)
        among = part.pool.split("/") if "/" in part.pool else ()
        return Draw(part.slot, part.form, part.pool, among, self._vocabulary((part.pool,), part.form), legal, after)

    def _vocabulary(self, pools: Sequence[str], form: str) -> Vocabulary:
        key = (tuple(pools), form)
        if key not in self._vocabularies:
            words = dict.fromkeys(word for pool in pools for word in self._words(pool))
            self._vocabularies[key] = Vocabulary(tuple(words), form)
        return self._vocabularies[key]

    def _words(self, pool: str) -> Iterator[Word]:
        """The words of a pool; those of ``one/other`` are all that may stand in the slots named."""
        if "/" not in pool:
            yield from self._pools[pool]
            return
        for slot in pool.split("/"):
            for name in self._drawn_from[slot]:
                yield from self._words(name)
