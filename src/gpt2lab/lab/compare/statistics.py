"""Differences of paired measurements, with the interval that chance allows them.

Two arms are run with the same seeds, so that each pair shares its data and its order. Of the n differences d,

    mean d ± t(0.975; n - 1) · s / sqrt(n),        s² = Σ (d - mean)² / (n - 1)

is the 95 % interval (Student 1908): where the arms do not differ, it misses 0 once in twenty comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its 95 % interval."""

    mean: float
    low: float | None
    """Ends of the interval; None where one pair gives none."""
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """What the interval says: ``one seed``, ``the same``, ``within noise``, ``lower`` or ``higher``."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low == self.high == 0.0:
            return "the same"
        if self.low <= 0.0 <= self.high:
            return "within noise"
        return "lower" if self.high < 0.0 else "higher"


def paired_difference(reference: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return the difference ``other - reference`` over the seeds that both have; None where they share none."""
    differences = [other[seed] - reference[seed] for seed in sorted(reference.keys() & other.keys())]
    if not differences:
        return None
    mean = math.fsum(differences) / len(differences)
    half = half_width(differences)
    if half is None:
        return Difference(mean, None, None, 1)
    return Difference(mean, mean - half, mean + half, len(differences))


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of the values' mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return t_quantile(0.5 + LEVEL / 2, n - 1) * math.sqrt(variance / n)


def t_quantile(p: float, df: int) -> float:
    """Return the p quantile of Student's t with ``df`` degrees of freedom, for 0.5 <= p < 1, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


def t_cdf(t: float, df: int) -> float:
    """Return the probability below t >= 0: the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    if df % 2 == 0:
        term = total = sine
        for k in range(1, df // 2):
            term *= cosine**2 * (2 * k - 1) / (2 * k)
            total += term
        return 0.5 + total / 2
    term, total = sine * cosine, theta
    for k in range(1, (df + 1) // 2):
        total += term
        term *= cosine**2 * 2 * k / (2 * k + 1)
    return 0.5 + total / math.pi
