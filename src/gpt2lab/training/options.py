"""The tree of options as flat names, ``model.n_layer``: the names of flags, and how two configurations are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.training.config import TrainConfig, from_dict, to_dict


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every option by the name that its flag has, in the order of the tree."""
    values: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        values |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return values


def with_options(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with options replaced, by their flat names.

    Raises:
        InputError: There is no such option (the nearest is named), or it does not allow the value.
    """
    values = flat(config)
    for name in changes:
        if name not in values:
            raise InputError(f'there is no option "{name}"{did_you_mean(name, values)}; see gpt2lab train --help')
    tree: dict[str, Any] = {}
    for name, value in (values | dict(changes)).items():
        group, _, key = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = value
    return from_dict(tree, where=", ".join(f"{name}={value}" for name, value in changes.items()))


def value_of(text: str) -> Any:
    """Return what a value written on a command line means: ``4``, ``1e-3``, ``true``, ``none``, or text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) else text


def flags(config: TrainConfig) -> list[str]:
    """Return the arguments of ``gpt2lab train`` that make this configuration: what differs from where it starts."""
    start = flat(TrainConfig(preset=config.preset, init=config.init))
    words = ["--preset", config.preset] if config.init is None else ["--init", str(config.init)]
    for name, value in flat(config).items():
        if value == start[name]:
            continue
        group, _, key = name.replace("_", "-").rpartition(".")
        above = f"{group}." if group else ""
        if isinstance(value, bool):
            words.append(f"--{above}{key}" if value else f"--{above}no-{key}")
        else:
            words += [f"--{above}{key}", str(value)]
    return words
