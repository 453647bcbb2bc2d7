"""Splitting: fast expressions equal the published ones, and texts may be cut where a pattern says so."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

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
