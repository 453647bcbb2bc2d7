"""Fair comparisons: every combination of options and seeds as ordinary runs, and what their differences are worth.

make_plan ── run_plan (each run its own process) ── outcome_of ── compare_outcomes ── write_comparison
"""

from __future__ import annotations

from gpt2lab.lab.compare.execute import in_own_process, in_this_process, run_plan
from gpt2lab.lab.compare.outcome import Outcome, outcome_of
from gpt2lab.lab.compare.plan import Plan, make_plan, parse_arms, parse_variations
from gpt2lab.lab.compare.results import Comparison, compare_outcomes
from gpt2lab.lab.compare.study import compare
from gpt2lab.lab.compare.write import write_comparison

__all__ = [
    "Comparison",
    "Outcome",
    "Plan",
    "compare",
    "compare_outcomes",
    "in_own_process",
    "in_this_process",
    "make_plan",
    "outcome_of",
    "parse_arms",
    "parse_variations",
    "run_plan",
    "write_comparison",
]
