"""The stored-nowhere shuffle: a bijection whatever n, and as good as a drawn one."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.loader import permute


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_index_has_one_image(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch).tolist()) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(1, 2**62 - 1), data=st.data())
def test_images_of_a_huge_set_are_distinct_and_inside(n: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True))
    images = permute(np.array(indices), n, seed=1, epoch=2).tolist()
    assert len(set(images)) == len(indices)
    assert all(0 <= image < n for image in images)


@settings(deadline=None)
@given(n=st.integers(2, 10**9), data=st.data())
def test_an_image_does_not_depend_on_what_else_is_asked(n: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=4, max_size=4)))
    alone = [int(permute(np.array(index), n, 7, 3)) for index in indices]
    assert permute(indices, n, 7, 3).tolist() == alone
    assert permute(indices.reshape(2, 2), n, 7, 3).tolist() == np.reshape(alone, (2, 2)).tolist()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_permutation_of_a_few_is_about_equally_likely(n: int) -> None:
    draws = 4000
    seen = Counter(tuple(permute(np.arange(n), n, seed=0, epoch=epoch).tolist()) for epoch in range(draws))
    expected = draws / len(list(itertools.permutations(range(n))))
    chi_square = sum((seen[p] - expected) ** 2 / expected for p in itertools.permutations(range(n)))
    freedom = len(list(itertools.permutations(range(n)))) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [permute(np.arange(1000), 1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 12  # one in common is expected


def test_neighbours_are_scattered() -> None:
    n = 100_000
    order = permute(np.arange(n), n, seed=0, epoch=0)
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert np.abs(np.diff(order)).mean() == pytest.approx(n / 3, rel=0.02)
