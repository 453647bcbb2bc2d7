from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt2lab.errors import InputError
from gpt2lab.generation import (
    STRATEGIES,
    DecodingStrategy,
    filter_top_k,
    filter_top_p,
    probabilities,
    sample_next,
    seeded,
)

CPU = torch.device("cpu")


def logits_of(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is the given rows of probabilities."""
    return torch.tensor(rows).log()


def kept(filtered: torch.Tensor) -> list[list[int]]:
    """The tokens of each row that a filter left in."""
    return [row.isfinite().nonzero().flatten().tolist() for row in filtered]


def test_probabilities_without_settings_are_the_softmax() -> None:
    expected = [[0.5, 0.25, 0.125, 0.125]]
    torch.testing.assert_close(probabilities(logits_of(*expected), DecodingStrategy()), torch.tensor(expected))


@pytest.mark.parametrize(
    ("temperature", "expected"),
    # p^(1/T), normalised: T = 1/2 squares 4:2:1, T = 2 takes roots
    [
        (0.5, [16 / 21, 4 / 21, 1 / 21]),
        (1.0, [4 / 7, 2 / 7, 1 / 7]),
        (2.0, [2 / (3 + 2**0.5), 2**0.5 / (3 + 2**0.5), 1 / (3 + 2**0.5)]),
    ],
)
def test_temperature_raises_probabilities_to_its_inverse(temperature: float, expected: list[float]) -> None:
    found = probabilities(logits_of([4 / 7, 2 / 7, 1 / 7]), DecodingStrategy(temperature=temperature))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_a_tiny_temperature_is_greedy_and_a_huge_one_uniform() -> None:
    logits = torch.tensor([[3.0, 90.0, -4.0, 89.0]])
    assert probabilities(logits, DecodingStrategy(temperature=1e-38)).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    torch.testing.assert_close(probabilities(logits, DecodingStrategy(temperature=1e30)), torch.full((1, 4), 0.25))


def test_top_k_renormalises_the_k_likeliest_of_each_row() -> None:
    found = probabilities(logits_of([0.1, 0.4, 0.2, 0.3], [0.7, 0.05, 0.05, 0.2]), DecodingStrategy(top_k=2))
    torch.testing.assert_close(found, torch.tensor([[0.0, 4 / 7, 0.0, 3 / 7], [7 / 9, 0.0, 0.0, 2 / 9]]))


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4]), (5, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_exactly_k_and_of_equals_the_lower_ids(k: int, expected: list[int]) -> None:
    assert kept(filter_top_k(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]), k)) == [expected]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [1]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.99, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_nucleus_is_the_fewest_tokens_that_hold_the_mass(p: float, expected: list[int]) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0]]) * math.log(2)  # probabilities 1/8 1/2 1/8 1/4, up to fp32
    found = filter_top_p(logits, p - 1e-6 if p < 1 else p)
    assert kept(found) == [expected]


def test_nucleus_of_equals_keeps_the_lower_ids() -> None:
    assert kept(filter_top_p(torch.zeros(1, 8192), 0.25)) == [list(range(2048))]


def test_nucleus_of_a_sure_model_is_one_token_and_never_none() -> None:
    assert kept(filter_top_p(torch.tensor([[0.0, 100.0, 0.0]]), 0.9)) == [[1]]
    assert kept(filter_top_p(torch.tensor([[0.0, 1.0, 0.0]]), 1e-9)) == [[1]]


def test_the_whole_mass_keeps_tokens_that_fp32_sums_would_lose() -> None:
    logits = torch.tensor([[0.0, -30.0, -31.0]])  # 1 + 1e-13 is 1 in fp32
    assert kept(filter_top_p(logits, 1.0)) == [[0, 1, 2]]
    torch.testing.assert_close(probabilities(logits, DecodingStrategy(top_p=1.0)), logits.softmax(-1))


def test_filters_leave_the_logits_they_were_given_alone() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    filter_top_k(logits, 1)
    filter_top_p(logits, 0.1)
    probabilities(logits, DecodingStrategy(0.5, 2, 0.5))
    assert logits.tolist() == [[1.0, 2.0, 3.0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.permutations(range(12)), min_size=1, max_size=3),
    st.floats(0.2, 3.0),
    st.integers(1, 12),
    st.floats(0.05, 0.95),
)
def test_settings_together_equal_hugging_face_where_nothing_ties(
    rows: list[list[int]], temperature: float, k: int, p: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float32) / 3
    expected = logits
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p)):
        expected = warper(ids, expected)
    found = probabilities(logits, DecodingStrategy(temperature, k, p))
    torch.testing.assert_close(found, expected.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_worked_on_in_fp32(dtype: torch.dtype) -> None:
    logits = torch.linspace(-3, 3, 40)[None].to(dtype)
    for strategy in STRATEGIES.values():
        found = probabilities(logits, DecodingStrategy(top_k=30) if strategy.top_k else strategy)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    "strategy", [DecodingStrategy(temperature=0.7), DecodingStrategy(top_k=3), DecodingStrategy(top_p=0.8)]
)
def test_draws_follow_the_probabilities(strategy: DecodingStrategy) -> None:
    n = 40_000
    logits = logits_of([0.4, 0.05, 0.3, 0.15, 0.1])
    drawn = sample_next(logits.expand(n, -1), strategy, seeded(3, CPU))
    p = probabilities(logits, strategy)[0]
    counts = drawn.bincount(minlength=5)
    assert counts[p == 0].sum() == 0
    sigma = (n * p * (1 - p)).sqrt()
    assert bool(((counts - n * p).abs() <= 4 * sigma).all()), (counts, n * p)


def test_greedy_takes_the_largest_logit_of_each_row() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert sample_next(logits, DecodingStrategy(greedy=True)).tolist() == [1, 0]
    assert probabilities(logits, DecodingStrategy(greedy=True)).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_the_named_strategies_say_what_they_are() -> None:
    assert {name: str(strategy) for name, strategy in STRATEGIES.items()} == {
        "greedy": "greedy",
        "temperature": "temperature 0.8",
        "top-k": "top-k 50",
        "nucleus": "nucleus 0.9",
    }
    assert str(DecodingStrategy()) == "temperature 1.0"
    assert str(DecodingStrategy(0.7, 40, 0.95)) == "temperature 0.7, top-k 40, nucleus 0.95"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"greedy": True, "top_k": 5}, "greedy decoding would ignore top-k 5"),
        ({"greedy": True, "top_p": 0.5, "temperature": 2.0}, "would ignore temperature 2.0, nucleus 0.5"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DecodingStrategy(**values)
    assert "\n" not in str(caught.value)


def test_top_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="top_k is 50; it must be at most 3"):
        probabilities(torch.zeros(1, 3), STRATEGIES["top-k"])
