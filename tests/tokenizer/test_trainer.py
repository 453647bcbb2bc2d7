from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.tokenizer.bpe import train_naively
from gpt2lab.tokenizer.counting import count_words
from gpt2lab.tokenizer.pretokenize import GPT2
from gpt2lab.tokenizer.trainer import learn_merges

# Few letters make long runs, touching pairs and ties; that is where trainers go wrong.
TEXTS = st.lists(st.text(st.sampled_from("aab b\n.é"), max_size=40), max_size=8)


@given(texts=TEXTS, n_merges=st.integers(0, 40), min_frequency=st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_the_fast_trainer_gives_the_naive_ones_merges(texts: list[str], n_merges: int, min_frequency: int) -> None:
    expected = train_naively(texts, n_merges, min_frequency=min_frequency)
    counts = count_words(texts, GPT2)
    if counts:
        assert learn_merges(counts, n_merges, min_frequency=min_frequency) == expected


@pytest.mark.parametrize("seed", range(10))
def test_merging_many_places_at_once_gives_the_naive_merges(seed: int) -> None:
    chance = random.Random(seed)
    texts = ["".join(chance.choices("abcd", k=chance.randint(1, 12))) for _ in range(400)]
    assert learn_merges(Counter(texts), 60) == train_naively(texts, 60)
