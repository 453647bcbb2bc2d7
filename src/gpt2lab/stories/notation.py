"""The language of the plots and the words (`plots.toml`, `lexicon.toml`), compiled to the graph of `grammar.py`.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gpt2lab.stories.grammar import Choice, Draw, Literal, Node, SurfaceForms, Word

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
