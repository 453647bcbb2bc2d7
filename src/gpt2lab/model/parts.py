"""Parts of a model by name: those that are built in, and a user's own, from a file that ``--import`` names.

    MASKS["dilated"] = dilated       --model.mask dilated         a function that returns a `Mask`
    FEED_FORWARDS["mine"] = Mine     --model.feed-forward mine    a module, Mine(config), from (B, T, C) to (B, T, C)
    BLOCKS["mine"] = Mine            --model.block mine           a module, Mine(config, layer), usually a `Block`
    NETWORKS["mine"] = Mine          --model FILE:Mine            a module, Mine(config): see language_model.py

A model's configuration holds the names, and ``import_sha256``, the file that defines those that are not built in. If
two files define one name, each model keeps the part of its own file.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2lab.errors import InputError, did_you_mean, located, out_of_memory
from gpt2lab.model.masks import MASKS

if TYPE_CHECKING:  # the configuration imports this module, and --help must not wait for torch
    import torch
    from torch import nn

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

Part: TypeAlias = Callable[..., Any]
Key: TypeAlias = tuple[str, str]
"""The option that names a part, and its name."""

FEED_FORWARDS: dict[str, Part] = {}
"""Feed-forward layers of your own by their name in the configuration; add yours in a file that ``--import`` names."""
BLOCKS: dict[str, Part] = {}
"""Your own blocks, by name."""
NETWORKS: dict[str, Part] = {}
"""Whole models of your own, by name; ``--model FILE:CLASS`` adds the class."""
REGISTRIES: dict[str, dict[str, Part]] = {
    "mask": MASKS,
    "feed_forward": FEED_FORWARDS,
    "block": BLOCKS,
    "network": NETWORKS,
}
"""By the option of the configuration that names a part."""
MODULES = ("feed_forward", "block")
"""Those whose parts have parameters."""
IMPORTED: dict[str, dict[Key, Part]] = {}
"""The parts of each imported file, by its SHA-256."""


def known() -> dict[Key, Part]:
    """Return every part in the registries."""
    return {(kind, name): part for kind, parts in REGISTRIES.items() for name, part in parts.items()}


BUILT_IN = frozenset(known())


def named_in(options: Mapping[str, Any]) -> list[Key]:
    """Return the parts that the options of a configuration name; layers may take several masks in turn."""
    given = {kind: str(name) for kind in REGISTRIES if (name := options.get(kind)) is not None}
    return [(kind, name.strip()) for kind, names in given.items() for name in names.split(",")]


def find_part(key: Key, sha256: str | None) -> Part:
    """Return a part, for a model whose configuration names an imported file, or none.

    Raises:
        InputError: There is no such part (the nearest is named), or the file has not been imported.
    """
    (kind, name), how = key, "gpt2lab train --import FILE (with --resume for a run that exists)"
    if key not in BUILT_IN and sha256 is not None and sha256 not in IMPORTED:
        raise InputError(f"{kind} {name} is in the file with SHA-256 {sha256}, which is not imported; give it to {how}")
    parts = known() | IMPORTED.get(sha256 or "", {})
    if key not in parts:
        names = [own for option, own in parts if option == kind]
        choose = f"choose from {', '.join(names)}, or give its file to" if names else "give its file to"
        raise InputError(f'unknown {kind} "{name}"{did_you_mean(name, names)}; {choose} {how}')
    return parts[key]


def origin_of(keys: list[Key], sha256: str | None) -> str | None:
    """Return the SHA-256 of the imported file that a model's own parts are from; None if they are from none.

    It is the one given if that file has them or has not been imported, else that of the file imported last.

    Raises:
        InputError: They are from different files.
    """
    own = [key for key in keys if key not in BUILT_IN]
    if sha256 is not None and own and IMPORTED.get(sha256, dict.fromkeys(own)).keys() >= set(own):
        return sha256
    now = known()
    latest = [*reversed(IMPORTED.items())]
    files = {key: next((file for file, parts in latest if parts.get(key, 0) is now.get(key)), None) for key in own}
    if len(set(files.values())) > 1:
        first, second, *_ = {file: f"{kind} {name}" for (kind, name), file in files.items()}.values()
        raise InputError(f"{first} and {second} are from different files; define them in one")
    return next(iter(files.values()), None)


@contextmanager
def blamed(key: Key, part: Part) -> Iterator[None]:
    """Turn any error of a user's class into one line with its option, name, class, file and line."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        file = getattr(sys.modules.get(getattr(part, "__module__", "")), "__file__", None) or ""
        name = getattr(part, "__qualname__", repr(part))
        named = "" if name == key[1] else f" ({name})"
        raise InputError(f'{key[0]} "{key[1]}"{named}: {located(error, file)}') from error


def make_part(kind: str, config: GPTConfig, *layer: int) -> nn.Module:
    """Make the feed-forward layer, or the block of a layer, of a user's own that a configuration names.

    Raises:
        InputError: It cannot be made, or is not a module.
    """
    from torch.nn import Module

    key = kind, getattr(config, kind)
    part = find_part(key, config.import_sha256)
    with blamed(key, part):
        try:
            module = part(config, *layer)
        except Exception as error:
            if " meta " not in str(error):
                raise
            why = "a class is also made on the meta device, to count its parameters; read no values in __init__"
            raise TypeError(f"{error} ({why})").with_traceback(error.__traceback__) from None
        if not isinstance(module, Module):
            raise TypeError(f"{module!r:.60} is not a torch.nn.Module")
    return module


def matrix_shapes(kind: str, config: GPTConfig, *layer: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the matrices of a user's own part; a parameter of more dimensions is a stack of them."""
    return _matrix_shapes(find_part((kind, getattr(config, kind)), config.import_sha256), kind, config, *layer)


@functools.cache
def _matrix_shapes(part: Part, kind: str, config: GPTConfig, *layer: int) -> tuple[tuple[int, ...], ...]:
    """Do so once for each class: a notebook may redefine the one that the configuration names."""
    import torch

    with torch.device("meta"):
        return tuple(tuple(p.shape) for p in make_part(kind, config, *layer).parameters() if p.dim() > 1)


def check_parts(model: GPT) -> None:
    """Run a user's own parts, and the model that they are in, on a few positions; the model is in evaluation mode.

    Raises:
        InputError: A part fails, returns another shape, NaN or infinity, looks ahead, or remembers earlier positions by
            other means than the attention's cache, so that sampling would differ from training.
    """
    import torch

    config, device = model.config, model.wte.weight.device
    keys = _own_modules(model)
    if not keys:
        return
    tokens = _few_tokens(model)
    T = tokens.shape[1]
    with _on_reference(model), torch.no_grad():
        if config.feed_forward is not None:
            with blamed(keys[0], find_part(keys[0], config.import_sha256)):
                x = torch.randn(1, T, config.n_embd, device=device)
                _require_shape(x, make_part("feed_forward", config).eval()(x))
        with blamed(keys[-1], find_part(keys[-1], config.import_sha256)):  # the block, if there is one
            hooks = [block.register_forward_hook(_require_finite) for block in model.h]
            model.hidden(tokens)
            for hook in hooks:
                hook.remove()
        if T > 1 and not config.looks_ahead:
            with moved(model.h[0]):
                _check_dependencies(model, _named(keys), tokens)


def check_gradients(model: GPT) -> None:
    """Require that training reaches every parameter of a user's own parts; the model is in its own mode.

    DDP stops at one that is never used. Sparse experts get a second try, with more tokens.

    Raises:
        InputError: A parameter that requires a gradient gets none in any layer.
    """
    keys = _own_modules(model)
    if not keys:
        return
    unused, before = list[str](), [(buffer, buffer.clone()) for buffer in model.buffers()]
    for rows in (1, 1024 // model.config.n_layer):
        with blamed(keys[-1], find_part(keys[-1], model.config.import_sha256)):
            unused = _without_gradient(model, _few_tokens(model, max(1, rows)))
        if not unused:
            break
    for buffer, value in before:
        buffer.copy_(value)
    if unused:
        raise InputError(
            f"{_named(keys)}: {unused[0]} gets no gradient, since forward does not use it; use it, remove it, or set "
            "its requires_grad to False"
        )


def _without_gradient(model: GPT, tokens: torch.Tensor) -> list[str]:
    """Return the names inside a block of the trained parameters that get no gradient in any layer."""
    import torch

    blocks = model.h[: model.config.n_layer]
    trained = [(name, p) for block in blocks for name, p in block.named_parameters() if p.requires_grad]
    read = [model.wte.weight, *(parameter for _, parameter in trained)]
    with _on_reference(model), torch.enable_grad():
        _, *gradients = torch.autograd.grad(model.hidden(tokens).sum(), read, allow_unused=True)
    reached = {name for (name, _), gradient in zip(trained, gradients, strict=True) if gradient is not None}
    return [name for name, _ in trained if name not in reached]


def _own_modules(model: GPT) -> list[Key]:
    """Return the parts to check; a model on the meta device has no values to do so."""
    return [key for key in model.config.own_parts if key[0] in MODULES and model.wte.weight.device.type != "meta"]


def _named(keys: list[Key]) -> str:
    return " and ".join(f'{kind} "{name}"' for kind, name in keys)


def _few_tokens(model: GPT, B: int = 1) -> torch.Tensor:
    """Return tokens (B, T)."""
    import torch

    T = min(4, model.config.n_ctx)
    return torch.arange(B * T, device=model.wte.weight.device).view(B, T) % model.config.vocab_size


@contextmanager
def _on_reference(model: GPT) -> Iterator[None]:
    """Run the model with the plain kernel, in fp32, without effect on later random numbers."""
    import torch

    config, device = model.config, model.wte.weight.device.type
    model.config = dataclasses.replace(config, kernel="reference")
    try:
        with torch.random.fork_rng([]), torch.autocast(device, enabled=False):
            yield
    finally:
        model.config = config


def _require_shape(x: torch.Tensor, y: object) -> None:
    shape = tuple(getattr(y, "shape", ())) or f"{y!r:.60}"
    if shape != tuple(x.shape):
        raise TypeError(f"forward returns {shape} for an input of shape {tuple(x.shape)}")


def _require_finite(block: nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> None:
    _require_shape(inputs[0], y)
    if not bool(y.isfinite().all()):
        raise ValueError("forward returns NaN or infinity")


@contextmanager
def moved(module: nn.Module) -> Iterator[None]:
    """Add random numbers to the parameters inside the block: those that start at 0 would hide what depends on them."""
    import torch

    before = [parameter.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    try:
        yield
    finally:
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.copy_(value)


def _check_dependencies(model: GPT, parts: str, tokens: torch.Tensor) -> None:
    """Raise `InputError` unless earlier positions are independent of the last, and the cache changes nothing."""
    import torch

    changed, cache = tokens.clone(), model.new_cache(1)
    changed[0, -1] = 0
    whole, other = model.hidden(tokens), model.hidden(changed)
    cached = torch.cat([model.hidden(token, cache=cache) for token in tokens.split(1, dim=1)], dim=1)
    close = functools.partial(torch.allclose, rtol=1e-3, atol=1e-3, equal_nan=True)
    if not close(whole[:, :-1], other[:, :-1]):
        raise InputError(f"{parts} lets a position depend on later ones, which it is to predict: the loss would leak")
    if not close(whole, cached):
        raise InputError(
            f"{parts} depends on earlier positions otherwise than by attention, whose cache holds all that sampling "
            "knows of them; compute each position by itself, and hand all arguments of forward on to attention"
        )
