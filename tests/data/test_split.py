"""Which text is held out: by hash of the document, or each document cut in three."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.documents import SPLITS, SplitRule, TextDocument
from gpt2lab.errors import InputError


def parts(rule: SplitRule, text: str, bits: float | None = None) -> list[tuple[str, str, float | None]]:
    return [(part.split, "".join(part.pieces), part.bits) for part in rule.parts(TextDocument(text, bits))]


@settings(deadline=None)
@given(st.text(min_size=1))
def test_the_hash_of_the_text_decides(text: str) -> None:
    u = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    expected = "val" if u < 0.3 else "test" if u < 0.5 else "train"
    assert parts(SplitRule("hash", 0.3, 0.2), text, bits=2.5) == [(expected, text, 2.5)]


def test_documents_fall_in_the_splits_by_their_fractions() -> None:
    rule = SplitRule("hash", 0.05, 0.1)
    counts = Counter(parts(rule, f"document {i}")[0][0] for i in range(10_000))
    assert counts["val"] == pytest.approx(500, abs=100)
    assert counts["test"] == pytest.approx(1000, abs=150)


def test_a_document_stays_in_its_split_when_it_is_long() -> None:
    text = "words and \u00fcmlauts " * 40_000  # several pieces
    u = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    (part,) = parts(SplitRule("hash", 0.5, 0.0), text)
    assert part == ("val" if u < 0.5 else "train", text, None)


@settings(deadline=None)
@given(st.text(min_size=1), st.sampled_from([(0.05, 0.05), (0.1, 0.0), (0.0, 0.25), (0.3, 0.3), (0.0, 0.0)]))
def test_cutting_keeps_the_order_and_loses_nothing(text: str, fractions: tuple[float, float]) -> None:
    found = parts(SplitRule("position", *fractions), text, bits=1.0)
    assert "".join(section for _, section, _ in found) == text
    names = [split for split, _, _ in found]
    assert names == [split for split in SPLITS if split in names]
    assert all(section and bits is None for _, section, bits in found)


def test_cutting_stands_at_the_fractions_of_the_characters() -> None:
    text = "\u00e9" * 1000 + "words and spaces " * 40_000
    found = {split: section for split, section, _ in parts(SplitRule("position", 0.1, 0.0), text)}
    assert found == {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]}
    sizes = [len(section) for _, section, _ in parts(SplitRule("position", 0.05, 0.05), "x" * 1000)]
    assert sizes == [900, 50, 50]


def test_parts_are_read_one_after_another() -> None:
    splits = []
    for part in SplitRule("position", 0.2, 0.2).parts(TextDocument("abcde" * 200_000)):
        list(islice(part.pieces, 1))  # only begun
        splits.append(part.split)
    assert splits == ["train", "val", "test"]


@pytest.mark.parametrize("fractions", [(-0.1, 0.0), (1.0, 0.0), (0.0, 1.5), (float("nan"), 0.0), (0.5, 0.5)])
def test_fractions_out_of_range_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="fraction"):
        SplitRule("hash", *fractions)
