"""Splitting: fast expressions equal the published ones, custom ones mean the same in every engine; cutting texts."""

from __future__ import annotations

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from gpt2lab.errors import InputError
from gpt2lab.tokenizer.pretokenize import PATTERNS, Pattern, find_pattern, split_fast, well_formed

KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
MIXED = st.text(
    st.one_of(KNOWN, st.sampled_from(" \t\n\r\x0b\x1c\x85\u00a0\u2003'sStTmrevéſK19½٣=-_你😀\u0301")), max_size=60
)
named = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def test_gpt2_splits_as_published() -> None:
    words = ["Hello", ",", " ", " it", "'s", " 1999", "\n\n ", " x"]
    assert find_pattern("gpt2").split("".join(words)) == words


def test_cl100k_groups_digits_by_threes_and_newlines_with_punctuation() -> None:
    assert find_pattern("cl100k").split("It'S (12345);\n\nok") == ["It", "'S", " (", "123", "45", ");\n\n", "ok"]


@named
@given(text=MIXED)
@settings(max_examples=400)
def test_the_fast_expression_finds_the_published_ones_words(pattern: Pattern, text: str) -> None:
    words = pattern.split(text)
    assert split_fast(pattern, text) == words
    assert "".join(words) == text


@given(text=MIXED)
@settings(max_examples=200)
def test_a_custom_pattern_keeps_what_it_does_not_match(text: str) -> None:
    pattern = find_pattern(r"[a-z]+|\d")
    oracle = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]"), "isolated")
    words = find_pattern(r"[a-z]+|[0-9]").split(text)
    assert words == [word for word, _ in oracle.pre_tokenize_str(text)]
    assert split_fast(pattern, text) == pattern.split(text)


@named
@given(text=MIXED, more=MIXED)
@settings(max_examples=200)
def test_a_text_may_be_cut_where_the_pattern_says(pattern: Pattern, text: str, more: str) -> None:
    whole = text + " " + more
    pieces = list(pattern.pieces(whole, 5))
    assert "".join(pieces) == whole
    assert [word for piece in pieces for word in pattern.split(piece)] == pattern.split(whole)
    cut = pattern.last_cut(text, len(text))
    if cut is not None:
        assert pattern.split(text[:cut]) + pattern.split(text[cut:] + more) == pattern.split(text + more)


def test_long_text_with_characters_beyond_the_bmp_splits_the_same() -> None:
    text = "It's 1999, naïve 😀😀 x\n" * 300
    assert split_fast(PATTERNS["gpt2"], text) == PATTERNS["gpt2"].split(text)


def test_a_surrogate_pair_becomes_its_character() -> None:
    assert well_formed("a\ud83d\ude00b\ud800") == "a😀b\ufffd"


# Custom patterns: one that is accepted splits alike in ``regex``, tiktoken's core and Hugging Face's library.
COMMON = [
    *"aks '.-,_ß",
    *[r"\s", r"\S", r"\d", r"\D", r"\p{L}", r"\P{N}", r"\p{Lu}", r"\p{Han}", r"\n", r"\.", r"\+", r"\-", "[a-z]"],
    *[r"[^\s\p{L}]", r"[^a]", r"[\p{L}_]", "[-+]", "[a-]", r"[\]\[]", "[+.]", r"[\d\s]", "(?i:a|k)", "(?i:'s|'t)"],
    *["(?i:[a-k])", "(?>a+)", "(?:a|bc)"],
]
LOOKAROUND = ["(?=a)", "(?!a)", r"(?!\S)", "(?<=a)", r"(?<!\s)", ""]
QUANTIFIERS = ["", "?", "*", "+", "??", "*?", "+?", "?+", "*+", "++", "{2}", "{1,2}", "{1,}", "{1,2}?"]
DIFFERENT = [
    *[r"\w", r"\W", r"\b", "^", "$", r"\Z", r"\A", r"\h", r"\R", r"\X", r"\K", r"\x61", r"\u0061", r"\e", r"\v", "(a)"],
    *["[a-z&&[^a]]", "[[a]b]", "[a--b]", "[[:alpha:]]", "[]a]", r"[\w]", r"\p{Alphabetic}", r"\pL", r"\p{^L}", "(?i)a"],
    *["(?i:st)", "(?i:ss)", "(?i:[^s])", r"(?i:\p{Lu})", "(?i:ß)", "(?i:s{2})", "(?<=a+)", "(?<=a|bc)", "(?P<x>a)"],
    *["(?#a)", "(?x: a)", "(?s:.)", r"\<", "{", "]", "a{1,2}+", "a{2}?", "a{,2}", "a{2}+"],
]
PART = st.tuples(st.sampled_from(LOOKAROUND), st.sampled_from(COMMON), st.sampled_from(QUANTIFIERS)).map("".join)
SEQUENCE = st.lists(PART, max_size=3).map("".join)
PATTERN = st.lists(SEQUENCE, min_size=1, max_size=3).map("|".join)
TEXT = st.text(
    st.sampled_from("aabcksStT019 '_-+.,]&\n\r\t\x0b\x1c\x85\u00a0\u2028ßſK²Ⅷé你好ﬆ\u0301\u200d😀"), max_size=16
)


def in_tiktoken(expression: str, text: str) -> list[str]:
    """Split by tiktoken's core: every part of the text is a token, so each word becomes one."""
    parts = {text[i:j].encode("utf-8") for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    single = [bytes([byte]) for byte in range(256)]
    ranks = {token: rank for rank, token in enumerate([*single, *sorted(parts - set(single))])}
    core = tiktoken.Encoding("any", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    return [core.decode([token]) for token in core.encode_ordinary(text)]


def assert_alike(pattern: Pattern, text: str) -> None:
    theirs = pre_tokenizers.Split(Regex(pattern.published), "isolated").pre_tokenize_str(text)
    expected = [word for word, _ in theirs]
    assert pattern.split(text) == expected
    assert split_fast(pattern, text) == expected
    assert in_tiktoken(pattern.fast, text) == expected


@settings(max_examples=400, deadline=None)
@given(PATTERN, TEXT)
@example(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+", "abc123 \n\n  4567 x  ")
def test_common_syntax_is_accepted_and_splits_alike_in_every_engine(expression: str, text: str) -> None:
    try:
        pattern = find_pattern(expression)
    except InputError as error:
        assert "matches the empty text" in str(error) or "unknown splitting pattern" in str(error)  # a plain word
    else:
        assert_alike(pattern, text)


@pytest.mark.parametrize("part", DIFFERENT)
@settings(max_examples=10, deadline=None)
@given(before=SEQUENCE, after=SEQUENCE, text=TEXT)
def test_other_syntax_is_refused_or_splits_alike(part: str, before: str, after: str, text: str) -> None:
    try:
        pattern = find_pattern(f"{before}{part}{after}|\\d")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert_alike(pattern, text)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        (r"\d{1,3}+|\D", r"'{1,3}+', which engines read differently; write (?>X{1,3}) for X{1,3}+"),
        (r"\w+", r"'\\w', which engines read differently; write [\p{L}\p{N}_] for \w"),
        (r"\s+$|\S+", r"'$', which engines read differently; write (?![\s\S]) for the end of the text"),
        ("[a-z&&[^b]]+", "no class within a class"),
        ("[[:alpha:]]+", "no class within a class"),
        (r"(\d)+", "'(', which engines read differently; write (?:...) for a group"),
        ("(?i)a", "names and flags other than (?i:...) are not taken"),
        ("(?i:street)", "give it ASCII letters, without s, st or f after one another"),
        ("(?<=a+)b", "look behind at characters and classes only"),
        ("(?=q)|a", "matches the empty text"),
    ],
)
def test_what_engines_read_differently_is_refused_with_what_to_write(expression: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        find_pattern(expression)
    assert part in str(caught.value)
