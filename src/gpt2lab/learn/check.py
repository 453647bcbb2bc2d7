"""Whether a part is right, and if not, why: its outcomes beside the reference's and those of known mistakes.

A part is right if on every case it returns what the reference returns, leaves its arguments as the reference leaves
them, and has the same gradient, all to rounding. Otherwise the verdict says, in this order,

    whose output it is               that of a mistake of the catalogue (mistakes.py), equal on every case
    where it differs first           type, dtype, shape, NaN, then the first index with both values
    which inputs it should not read  a later position, another row
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from gpt2lab.learn import cases, gpt2, mistakes
from gpt2lab.learn.outcomes import Function, Observation, Other, decode, decoded, encode, floating, observe, probes_of

Status = Literal["right", "wrong", "missing", "error", "limit"]
RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""Rounding: right code may compute parts of a float64 result, such as the angles of rotary positions, in float32."""


@dataclass(frozen=True)
class Verdict:
    """What is said about one part."""

    part: str
    status: Status
    """right; wrong: another result; missing: not there or not implemented; error: it raised or broke the process;
    limit: it took too long or too much memory."""
    says: str = ""
    """Why it is not right, in one line."""
    detail: str = ""
    """More about it: the arguments of the call, what the output depends on."""
    output: str = ""
    """The first 10 kB of what the part printed."""
    mistake: str = ""
    """The key of the mistake of the catalogue whose result it has, if it has that of one."""

    @property
    def right(self) -> bool:
        """Whether the part is right."""
        return self.status == "right"


def judge(part: str, given: Observation) -> Verdict:
    """Judge what a part did on its cases (decoded)."""
    expected = _observed(part, getattr(gpt2, part))
    if (len(given.outcomes), len(given.probes)) != (len(expected.outcomes), len(expected.probes)):
        raise ValueError(f"the number of outcomes is not that of the cases of {part}")
    number = next((i for i, pair in enumerate(expected.outcomes) if not same(given.outcomes[i], pair)), None)
    wrong_gradient = _wrong_gradient(part, given, expected) if number is None else ""
    if number is None and not wrong_gradient:
        return Verdict(part, "right")
    call = _call(part, number or 0)
    if number is not None and given.varies:
        return Verdict(part, "wrong", "It returns something else each time it is called: is dropout on?", call)
    for mistake in mistakes.MISTAKES:
        variant = _of_mistake(mistake) if mistake.part == part else None
        if variant is None or not same(given.outcomes, variant.outcomes):
            continue
        if number is not None:
            return Verdict(part, "wrong", f"Your output is that of {mistake.says}.", call, mistake=mistake.key)
        if same(given.gradients, variant.gradients):
            says = f"The output is right, but its gradient is that of {mistake.says}."
            return Verdict(part, "wrong", says, call, mistake=mistake.key)
    if number is None:
        return Verdict(part, "wrong", f"The output is right, but {wrong_gradient}.", call)
    says = _difference_of_case(part, number, given.outcomes[number], expected.outcomes[number])
    return Verdict(part, "wrong", says, "\n".join([call, *_dependence(part, given, expected)]))


def same(given: Any, expected: Any) -> bool:
    """Return whether two values are equal to rounding, in their types, shapes and entries."""
    return difference(given, expected) is None


def difference(given: Any, expected: Any, where: str = "") -> str | None:
    """Return where a value first differs from another and how, or None if they are equal to rounding.

    Lists and tuples are alike, and so are a number and a tensor without dimensions.
    """
    if _kind(given) == "tensor" and _kind(expected) in ("number", "bool") and given.dim() == 0:
        return difference(given.item(), expected, where)
    if _kind(given) != _kind(expected):
        return f"{_at(where)}{_described(given)} given, {_described(expected)} expected"
    if compare := _COMPARE.get(_kind(expected)):
        return compare(given, expected, where)
    return None if given == expected else f"{_at(where)}{_described(given)} given, {_described(expected)} expected"


def _dict_difference(given: dict[Any, Any], expected: dict[Any, Any], where: str) -> str | None:
    for key in [*expected, *given]:
        if not (key in given and key in expected):
            return f"{_at(where)}{key!r} is {'missing' if key in expected else 'one too many'}"
        if says := difference(given[key], expected[key], f"{where}[{key!r}]"):
            return says
    return None


def _list_difference(given: Sequence[Any], expected: Sequence[Any], where: str) -> str | None:
    for i, (mine, theirs) in enumerate(zip(given, expected, strict=False)):
        if says := difference(mine, theirs, f"{where}[{i}]"):
            return says
    return None if len(given) == len(expected) else f"{_at(where)}length {len(given)} given, {len(expected)} expected"


def _tensor_difference(given: torch.Tensor, expected: torch.Tensor, where: str) -> str | None:
    if given.shape != expected.shape:
        return f"{_at(where)}shape {tuple(given.shape)} given, {tuple(expected.shape)} expected"
    if given.dtype != expected.dtype:
        return f"{_at(where)}dtype {_dtype(given)} given, {_dtype(expected)} expected"
    wrong = _wrong_entries(given, expected)
    if not wrong.any():
        return None
    nan = wrong & given.isnan()
    index = tuple(int(i) for i in (nan if nan.any() else wrong).nonzero()[0])
    here, share = (f"at {list(index)} ", f" ({int(wrong.sum())} of {wrong.numel()} entries)") if index else ("", "")
    values = f"{_number(given[index].item())} given, {_number(expected[index].item())} expected"
    return f"{_at(where)}{here}{values}{share}{_factor(given, expected)}"


def _wrong_entries(given: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return where two tensors of one shape and dtype differ by more than rounding."""
    if not expected.is_floating_point():
        return given != expected
    finite = expected[expected.isfinite()]
    scale = max(1.0, finite.abs().max().item()) if len(finite) else 1.0
    return ~torch.isclose(given, expected, rtol=RELATIVE, atol=ABSOLUTE * scale, equal_nan=True)


def _factor(given: torch.Tensor, expected: torch.Tensor) -> str:
    """Return the number by which all entries are too large, if there is one."""
    nonzero = expected != 0
    if not expected.is_floating_point() or int(nonzero.sum()) < 2:
        return ""
    factor = (given[nonzero][0] / expected[nonzero][0]).item()
    if not math.isfinite(factor) or _wrong_entries(given, factor * expected).any():
        return ""
    return f"; every entry is {_number(factor)} times the expected one"


def _number_difference(given: float, expected: float, where: str) -> str | None:
    return None if _close(given, expected) else f"{_at(where)}{_number(given)} given, {_number(expected)} expected"


_COMPARE: Mapping[str, Callable[[Any, Any, str], str | None]] = {
    "dict": _dict_difference,
    "list": _list_difference,
    "tensor": _tensor_difference,
    "number": _number_difference,
}


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _close(given: float, expected: float) -> bool:
    if given == expected or (given != given and expected != expected):
        return True
    if isinstance(given, int) and isinstance(expected, int):
        return False
    try:
        return math.isclose(given, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except OverflowError:  # an integer that no float can hold
        return False


def _kind(value: Any) -> str:
    """Return the type of a value as far as it matters."""
    kinds = {torch.Tensor: "tensor", list: "list", tuple: "list", int: "number", float: "number"}
    return kinds.get(type(value), type(value).__name__)


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a list of length {len(value)}"
    if isinstance(value, dict):
        return "a dict"
    if isinstance(value, Other):
        return f"an object of type {value.type}"
    return f"{type(value).__name__} {value!r}" if len(repr(value)) < 60 else f"{type(value).__name__} {value!r:.60}..."


def _number(value: float) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if abs(value) < 10**20 else f"{str(value)[:20]}..."


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@cache
def _observed(part: str, function: Function) -> Observation:
    return decoded(observe(part, function))


@cache
def _of_mistake(mistake: mistakes.Mistake) -> Observation | None:
    """Return what a known mistake does, or None if it raises in some case."""
    try:
        return _observed(mistake.part, mistakes.variant(mistake))
    except Exception:
        return None


def _arguments(part: str) -> list[str]:
    return list(inspect.signature(getattr(gpt2, part)).parameters)


def _call(part: str, number: int) -> str:
    """Return the arguments of a case, as in ``case 1 of 3: attention(q float64 (2, 2, 3, 4), ...)``."""
    every = cases.cases(part)
    named = zip(_arguments(part), every[number], strict=False)
    shown = ", ".join(f"{name} {_argument(value)}" for name, value in named)
    return f"case {number + 1} of {len(every)}: {part}({shown})"


def _argument(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{_dtype(value)} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"dict of {len(value)}"
    plain = isinstance(value, bool | int | float | str | list | tuple) or value is None
    return f"{value!r:.40}" if plain else type(value).__name__


def _difference_of_case(part: str, number: int, given: list[Any], expected: list[Any]) -> str:
    """Return how a pair (returned value, arguments after the call) differs from the reference's."""
    if given[0] is None and expected[0] is not None:
        return f"It returns None, {_described(expected[0])} expected. Is there a return statement?"
    if says := difference(given[0], expected[0], "result" if _kind(expected[0]) in ("list", "dict") else ""):
        return f"Differs from the reference: {says}."
    before = decode(encode(list(cases.cases(part)[number])))
    for name, mine, theirs, original in zip(_arguments(part), given[1], expected[1], before, strict=False):
        if says := difference(mine, theirs, name):
            if same(theirs, original):
                return f"It changes its argument {name}, which belongs to the caller: {says}."
            return f"Differs from the reference after the call: {says}."
    raise AssertionError("the outcomes are the same")


def _dependence(part: str, given: Observation, expected: Observation) -> list[str]:
    """Return which entries of the first case's output depend on an entry of an argument that they should not."""
    base, right = given.outcomes[0][0], expected.outcomes[0][0]
    found = []
    for i, (index, axis) in enumerate(probes_of(part)):
        mine, theirs = _changed(base, given.probes[i], axis), _changed(right, expected.probes[i], axis)
        size, name = cases.cases(part)[0][index].shape[axis], _arguments(part)[index]
        if extra := [entry for entry in mine if entry not in theirs]:
            what, later = ("row", "") if axis == 0 else ("position", ", a later one")
            found.append(f"The output at {what} {extra[0]} depends on {what} {size - 1} of {name}{later}.")
    return found


def _changed(base: Any, probed: Any, axis: int) -> list[int]:
    """Return the entries along an axis in which two outputs differ; none unless they are tensors of one shape."""
    tensors = isinstance(base, torch.Tensor) and isinstance(probed, torch.Tensor)
    if not tensors or base.shape != probed.shape or base.dim() <= axis:
        return []
    parts = zip(base.unbind(axis), probed.unbind(axis), strict=True)
    return [i for i, (before, after) in enumerate(parts) if not same(after, before)]


def _wrong_gradient(part: str, given: Observation, expected: Observation) -> str:
    """Return how the gradient differs, or nothing if it does not."""
    if given.why_no_gradients:
        return f"it has no gradient: {given.why_no_gradients}"
    leaves: Sequence[tuple[int, str]] = list(floating(cases.cases(part)[0]))
    for (index, key), mine, theirs in zip(leaves, given.gradients, expected.gradients, strict=False):
        name = _arguments(part)[index] + (f"[{key!r}]" if key else "")
        if mine is None and theirs is not None:
            return f"no gradient reaches {name}: is there a detach(), .data, .item() or torch.no_grad()?"
        if says := difference(mine, theirs):
            return f"the gradient of {name} is not: {says}"
    return ""
