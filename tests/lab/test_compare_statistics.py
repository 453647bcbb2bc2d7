"""Intervals against published tables, and how often they are wrong on simulated runs."""

from __future__ import annotations

import math
import random

import pytest

from gpt2lab.compare.results import Outcome, compare_outcomes, half_width, paired_difference, t_cdf, t_quantile

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 19: 2.093, 30: 2.042, 100: 1.984}
"""0.975 quantiles of Student's t as printed in the NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""


@pytest.mark.parametrize(("df", "expected"), TABLE.items())
def test_quantile_is_that_of_the_table(df: int, expected: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("df", [1, 2, 7, 12])
def test_quantile_undoes_the_distribution(df: int) -> None:
    assert t_cdf(t_quantile(0.9, df), df) == pytest.approx(0.9, abs=1e-12)


def test_interval_worked_by_hand() -> None:
    difference = paired_difference({1: 2.0, 2: 3.0, 3: 4.0}, {1: 2.5, 2: 3.1, 3: 4.9, 4: 9.0})
    assert difference is not None
    # d = 0.5, 0.1, 0.9: mean 0.5, s = 0.4, so 0.5 ± 4.303 · 0.4 / sqrt(3)
    assert (difference.mean, difference.pairs) == (pytest.approx(0.5), 3)
    assert difference.high == pytest.approx(0.5 + 4.303 * 0.4 / math.sqrt(3), abs=1e-3)
    assert difference.low == pytest.approx(0.5 - 4.303 * 0.4 / math.sqrt(3), abs=1e-3)
    assert difference.verdict == "within noise"


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    alone = paired_difference({1: 2.0}, {1: 1.0})
    assert alone is not None and (alone.mean, alone.low, alone.high, alone.verdict) == (-1.0, None, None, "one seed")
    assert paired_difference({1: 2.0}, {2: 1.0}) is None
    assert half_width([3.0]) is None


def simulated(shift: float, seeds: int, generator: random.Random) -> list[Outcome]:
    """Runs whose losses share a part for each seed, larger than what sets the arms apart."""
    runs = []
    for seed in range(seeds):
        shared = generator.gauss(4.0, 0.1)
        for arm, added in (("a", 0.0), ("b", shift)):
            loss = shared + added + generator.gauss(0.0, 0.01)
            runs.append(Outcome(arm, seed, f"{arm}/{seed}", "finished", {"test_loss": loss, "val_loss": loss}))
    return runs


def verdicts(shift: float, repetitions: int) -> list[str]:
    found = []
    for repetition in range(repetitions):
        comparison = compare_outcomes(simulated(shift, 5, random.Random(repetition)))
        difference = comparison.rows[0].cells[1].difference
        assert difference is not None
        found.append(difference.verdict)
    return found


def test_identical_arms_are_within_noise_in_19_of_20_comparisons() -> None:
    assert verdicts(0.0, 20).count("within noise") >= 19
    share = verdicts(0.0, 1000).count("within noise") / 1000
    assert 0.93 < share < 0.97


def test_known_shift_is_found_though_it_is_smaller_than_what_seeds_differ_by() -> None:
    assert verdicts(0.05, 20) == ["higher"] * 20
    assert verdicts(-0.05, 20) == ["lower"] * 20


def test_arms_that_are_equal_to_the_bit_are_the_same() -> None:
    runs = [
        Outcome(arm, seed, f"{arm}{seed}", "finished", {"test_loss": 4.0 + seed}) for seed in (1, 2) for arm in "ab"
    ]
    difference = compare_outcomes(runs).rows[0].cells[1].difference
    assert difference is not None and difference.verdict == "the same"
