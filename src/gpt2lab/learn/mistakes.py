"""Mistakes that people make, each a small variant of the reference."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from gpt2lab.learn import gpt2
from gpt2lab.learn.outcomes import Function


@dataclass(frozen=True)
class Mistake:
    """A part whose source has ``new`` where the reference's has ``old``."""

    part: str
    key: str
    says: str
    """The end of the sentence "Your output is that of ..."."""
    old: str
    new: str


MISTAKES = (
    Mistake("attention", "no-scale", "attention without the scale 1/sqrt(D)", "scores / math.sqrt(D)", "scores"),
    Mistake("gelu", "erf", "GELU by erf, not tanh", "return", "return torch.nn.functional.gelu(x)\n    return"),
)


def variant(mistake: Mistake) -> Function:
    """Return the function with the mistake."""
    source = inspect.getsource(getattr(gpt2, mistake.part))
    if source.count(f"    {mistake.old}") + source.count(f" {mistake.old}") < 1:
        raise ValueError(f"{mistake.key}: {mistake.old!r} is not in {mistake.part}")
    scope = dict(vars(gpt2))
    exec(f"from __future__ import annotations\n{source.replace(mistake.old, mistake.new)}", scope)
    return scope[mistake.part]
