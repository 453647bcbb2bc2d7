r"""Splitting text into words, the units that byte-pair encoding never merges across.

GPT-2 (Radford et al. 2019, section 2.2) splits by category of character before it merges, so that the vocabulary is not
filled with "dog." and "dog!" beside "dog". A word is a contraction, or letters, digits or other marks with at most one
space before them, or white space of which the last space is left to the word that follows::

    "Hello,  it's 1999"  ->  "Hello"  ","  " "  " it"  "'s"  " 1999"

GPT-4's pattern (``cl100k``) moreover takes digits by threes, ends marks with their newlines, and lets any one mark,
not only a space, lead a word.

The published pattern is what counts. Beside it stands a form that gives the same words faster: possessive repeats
(``++``) never backtrack. tiktoken's core runs that form, and training runs it on Python's own ``re``, twice as fast as
``regex``, with the Unicode categories written out as ranges.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

import regex
import tiktoken

from gpt2lab.errors import InputError, one_of


@dataclass(frozen=True)
class Pattern:
    """A splitting pattern.

    Attributes:
        name: ``gpt2``, ``cl100k``, or the expression itself where it is the user's own.
        published: the expression that defines the words, in the syntax of ``regex``.
        fast: an expression that finds the same words faster, and leaves nothing between its matches.
        cut: where a text may be cut in two that split separately into the same words (matches the place, of no width);
            ``None`` where that is not known, as for the user's own patterns.
    """

    name: str
    published: str
    fast: str
    cut: str | None

    def split(self, text: str) -> list[str]:
        """Return the words of ``text``, in order; they join to ``text``: what lies between matches is a word too."""
        words: list[str] = []
        end = 0
        for match in _compiled(self.published).finditer(text):
            words += [text[end : match.start()], match.group()] if match.start() > end else [match.group()]
            end = match.end()
        return [*words, text[end:]] if end < len(text) else words

    def pieces(self, text: str, size: int) -> Iterator[str]:
        """Cut ``text`` into pieces that split into the same words, each cut at the first place after ``size``."""
        start = 0
        while self.cut is not None and len(text) - start > size:
            place = _compiled(self.cut).search(text, start + size)
            if place is None:
                break
            yield text[start : place.start()]
            start = place.start()
        yield text[start:]

    def last_cut(self, text: str, end: int) -> int | None:
        """Return the last place at or before ``end`` where ``text`` may be cut; ``None`` where there is none."""
        if self.cut is None:
            return None
        place = _compiled(f"(?r){self.cut}").search(text, 0, max(end, 0))
        return place.start() if place else None


GPT2 = Pattern(
    name="gpt2",
    published=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    fast=r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}]++| ?[\p{N}]++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
    cut=r"(?<=\S)(?=\s)",  # no word goes on from another character to white space
)
CL100K = Pattern(
    name="cl100k",
    published=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    fast=(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+[\p{L}]++|[\p{N}]{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    cut=r"(?<=\S)(?=[ \t])",  # but marks here take the newlines that follow
)
PATTERNS = {pattern.name: pattern for pattern in (GPT2, CL100K)}

_SHORT = 1000  # characters

# An expression of one's own is tried on this: some of every kind of character, and the runs that go wrong.
_PROBE = "It's 1999,  naïve  a_b\t\n\n\r\n x=-1.5e3;\x00\u00a0\u4f60\u597d\U0001f600  'll\u0301 \u200d. "


def find_pattern(pattern: str) -> Pattern:
    """Return the named pattern (``gpt2``, ``cl100k``), or one made of the user's own regular expression.

    What an expression leaves between its matches is a word too, so that no text is lost.

    Raises:
        InputError: an unknown name, or an expression that does not compile, that matches the empty text, or that means
            something else to tiktoken.
    """
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    for known in PATTERNS.values():
        if pattern in (known.published, known.fast):
            return known
    if re.fullmatch(r"\w*", pattern):
        one_of("splitting pattern", pattern, PATTERNS)
    return _own_pattern(pattern)


@functools.cache
def _own_pattern(expression: str) -> Pattern:
    try:
        if regex.compile(expression).groups:
            raise InputError(f"the splitting pattern {expression!r} has a capturing group; write (?:...) for (...)")
    except regex.error as error:
        raise InputError(f"the splitting pattern {expression!r} is no regular expression: {error}") from None
    pattern = Pattern(expression, expression, rf"(?:{expression})|(?:(?!{expression})[\s\S])++", cut=None)
    if "" in pattern.split(_PROBE):
        raise InputError(
            f"the splitting pattern {expression!r} matches the empty text; each match must take a character"
        )
    _check_core(pattern)
    return pattern


def _check_core(pattern: Pattern) -> None:
    """Raise InputError unless tiktoken's core, whose engine knows another dialect, finds the same words."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = pattern.split(_PROBE)
    for word in words:
        ranks.setdefault(word.encode("utf-8"), len(ranks))
    try:
        core = tiktoken.Encoding("probe", pat_str=pattern.fast, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the splitting pattern {pattern.name!r} cannot be read by tiktoken: {reason}") from None
    if core.encode_ordinary(_PROBE) != [ranks[word.encode("utf-8")] for word in words]:
        raise InputError(
            f"the splitting pattern {pattern.name!r} means something else to tiktoken; use what all dialects share"
        )


def special_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the texts of special tokens, the longest of those that begin at one place."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def well_formed(text: str) -> str:
    """Return ``text`` as UTF-8 can hold it: two surrogates that form a pair become their character, a lone one U+FFFD.

    Half of a pair is no character and has no bytes, so it cannot come back when decoded; all other text does, exactly.
    This is also tiktoken's rule.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def split_fast(pattern: Pattern, text: str) -> list[str]:
    """Return the words of ``text``, the same as ``pattern.split``, sooner; the text must be well formed."""
    if pattern.name not in PATTERNS:
        return _compiled(pattern.fast).findall(text)
    if text.isascii() or not _beyond_bmp().search(text):
        return _compiled_for_re(pattern.fast).findall(text)
    words: list[str] = []
    for piece in pattern.pieces(text, _SHORT):  # few pieces will hold such characters
        compiled = _compiled(pattern.fast) if _beyond_bmp().search(piece) else _compiled_for_re(pattern.fast)
        words += compiled.findall(piece)
    return words


@functools.cache
def _compiled(expression: str) -> regex.Pattern[str]:
    return regex.compile(expression)


@functools.cache
def _beyond_bmp() -> re.Pattern[str]:
    return re.compile("[\U00010000-\U0010ffff]")


@functools.cache
def _compiled_for_re(expression: str) -> re.Pattern[str]:
    r"""Compile for ``re``, which knows no \p{L} and takes \s and \S otherwise; holds for the BMP only."""
    space, letters, digits = (_bmp_ranges(category) for category in (r"\s", r"\p{L}", r"\p{N}"))
    expression = re.sub(r"\[[^]]*\]", lambda one: one[0].replace(r"\s", space), expression)  # within a class
    expression = expression.replace(r"\p{L}", letters).replace(r"\p{N}", digits)
    return re.compile(expression.replace(r"\s", f"[{space}]").replace(r"\S", f"[^{space}]"))


def _bmp_ranges(category: str) -> str:
    """Return the characters of a category in the Basic Multilingual Plane as ranges for a character class."""
    characters = "".join(map(chr, range(0x10000)))
    spans = (match.span() for match in regex.finditer(f"{category}+", characters))
    return "".join(f"\\u{start:04x}-\\u{end - 1:04x}" for start, end in spans)


_CHARACTERS = 1 << 16


def cut_stream(source: TextIO | Iterable[str], pattern: Pattern, special_tokens: Collection[str] = ()) -> Iterator[str]:
    """Yield pieces that encode to the same ids as the whole text of ``source`` does.

    Memory is that of one piece, unless there is no place to cut: in one endless word, or with a pattern of the user's
    own, of which no such place is known.

    Args:
        source: An open text file, or strings that are parts of one text.
        pattern: How the text will be split.
        special_tokens: Those that will be made of their texts, which are not cut either.
    """
    waiting = ""
    enough = _CHARACTERS
    for part in _read(source):
        waiting += part
        if len(waiting) < enough:
            continue
        place = _last_cut(waiting, pattern, special_tokens)
        if place is None:
            enough = 2 * len(waiting)  # search anew when there is twice as much: no more work than reading it twice
            continue
        yield waiting[:place]
        waiting, enough = waiting[place:], _CHARACTERS
    yield waiting


def _last_cut(text: str, pattern: Pattern, special_tokens: Collection[str]) -> int | None:
    """Return a late place to cut the text that has been read; ``None`` where there is none."""
    if not special_tokens:
        return pattern.last_cut(text, len(text))
    place = pattern.last_cut(text, len(text) - max(map(len, special_tokens)))  # one may begin at the end
    if place is not None:
        for match in special_pattern(special_tokens).finditer(text):
            if match.start() < place < match.end():
                return match.start() or match.end()
    return place


def _read(source: TextIO | Iterable[str]) -> Iterable[str]:
    """Return a file in parts of some size, for its lines may be endless; strings as they are."""
    return iter(lambda: source.read(_CHARACTERS), "") if isinstance(source, io.TextIOBase) else source
