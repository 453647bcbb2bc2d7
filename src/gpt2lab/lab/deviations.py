"""Where a run's architecture is not GPT-2's, in a sentence each: what changes in the equations."""

from __future__ import annotations

from typing import Any

from gpt2lab.lab import words

_POSITION = {
    "sinusoidal": "Positions are fixed sines and cosines (Vaswani et al. 2017, section 3.5) in place of the learned P.",
    "rope": "Positions are rotary (Su et al. 2021): there is no P; before they meet, queries and keys are turned by "
    "angles that grow with their place.",
    "none": "There is no P: order is known by the causal mask alone (Haviv et al. 2022).",
}
_MASK = {
    "window": "A position reads itself and those just before it, {window} in all: M is 0 there only.",
    "global": "A position reads the last {window} and the first {prefix}, which also read one another.",
    "strided": "A position reads the last {window} and every {window}th before them (Child et al. 2019).",
    "prefix": "The first {prefix} positions read one another both ways.",
    "bidirectional": "Every position reads every other: M is 0.",
}


def deviations(model: dict[str, Any]) -> tuple[str, ...]:
    """Return what of a run's model differs from the equations of GPT-2."""
    said = [_POSITION.get(str(model.get("position")), "")]
    heads, shared = model.get("n_head"), model.get("n_kv_head")
    if isinstance(shared, int) and shared != heads:
        said.append(
            f"{words.plural(shared, 'head')} of keys and values {'serves' if shared == 1 else 'serve'} the {heads} "
            "heads of queries (Shazeer 2019; Ainslie et al. 2023)."
        )
    mask = str(model.get("mask", "causal"))
    if mask in _MASK:
        said.append(_MASK[mask].format(window=model.get("window"), prefix=model.get("prefix")))
    elif mask != "causal":
        said.append(f"The mask M is {mask}.")
    if model.get("norm") == "post":
        said.append("Layer norm follows each sum in place of standing before each branch.")
    return tuple(filter(None, said))
