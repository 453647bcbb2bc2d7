"""Training: the fast trainer equals the reference and Hugging Face's, in any number of processes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs
from tokenizers import models, pre_tokenizers, trainers

from gpt2lab import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.bpe import Ties, bytes_to_unicode, train_reference
from gpt2lab.tokenizer.pretokenize import GPT2
from gpt2lab.tokenizer.train import count_words, learn_merges

# Few letters make long runs, touching pairs and ties; that is where trainers go wrong.
TEXTS = st.lists(st.text(st.sampled_from("aab b\n.é"), max_size=40), max_size=8)


def their_merges(texts: list[str], vocab_size: int) -> list[list[str]]:
    """The merges that Hugging Face's trainer finds, spelled."""
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return json.loads(theirs.to_str())["model"]["merges"]


@given(texts=TEXTS, n_merges=st.integers(0, 40), min_frequency=st.integers(1, 3), ties=st.sampled_from(get_args(Ties)))
@settings(max_examples=300)
def test_the_fast_trainer_equals_the_reference(texts: list[str], n_merges: int, min_frequency: int, ties: Ties) -> None:
    expected = train_reference(texts, n_merges, min_frequency=min_frequency, ties=ties)
    assert learn_merges(count_words(texts, GPT2), n_merges, min_frequency=min_frequency, ties=ties) == expected


@pytest.mark.parametrize("seed", range(10))
def test_merging_many_positions_at_once_equals_the_reference(seed: int) -> None:
    chance = random.Random(seed)
    texts = ["".join(chance.choices("abcd", k=chance.randint(1, 12))) for _ in range(400)]
    for ties in get_args(Ties):
        assert learn_merges(Counter(texts), 60, ties=ties) == train_reference(texts, 60, ties=ties)


def test_real_text_gives_the_merges_of_hugging_face(tinyshakespeare: Path, wikitext2: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (tinyshakespeare, wikitext2)]
    ours = Tokenizer.train(texts, 5000)
    assert [list(map(bytes_to_unicode, merge)) for merge in ours.merges] == their_merges(texts, 5000)


def test_a_small_text_gives_fewer_merges_than_asked() -> None:
    tokenizer = Tokenizer.train(["abab abab"], 1000)
    assert tokenizer.merges == [(b"a", b"b"), (b"ab", b"ab")]
    assert tokenizer.n_vocab == 256 + 2 + 1


def test_pairs_rarer_than_min_frequency_are_not_merged() -> None:
    assert Tokenizer.train(["ab"], 300, min_frequency=2).merges == []
    assert Tokenizer.train(["ab"], 300, min_frequency=1).merges == [(b"a", b"b")]


def test_ties_go_to_the_smallest_ids() -> None:
    assert Tokenizer.train(["cd cd ab ab"], 258).merges == [(b"a", b"b")]


def test_no_merge_is_learned_from_or_across_the_text_of_a_special_token() -> None:
    texts = ["ab<|endoftext|>cd"] * 10
    assert Tokenizer.train(texts, 300).merges == [(b"a", b"b"), (b"c", b"d")]


def test_texts_may_be_any_iterable_and_are_read_once() -> None:
    read = []

    def texts() -> Iterator[str]:
        for i in range(3):
            read.append(i)
            yield "low lower lowest"

    assert Tokenizer.train(texts(), 262).fingerprint == Tokenizer.train(["low lower lowest"] * 3, 262).fingerprint
    assert read == [0, 1, 2]


def test_progress_is_reported_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    corpus = ["".join(random.Random(0).choices("abcdefgh ", k=4000))]
    Tokenizer.train(corpus, 256 + 1 + 250, progress=lambda done, total: told.append((done, total)))
    assert told == [(100, 250), (200, 250), (250, 250)]


@pytest.fixture(scope="module")
def large() -> list[str]:
    """Many documents and a long one, enough for helpers to be started with chunks of 20 kB."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(1, 8))) for _ in range(3000)]
    return [" ".join(chance.choices([*words, "naïve", "😀", "\n\n"], k=n)) for n in [40_000, *[500] * 60]]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2lab.tokenizer.train._CHUNK", 20_000)


def test_any_number_of_processes_counts_the_same(large: list[str], small_chunks: None) -> None:
    expected = Counter(word for text in large for word in GPT2.split(text))
    for processes in (1, 2, 3):
        assert count_words(large, GPT2, processes=processes) == expected


def test_an_error_in_the_texts_is_raised_and_ends_the_helpers(large: list[str], small_chunks: None) -> None:
    def broken() -> Iterator[str]:
        yield from large
        raise InputError("corpus.txt: not UTF-8 text at byte 7")

    with pytest.raises(InputError, match="not UTF-8 text at byte 7"):
        count_words(broken(), GPT2, processes=3)


def test_a_helper_that_dies_is_an_error_and_not_a_wrong_count(
    large: list[str], small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2lab.tokenizer.train._SERVE", "import sys; sys.exit(3)")
    with pytest.raises(RuntimeError, match="a process that counted words ended with status 3"):
        count_words(large, GPT2, processes=2)
