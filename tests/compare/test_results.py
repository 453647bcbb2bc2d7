"""Intervals against published tables and simulated runs, and what a comparison says."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from gpt2lab.compare.output import column_groups, draw, table_rows
from gpt2lab.compare.results import (
    Outcome,
    Validation,
    compare_outcomes,
    half_width,
    paired_difference,
    t_cdf,
    t_quantile,
    to_loss,
)

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 19: 2.093, 30: 2.042, 100: 1.984}
"""0.975 quantiles of Student's t as printed in the NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""


@pytest.mark.parametrize(("df", "expected"), TABLE.items())
def test_quantiles_equal_the_table_and_invert_the_distribution(df: int, expected: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-4)
    assert t_cdf(t_quantile(0.9, df), df) == pytest.approx(0.9, abs=1e-12)


def test_interval_worked_by_hand() -> None:
    difference = paired_difference({1: 2.0, 2: 3.0, 3: 4.0}, {1: 2.5, 2: 3.1, 3: 4.9, 4: 9.0})
    assert difference is not None
    # d = 0.5, 0.1, 0.9: mean 0.5, s = 0.4, so 0.5 ± 4.303 · 0.4 / sqrt(3)
    assert (difference.mean, difference.pairs) == (pytest.approx(0.5), 3)
    assert difference.high == pytest.approx(0.5 + 4.303 * 0.4 / math.sqrt(3), abs=1e-3)
    assert difference.low == pytest.approx(0.5 - 4.303 * 0.4 / math.sqrt(3), abs=1e-3)
    assert difference.verdict == "within noise"


def test_one_pair_has_no_interval_and_no_pair_no_difference() -> None:
    alone = paired_difference({1: 2.0}, {1: 1.0})
    assert alone is not None and (alone.mean, alone.low, alone.high, alone.verdict) == (-1.0, None, None, "one seed")
    assert paired_difference({1: 2.0}, {2: 1.0}) is None
    assert half_width([3.0]) is None


def outcome(arm: str, seed: int, loss: float, tokenizer: str = "t", data: str = "d") -> Outcome:
    figures = {"test_loss": loss, "val_loss": loss, "bits_per_byte": loss / 3}
    curve = (Validation(10, 100, 1.0, 5.0), Validation(20, 200, 3.0, loss))
    return Outcome(arm, seed, f"{arm}/{seed}", "finished", figures, curve, fingerprints=(tokenizer, data))


def verdicts(shift: float, repetitions: int) -> list[str]:
    """Verdicts on simulated runs that share a part for each seed, larger than the difference between the arms."""
    found = []
    for repetition in range(repetitions):
        generator, runs = random.Random(repetition), []
        for seed in range(5):
            shared = generator.gauss(4.0, 0.1)
            for arm, added in (("a", 0.0), ("b", shift)):
                runs.append(outcome(arm, seed, shared + added + generator.gauss(0.0, 0.01)))
        difference = compare_outcomes(runs).rows[0].cells[1].difference
        assert difference is not None
        found.append(difference.verdict)
    return found


def test_identical_arms_are_within_noise_in_19_of_20_comparisons() -> None:
    found = verdicts(0.0, 1000)
    assert found[:20].count("within noise") >= 19
    assert 0.93 < found.count("within noise") / 1000 < 0.97


def test_difference_smaller_than_that_between_seeds_is_found() -> None:
    assert verdicts(0.05, 20) == ["higher"] * 20
    assert verdicts(-0.05, 20) == ["lower"] * 20


def test_arms_that_are_equal_to_the_bit_are_the_same() -> None:
    comparison = compare_outcomes([outcome(arm, seed, 4.0 + seed) for seed in (1, 2) for arm in "ab"])
    difference = comparison.rows[0].cells[1].difference
    assert difference is not None and difference.verdict == "the same"
    assert table_rows(comparison)[0].cells[1][2:] == ("0", "", "the same")
    assert comparison.findings[0].endswith("over 2 seeds: the same.")


def test_difference_beyond_noise_is_called_better_or_worse() -> None:
    noise = (0.001, -0.001)
    runs = [outcome(arm, seed, level + noise[seed]) for arm, level in (("a", 3.0), ("b", 2.5)) for seed in (0, 1)]
    runs += [outcome("c", seed, 3.5 - noise[seed]) for seed in (0, 1)]
    of_b, of_c = compare_outcomes(runs).findings
    assert of_b.endswith("over 2 seeds: lower, which is better.")
    assert of_c.endswith("over 2 seeds: higher, which is worse.")


def test_arm_that_was_not_measured_or_has_no_pair_is_named() -> None:
    unmeasured = dataclasses.replace(outcome("b", 1, 3.0), figures={"seconds": 2.0})
    of_b, of_c = compare_outcomes([outcome("a", 1, 3.0), unmeasured, outcome("c", 2, 3.0)]).findings
    assert of_b == "Test loss of b: not measured."
    assert of_c == "Test loss of c: it shares no seed with a."


@pytest.mark.parametrize(
    ("seconds", "shown"), [((284.0, 300.0, 290.0), True), ((120.0, 1671.0, 370.0), False), ((5.0,), True)]
)
def test_a_time_with_an_interval_wider_than_itself_is_left_out_with_the_reason(
    seconds: tuple[float, ...], shown: bool
) -> None:
    runs = [
        dataclasses.replace(run, figures=run.figures | {"seconds": time, "recall_gain": (-1) ** seed})
        for seed, time in enumerate(seconds)
        for run in (outcome("a", seed, 3.0), outcome("b", seed, 3.0))
    ]
    comparison = compare_outcomes(runs)
    names = {row.metric.name for row in comparison.rows}
    assert ("seconds" in names) == shown and {"recall_gain", "test_loss"} <= names
    assert any("includes zero: Training time." in remark for remark in comparison.remarks) != shown


def test_each_arm_names_the_options_that_it_changes() -> None:
    options = {"model.position": "learned", "model.bias": True, "model.window": None, "seed": 1, "out": "x"}
    changes = {"a": {}, "b": {"model.position": "rope", "seed": 2}, "c": {"model.window": 8, "model.bias": False}}
    runs = [dataclasses.replace(outcome(arm, 1, 3.0), options=options | own) for arm, own in changes.items()]
    assert compare_outcomes(runs).options == {
        "a": ("model.position=learned", "model.bias=true", "model.window=none"),
        "b": ("model.position=rope",),
        "c": ("model.bias=false", "model.window=8"),
    }
    runs[0] = dataclasses.replace(runs[0], options={})
    assert compare_outcomes(runs).options == {
        "b": ("model.position=rope", "model.bias=true", "model.window=none"),
        "c": ("model.position=learned", "model.bias=false", "model.window=8"),
    }


def test_a_second_run_of_an_arm_and_a_seed_is_left_out_with_a_remark() -> None:
    again = dataclasses.replace(outcome("b", 1, 9.0), path="runs/b")
    comparison = compare_outcomes([outcome("a", 1, 2.0), outcome("b", 1, 1.5), again])
    assert [cell.mean for cell in comparison.rows[0].cells] == [2.0, 1.5]
    assert "b, seed 1: runs/b is another run of this arm and seed. Left out." in comparison.remarks


@pytest.mark.parametrize(
    ("arms", "groups"),
    [
        (1, [[0]]),
        (2, [[0, 1]]),
        (5, [[0, 1, 2, 3, 4]]),
        (6, [[0, 1, 2, 3], [0, 4, 5]]),
        (9, [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]]),
    ],
)
def test_many_arms_make_several_tables_each_with_the_reference(arms: int, groups: list[list[int]]) -> None:
    assert column_groups(arms) == groups


@pytest.mark.parametrize("differing", ["tokenizer", "data"])
def test_only_bits_per_byte_compare_between_tokenizers_or_data(differing: str) -> None:
    comparison = compare_outcomes(
        [outcome(arm, seed, 3.0 + seed, **{differing: arm}) for arm in "ab" for seed in (1, 2)]
    )
    assert [row.metric.name for row in comparison.rows] == ["bits_per_byte"]
    assert any(f"different {differing}" in remark for remark in comparison.remarks)
    assert "Test bits per byte of b" in comparison.findings[0]
    assert draw(comparison) == {}
    assert "curves" in draw(compare_outcomes([outcome(arm, 1, 3.0) for arm in "ab"]))


def test_steps_to_a_loss_are_interpolated_between_validations() -> None:
    curve = tuple(Validation(10 * n, 100 * n, 2.0 * n - 1, 9.0 - n) for n in range(1, 8))
    run = dataclasses.replace(outcome("a", 1, 2.0), curve=curve)
    assert to_loss(run, 2.5) == {"steps_to_loss": 65.0, "seconds_to_loss": 12.0}
    assert to_loss(run, 3.0) == {"steps_to_loss": 60.0, "seconds_to_loss": 11.0}
    assert to_loss(run, 1.5) == {}
    assert "a, seed 1: never reached a loss of 1.5." in compare_outcomes([run, outcome("b", 1, 3.0)], 1.5).remarks


@pytest.mark.parametrize(("loss", "known"), [(3.5, True), (4.5, False), (9.0, False)])
def test_steps_to_a_loss_with_few_validations_before_it_are_left_out(loss: float, known: bool) -> None:
    curve = tuple(Validation(10 * n, 100 * n, 1.0 * n, 9.0 - n) for n in range(1, 8))
    comparison = compare_outcomes([dataclasses.replace(outcome(arm, 1, 2.0), curve=curve) for arm in "ab"], loss)
    assert any(row.metric.name == "steps_to_loss" for row in comparison.rows) == known
    left_out = "Steps and seconds to the loss are left out for 2 runs with fewer than 5 validations before it"
    assert any(remark.startswith(left_out) for remark in comparison.remarks) != known
    assert not any("never reached" in remark for remark in comparison.remarks)
