"""What a part does on its cases, as plain values that go through a pipe.

The process that runs a student's code only observes: `observe` calls the function and notes what comes out. The
process that judges (check.py) compares this with what the reference does, so code that patches torch or breaks its
process cannot reach the comparison. Values travel as JSON, never as pickles: `encode` and `decode`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2lab.learn import cases

Function = Callable[..., Any]
LARGEST = 1_000_000
"""Values that an outcome may hold."""
PROBES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "embed": ((0, 0), (0, 1)),
    "rotate": ((0, 0), (0, 2)),
    "attention": ((1, 0), (2, 0), (1, 2), (2, 2)),
    "multi_head_attention": ((0, 0), (0, 1)),
    "layer_norm": ((0, 0), (0, 1)),
    "gelu": ((0, 0), (0, 1)),
    "feed_forward": ((0, 0), (0, 1)),
    "block": ((0, 0), (0, 1)),
    "gpt": ((0, 0), (0, 1)),
    "cached_attention": ((0, 0), (0, 1)),
    "next_logits": ((0, 0),),
}
"""(argument, axis) whose last entry is changed, to see which entries of the output along this axis change with it."""
DIFFERENTIABLE = (
    *("embed", "rotate", "attention", "split_heads", "merge_heads", "multi_head_attention", "layer_norm", "gelu"),
    *("feed_forward", "block", "gpt", "cross_entropy"),
)
"""Parts whose gradient is compared."""
IN_PLACE = ("adamw", "clip", "train_step")
"""Parts that change the tensors of a dict: these are compared, not others that take their place in the dict."""


@dataclass(frozen=True)
class Other:
    """A value that is not compared by what it holds: a function, a generator, an object of the student's own."""

    type: str


@dataclass(frozen=True)
class Observation:
    """What a part did on its cases."""

    outcomes: list[Any] = field(default_factory=list)
    """For each case, the returned value and the arguments after the call; None for a cache or an optimizer's state."""
    probes: list[Any] = field(default_factory=list)
    """What the first case returns with one entry of an argument changed, in the order of `PROBES`."""
    gradients: list[Any] = field(default_factory=list)
    """The gradient of a weighted sum of the output of the first case by each tensor of the arguments, None without."""
    why_no_gradients: str = ""
    varies: bool = False
    """Whether the first case returns something else with another global seed; for the parts of `PROBES` only."""


def observe(name: str, function: Function) -> Observation:
    """Call a part on all its cases; what it prints in further calls is dropped. Raises whatever the function raises."""
    observed = getattr(cases, "OBSERVE", {}).get(name)
    call: Function = (lambda *args: observed(function, *args)) if observed else function
    outcomes = []
    for args in cases.cases(name):
        stores = [_is_store(arg) for arg in args]
        kept = [dict(arg) if name in IN_PLACE and isinstance(arg, dict) else arg for arg in args]
        returned = encode(call(*args))
        after = [None if store else arg for store, arg in zip(stores, kept, strict=True)]
        outcomes.append([returned, encode(after)])
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        probes = [encode(call(*args)) for args in _probed(name)]
        gradients, why = _gradients(name, call) if name in DIFFERENTIABLE else ([], "")
        varies = name in PROBES and _varies(name, call, outcomes[0][0])
    return Observation(outcomes, probes, gradients, why, varies)


def _varies(name: str, call: Function, first: Any) -> bool:
    """Return whether the first case now returns something else than its first result (encoded)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return repr(encode(call(*cases.cases(name)[0]))) != repr(first)  # NaN is not equal to itself, its repr is


def _is_store(arg: Any) -> bool:
    """Return whether a part keeps what it likes in an argument: an empty dict, or a list of them."""
    items = arg if isinstance(arg, list) else [arg]
    return len(items) > 0 and all(isinstance(item, dict) and not item for item in items)


def decoded(observation: Observation) -> Observation:
    """Return an observation with its values in place of their encodings."""
    lists = (observation.outcomes, observation.probes, observation.gradients)
    outcomes, probes, gradients = ([decode(value) for value in each] for each in lists)
    return Observation(
        [list(pair) for pair in outcomes], probes, gradients, observation.why_no_gradients, observation.varies
    )


def _probed(name: str) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of the first case, each time with the last entry of one axis changed."""
    for index, axis in probes_of(name):
        args = cases.cases(name)[0]
        entry = args[index].select(axis, -1)
        if entry.is_floating_point():
            entry += torch.linspace(0.5, 1.5, entry.numel(), dtype=entry.dtype).reshape(entry.shape)
        else:
            entry.copy_((entry + 1) % (args[index].max() + 1))
        yield args


def probes_of(name: str) -> list[tuple[int, int]]:
    """Return the (argument, axis) that are probed: those of `PROBES` that the first case has, with two entries."""
    args = cases.cases(name)[0]
    return [(i, axis) for i, axis in PROBES.get(name, ()) if args[i].dim() > axis and args[i].shape[axis] > 1]


def _gradients(name: str, call: Function) -> tuple[list[Any], str]:
    args = cases.cases(name)[0]
    leaves = [leaf.requires_grad_() for leaf in floating(args).values()]
    try:
        output = call(*args)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
        total = (output * weights).sum()  # of a scalar: grad_outputs would import sympy, for a second
        found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None]
    except (RuntimeError, TypeError, AttributeError) as error:
        return [], f"{type(error).__name__}: {error}".partition("\n")[0]
    return [encode(gradient) for gradient in (found if len(found) == len(leaves) else [None] * len(leaves))], ""


def floating(args: tuple[Any, ...]) -> dict[tuple[int, str], torch.Tensor]:
    """Return the floating-point tensors among arguments, also those in a dict, by argument and key."""
    named = {(i, ""): arg for i, arg in enumerate(args)}
    named |= {(i, key): value for i, arg in enumerate(args) if isinstance(arg, dict) for key, value in arg.items()}
    return {k: v for k, v in named.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def encode(value: Any) -> Any:
    """Return a value as JSON can hold it.

    Raises:
        ValueError: It holds more than a million values.
    """
    left = LARGEST

    def tree(value: Any) -> Any:
        nonlocal left
        left -= value.numel() if isinstance(value, torch.Tensor) else 1
        if left < 0:
            raise ValueError(f"the result holds more than {LARGEST:,} values")
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().reshape(-1).tolist()
            return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "values": flat}
        if isinstance(value, np.generic):
            return tree(value.item())
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list | tuple):
            return {"list": [tree(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[tree(key), tree(item)] for key, item in value.items()]}
        return {"other": type(value).__name__}

    return tree(value)


def decode(tree: Any) -> Any:
    """Return the value of an encoding: tensors, numbers, strings, None, lists, dicts and `Other`.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: It is not an encoding.
    """
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            return [decode(item) for item in tree]
        return tree
    if "tensor" in tree:
        dtype = getattr(torch, tree["tensor"])
        return torch.tensor(tree["values"], dtype=dtype).reshape(tree["shape"])
    if "list" in tree:
        return [decode(item) for item in tree["list"]]
    if "dict" in tree:
        return {_key(decode(key)): decode(item) for key, item in tree["dict"]}
    return Other(str(tree["other"]))


def _key(value: Any) -> Any:
    """Return a decoded value as the key of a dict: a tuple was sent as a list."""
    return tuple(map(_key, value)) if isinstance(value, list) else value
