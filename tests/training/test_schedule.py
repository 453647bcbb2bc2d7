"""The learning rate against its formula worked by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import learning_rate, warmup_steps

BATCH = 128


def test_by_hand() -> None:
    config = OptimConfig(lr=1.0 / 2, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(config, step, 9, BATCH) for step in range(9)]
    cosine = [0.5, 0.1 + 0.4 * (1 + math.sqrt(0.5)) / 2, 0.3, 0.1 + 0.4 * (1 - math.sqrt(0.5)) / 2, 0.1]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, *cosine])


@given(st.integers(1, 3000), st.none() | st.integers(0, 300), st.none() | st.floats(0, 0.01))
def test_it_rises_in_a_line_to_the_peak_and_falls_to_the_end(
    steps: int, warmup: int | None, min_lr: float | None
) -> None:
    config = OptimConfig(lr=0.01, warmup_steps=warmup, min_lr=min_lr)
    W = warmup_steps(config, steps, BATCH)
    rates = [learning_rate(config, step, steps, BATCH) for step in range(steps)]
    assert rates[:W] == pytest.approx([0.01 * (i + 1) / W for i in range(W)])
    assert max(rates) == pytest.approx(0.01)
    decay = rates[W:]
    assert all(a >= b for a, b in pairwise(decay))
    if len(decay) > 1:
        assert decay[0] == pytest.approx(0.01)
        assert decay[-1] == pytest.approx(config.final_lr)


@pytest.mark.parametrize(("steps", "expected"), [(10, 0), (100, 5), (1_000, 50), (40_000, 2_000), (10**6, 2_000)])
def test_warmup_is_a_twentieth_of_the_run_and_at_most_2000_steps(steps: int, expected: int) -> None:
    assert warmup_steps(OptimConfig(), steps, BATCH) == expected


def test_warmup_is_not_longer_than_the_run() -> None:
    config = OptimConfig(lr=0.01, warmup_steps=100)
    assert warmup_steps(config, 10, BATCH) == 10
    assert learning_rate(config, 9, 10, BATCH) == pytest.approx(0.01)


def test_the_last_rate_is_a_tenth_unless_given() -> None:
    assert learning_rate(OptimConfig(lr=0.02), 999, 1000, BATCH) == pytest.approx(0.002)
    assert learning_rate(OptimConfig(lr=0.02, min_lr=0.0), 999, 1000, BATCH) == 0.0


def rates(config: OptimConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps, BATCH) for step in range(steps)]


def test_linear_by_hand() -> None:
    config = OptimConfig(lr=0.5, min_lr=0.1, warmup_steps=2, schedule="linear")
    assert rates(config, 7) == pytest.approx([0.25, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_constant_by_hand() -> None:
    assert rates(OptimConfig(lr=0.5, warmup_steps=2, schedule="constant"), 5) == [0.25, 0.5, 0.5, 0.5, 0.5]


def test_warm_up_stable_decay_by_hand() -> None:
    config = OptimConfig(lr=0.5, min_lr=0.1, warmup_steps=2, schedule="wsd", decay_fraction=0.5)
    assert rates(config, 10) == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_until_its_decay_the_stable_rate_does_not_depend_on_the_length() -> None:
    config = OptimConfig(lr=0.5, warmup_steps=3, schedule="wsd")
    assert rates(config, 20)[:16] == rates(config, 1000)[:16]
    assert rates(config, 20)[-1] == pytest.approx(0.05)


def test_the_decay_does_not_begin_before_the_warm_up_ends() -> None:
    config = OptimConfig(lr=0.5, min_lr=0.0, warmup_steps=6, schedule="wsd", decay_fraction=1.0)
    assert rates(config, 8) == pytest.approx([0.5 * (i + 1) / 6 for i in range(6)] + [0.5, 0.0])


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 1), (256, 2), (257, 3), (10**9, 40)])
def test_a_warm_up_in_tokens_is_rounded_up_to_steps(tokens: int, expected: int) -> None:
    assert warmup_steps(OptimConfig(warmup_tokens=tokens), 40, BATCH) == expected
