r"""Splitting text into words, the units that byte-pair encoding never merges across.

GPT-2 (Radford et al. 2019, section 2.2) splits by character category before it merges, so that the vocabulary does not
fill up with "dog." and "dog!" beside "dog". A word is a contraction, or a run of letters, digits or punctuation with at
most one space before it, or white space, whose last space goes to the word that follows::

    "Hello,  it's 1999"  ->  "Hello"  ","  " "  " it"  "'s"  " 1999"

GPT-4's pattern (``cl100k``) also groups digits by threes, attaches newlines to the punctuation before them, and lets
any one punctuation character, not only a space, start a word.

The published pattern is the definition. Beside it stands an equivalent, faster one: possessive quantifiers (``++``)
never backtrack. tiktoken's core runs that form, and training runs it on Python's own ``re``, twice as fast as
``regex``, with the Unicode categories written out as ranges.

Where a pattern has a position that no word reaches across (``Pattern.cut``), a text can be cut: a long one for several
threads, and a stream that does not fit into memory (:func:`cut_stream`)::

    read    "It was the best of ti" | "mes, it was"
    pieces  "It was the best of"  " times, it"  " was"
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
        name: ``gpt2``, ``cl100k``, or the expression itself for a custom pattern.
        published: The expression that defines the words, in the syntax of ``regex``.
        fast: An expression that finds the same words faster and leaves nothing between its matches.
        cut: A zero-width expression that matches where a text may be cut in two that split into the same words
            separately; ``None`` if unknown, as for custom patterns.
    """

    name: str
    published: str
    fast: str
    cut: str | None

    def split(self, text: str) -> list[str]:
        """Return the words of ``text``, in order; they join to ``text``: anything between matches is a word, too."""
        words: list[str] = []
        end = 0
        for match in _compiled(self.published).finditer(text):
            words += [text[end : match.start()], match.group()] if match.start() > end else [match.group()]
            end = match.end()
        return [*words, text[end:]] if end < len(text) else words

    def pieces(self, text: str, size: int) -> Iterator[str]:
        """Cut ``text`` into pieces that split into the same words, each as soon as possible after ``size``."""
        start = 0
        while self.cut is not None and len(text) - start > size:
            found = _compiled(self.cut).search(text, start + size)
            if found is None:
                break
            yield text[start : found.start()]
            start = found.start()
        yield text[start:]

    def last_cut(self, text: str, end: int) -> int | None:
        """Return the last position at or before ``end`` where ``text`` may be cut; ``None`` if there is none."""
        if self.cut is None:
            return None
        found = _compiled(f"(?r){self.cut}").search(text, 0, max(end, 0))
        return found.start() if found else None


GPT2 = Pattern(
    name="gpt2",
    published=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    fast=r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}]++| ?[\p{N}]++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
    cut=r"(?<=\S)(?=\s)",  # no word continues from another character to white space
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
    cut=r"(?<=\S)(?=[ \t])",  # here punctuation takes the newlines that follow
)
PATTERNS = {pattern.name: pattern for pattern in (GPT2, CL100K)}


# ------------------------------------------------------------------------------------------------- custom patterns

# A custom pattern is tried on this text: characters of every kind, and the runs where dialects differ.
_PROBE = "It's 1999,  naïve  a_b\t\n\n\r\n x=-1.5e3;\x00\u00a0\u4f60\u597d\U0001f600  'll\u0301 \u200d. "

_SCRIPTS = "Arabic|Cyrillic|Devanagari|Greek|Han|Hangul|Hebrew|Hiragana|Katakana|Latin|Thai"
_ESCAPE = rf"\\(?:[pP]\{{(?:[CLMNPSZ][a-z]?|{_SCRIPTS})\}}|[dDsSnrt]|[\\.^$*+?{{}}\[\]|()/#&~-])"
_TOKEN = re.compile(
    r"""(?P<class>\[\^?(?:\\.|[^\]\\])*\]) | (?P<escape>\\[pP]\{[^}]*\}|\\.) | (?P<anchor>[$^]) | (?P<close>\))
      | (?P<open>\((?:\?(?:<?[=!]|[:>]|i:)?)?) | (?P<quantifier>(?:[?*+]|\{[^}]*\})[?+]?) | (?P<literal>.)""",
    re.VERBOSE | re.DOTALL,
)
_PORTABLE = {  # what means the same in every engine, and what to write instead of anything else
    "class": (
        rf"\[\^?-?(?!\])(?:{_ESCAPE}|(?!&&|~~|\|\|)[^\]\\\[-](?:-[^\]\\\[-])?)*-?\]",
        "list characters, ranges and escapes in a class, a - first or last, and no class within a class",
    ),
    "escape": (_ESCAPE, r"write [\p{L}\p{N}_] for \w, and a character itself for its code"),
    "anchor": (r"(?!)", r"write (?![\s\S]) for the end of the text, and (?![^\n]) for the end of a line"),
    "open": (r"\(\?(?:<?[=!]|[:>]|i:)", "write (?:...) for a group; names and flags other than (?i:...) are not taken"),
    "quantifier": (r"[?*+][?+]?|\{\d+(?:,\d*)?\}|\{\d+,\d*\}\?", "write (?>X{1,3}) for X{1,3}+ and {0,3} for {,3}"),
    "literal": (r"[^]{}]", "put a backslash before it"),
    "close": (r"\)", ""),
}
_CASE_DIFFERS = re.compile(r"(?i)s[st]|f[fil]|[^\x00-\x7f]|\[\^|\\p|[sf]\{")  # some engines fold "ss" and U+00DF alike


def find_pattern(pattern: str) -> Pattern:
    """Return the named pattern (``gpt2``, ``cl100k``), or one made of a custom regular expression.

    Whatever a custom expression leaves between its matches is a word, too, so that no text is lost. It runs in three
    engines: ``regex`` here, fancy-regex in tiktoken's core, and Oniguruma in ``tokenizers``, which reads what is saved.
    They differ in many details, so only the syntax that means the same in all of them is accepted.

    Raises:
        InputError: The name is unknown, or the expression does not compile, matches the empty text, or means something
            else in another engine.
    """
    for known in PATTERNS.values():
        if pattern in (known.name, known.published, known.fast):
            return known
    if re.fullmatch(r"\w*", pattern):
        one_of("splitting pattern", pattern, PATTERNS)
    return _custom_pattern(pattern)


@functools.cache
def _custom_pattern(expression: str) -> Pattern:
    try:
        regex.compile(expression)
    except regex.error as error:
        raise InputError(f"the splitting pattern {expression!r} is not a regular expression: {error}") from None
    if regex.fullmatch(_without_lookaround(expression), ""):
        raise InputError(
            f"the splitting pattern {expression!r} matches the empty text; each match must take a character"
        )
    pattern = Pattern(expression, expression, rf"(?:{expression})|(?:(?!{expression})[\s\S])++", cut=None)
    _check_in_tiktoken(pattern)
    return pattern


def _without_lookaround(expression: str) -> str:
    """Return an expression with its lookarounds left out, which consume nothing.

    Raises:
        InputError: It has syntax that means something else in another engine.
    """
    opened: list[tuple[str, int]] = []  # groups around the present position, and where their content begins
    kept: list[str] = []
    for found in _TOKEN.finditer(expression):
        kind, token = str(found.lastgroup), found.group()
        portable, instead = _PORTABLE[kind]
        if not re.fullmatch(portable, token, re.DOTALL):
            raise _not_portable(expression, token, instead)
        around = [opening for opening, _ in opened]
        if any(opening.startswith("(?<") for opening in around) and (kind in ("open", "quantifier") or token == "|"):
            raise _not_portable(expression, "(?<", "look behind at characters and classes only")
        if kind == "open":
            opened.append((token, found.end()))
            around.append(token)
        if not any(opening[-1] in "=!" for opening in around):
            kept.append(token)
        if kind == "close":
            opening, start = opened.pop()
            if opening == "(?i:" and _CASE_DIFFERS.search(expression, start, found.start()):
                raise _not_portable(expression, opening, "give it ASCII letters, without s, st or f after one another")
    return "".join(kept)


def _not_portable(expression: str, part: str, instead: str) -> InputError:
    return InputError(f"the splitting pattern {expression!r} has {part!r}, which engines read differently; {instead}")


def _check_in_tiktoken(pattern: Pattern) -> None:
    """Raise InputError unless tiktoken's core, whose engine has another dialect, finds the same words."""
    words = [word.encode("utf-8") for word in pattern.split(_PROBE)]
    tokens = [*(bytes([byte]) for byte in range(256)), *words]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    try:
        core = tiktoken.Encoding("probe", pat_str=pattern.fast, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the splitting pattern {pattern.name!r} cannot be read by tiktoken: {reason}") from None
    if core.encode_ordinary(_PROBE) != [ranks[word] for word in words]:
        raise InputError(f"the splitting pattern {pattern.name!r} means something else to tiktoken; use common syntax")


# ----------------------------------------------------------------------------------------------- preparing the text


def special_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return an expression that finds the texts of special tokens, the longest where several start."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def well_formed(text: str) -> str:
    """Return ``text`` as UTF-8 can hold it: a pair of surrogates becomes its character, a lone one U+FFFD.

    Half a pair is not a character and has no bytes, so decoding cannot return it; all other text survives unchanged.
    tiktoken has the same rule.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def grouped(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Gather texts into lists of ``size`` characters or more, each worth the turn of a thread or process."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= size:
            yield group
            group, characters = [], 0
    if group:
        yield group


# --------------------------------------------------------------------------------------- fast splitting, for training

_SHORT = 1000  # characters
_BEYOND_BMP = re.compile("[\U00010000-\U0010ffff]")


def split_fast(pattern: Pattern, text: str) -> list[str]:
    """Return the same words as ``pattern.split``, faster; the text must be well formed."""
    if pattern.name not in PATTERNS:
        return _compiled(pattern.fast).findall(text)
    if text.isascii() or not _BEYOND_BMP.search(text):
        return _compiled_for_re(pattern.fast).findall(text)
    words: list[str] = []
    for piece in pattern.pieces(text, _SHORT):  # few pieces will hold such characters
        compiled = _compiled(pattern.fast) if _BEYOND_BMP.search(piece) else _compiled_for_re(pattern.fast)
        words += compiled.findall(piece)
    return words


@functools.cache
def _compiled(expression: str) -> regex.Pattern[str]:
    return regex.compile(expression)


@functools.cache
def _compiled_for_re(expression: str) -> re.Pattern[str]:
    r"""Compile for ``re``, which lacks \p{L} and defines \s and \S differently; valid for the BMP only."""
    space, letters, digits = (_bmp_ranges(category) for category in (r"\s", r"\p{L}", r"\p{N}"))
    expression = re.sub(r"\[[^]]*\]", lambda one: one[0].replace(r"\s", space), expression)  # within a class
    expression = expression.replace(r"\p{L}", letters).replace(r"\p{N}", digits)
    return re.compile(expression.replace(r"\s", f"[{space}]").replace(r"\S", f"[^{space}]"))


def _bmp_ranges(category: str) -> str:
    """Return the characters of a category in the Basic Multilingual Plane as ranges for a character class."""
    characters = "".join(map(chr, range(0x10000)))
    spans = (match.span() for match in regex.finditer(f"{category}+", characters))
    return "".join(f"\\u{start:04x}-\\u{end - 1:04x}" for start, end in spans)


# ---------------------------------------------------------------------------------- text that is longer than memory

_BUFFER = 1 << 16  # characters


def cut_stream(source: TextIO | Iterable[str], pattern: Pattern, special_tokens: Collection[str] = ()) -> Iterator[str]:
    """Yield pieces that encode to the same ids as the whole text of ``source``.

    Memory is that of one piece, unless there is nowhere to cut: in one endless word, or with a custom pattern.

    Args:
        source: An open text file, or strings that are parts of one text.
        pattern: How the text will be split.
        special_tokens: Those that will be recognized; their texts are not cut either.
    """
    buffer = ""
    enough = _BUFFER
    # A file is read in blocks, since its lines may be endless.
    blocks = iter(lambda: source.read(_BUFFER), "") if isinstance(source, io.TextIOBase) else source
    for block in blocks:
        buffer += block
        if len(buffer) < enough:
            continue
        cut = _last_cut(buffer, pattern, special_tokens)
        if cut is None:
            enough = 2 * len(buffer)  # search again when it has doubled: no more work than reading it twice
            continue
        yield buffer[:cut]
        buffer, enough = buffer[cut:], _BUFFER
    yield buffer


def _last_cut(text: str, pattern: Pattern, special_tokens: Collection[str]) -> int | None:
    """Return a late position to cut the text read so far; ``None`` if there is none."""
    if not special_tokens:
        return pattern.last_cut(text, len(text))
    cut = pattern.last_cut(text, len(text) - max(map(len, special_tokens)))  # one may start at the end
    if cut is not None:
        for match in special_pattern(special_tokens).finditer(text):
            if match.start() < cut < match.end():
                return match.start() or match.end()
    return cut
