"""A student's directory, in which every part can be tried by itself.

A chapter file is executed as it stands. Then every part in it is replaced by the reference's, except the one that is
tried: functions find each other among the globals of their module when they are called, so `multi_head_attention` of
the student calls the reference's `split_heads`, while the student's own helpers stay. A later chapter that imports a
part from an earlier one gets the reference's as well.

    with Chapters(directory, {}, print).trying(part) as function:
        function(q, k, v)
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from gpt2lab.errors import located
from gpt2lab.learn import gpt2
from gpt2lab.learn.exercises import FILES, PARTS, Part
from gpt2lab.learn.outcomes import Function

LARGEST_FILE = 2**20
MODULES = {Path(file).stem: file for file in FILES}
"""The file of each chapter, by the name of its module."""


class Unusable(Exception):
    """A part that cannot be tried; the message is one line."""


class Missing(Unusable):
    """A part that is not there."""


class Chapters(MetaPathFinder, Loader):
    """The chapter files of a directory as modules.

    Args:
        directory: The student's directory, absolute.
        broken: Modules that are not to be executed, and why.
        on_load: Called with the name of a module before it is executed, and afterwards with "" or the module that
            imports it.
    """

    def __init__(self, directory: Path, broken: Mapping[str, str], on_load: Callable[[str], None]) -> None:
        self.directory, self.broken, self.on_load = directory, dict(broken), on_load
        self.loading = [""]
        self.own: dict[str, tuple[str, Any]] = {}
        """For each part that the student defines, the name of the function or class, and itself."""
        sys.meta_path.insert(0, self)
        sys.path.append(str(directory))  # last: a file of the student's must not replace one of Python's

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Find the modules of the chapters, whether or not their files exist."""
        if fullname not in MODULES:
            return None
        return spec_from_file_location(fullname, self.directory / MODULES[fullname], loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Execute a chapter file and replace its parts by the reference's. An error in it is kept in ``broken``."""
        name = module.__name__
        if name not in self.broken:
            try:
                self._execute(self.directory / MODULES[name], module)
            except BaseException as error:
                why = self.explain(error)
                self.broken[name] = why if why.startswith(MODULES[name]) else f"{MODULES[name]}: {why}"
        given = vars(module)
        for part in (part for part in PARTS if part.file == MODULES[name]):
            kind = part.class_name or ""
            key = kind if isinstance(given.get(kind), type) else part.name  # a function beside a class is its helper
            if key in given:
                self.own[part.name] = key, given[key]
            given[key] = getattr(gpt2, key)
            given.setdefault(part.name, getattr(gpt2, part.name))
        if name in self.broken:  # a chapter that imports what this file is given can still be tried
            given.update({key: value for key, value in vars(gpt2).items() if key not in given})

    def _execute(self, file: Path, module: ModuleType) -> None:
        if not file.exists():
            raise Missing(f"{file.name} is missing")
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise Unusable(f"{file.name} is not a regular file of at most 1 MiB")
        source = file.read_bytes()
        self.loading.append(module.__name__)
        self.on_load(self.loading[-1])
        try:
            exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
        finally:
            self.loading.pop()
            self.on_load(self.loading[-1])

    @contextmanager
    def trying(self, part: Part) -> Iterator[Function]:
        """Yield the student's function of a part, with the reference's in place of every other.

        Raises:
            Missing: The file does not exist or does not define the part.
            Unusable: The file cannot be executed, or the function has another signature.
        """
        module = importlib.import_module(Path(part.file).stem)
        if why := self.broken.get(module.__name__):
            raise Unusable(why) if (self.directory / part.file).exists() else Missing(why)
        if part.name not in self.own:
            raise Missing(f"{part.file} does not define {' or '.join(filter(None, (part.name, part.class_name)))}")
        key, own = self.own[part.name]
        if own is getattr(gpt2, key):
            raise Missing(f"{key} is the reference's, from gpt2lab.learn.gpt2; write your own")
        function = as_function(part.name, own) if key == part.class_name else own
        if not callable(own):
            raise Unusable(f"{key} is of type {type(own).__name__}; it must be a function or a class")
        if function is own:
            _check_signature(part.name, own)
        vars(module)[key] = own
        try:
            yield function
        finally:
            vars(module)[key] = getattr(gpt2, key)

    def explain(self, error: BaseException) -> str:
        """Return an error in one line, with the place in the student's files where it was raised."""
        if isinstance(error, Unusable):
            return str(error)
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        files += [error.filename or ""] if isinstance(error, SyntaxError) else []
        own = [file for file in files if Path(file).parent == self.directory]
        says = located(error, own[-1] if own else "").removeprefix(f"{self.directory}{os.sep}").rstrip(": ")
        if isinstance(error, ImportError) and (why := self.broken.get(error.name or "")):
            says = f"{says.partition(' (')[0]}, because {why}"
        return says


def as_function(part: str, kind: Callable[..., nn.Module]) -> Function:
    """Return the function that makes a module of a student's class, puts the given weights in and calls it.

    The function raises `Unusable` if the parameters of the class are not those of the part.
    """

    def call(x: Tensor, weights: Mapping[str, Tensor], n_head: int = 1) -> Tensor:
        output = _call(kind(_config(part, x, weights, n_head)), x, weights)
        return output[0] if part == "gpt" and isinstance(output, tuple) else output

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _call(kind(x.shape[-1]), x, {"weight": weight, "bias": bias})

    return layer_norm if part == "layer_norm" else call


def _config(part: str, x: Tensor, weights: Mapping[str, Tensor], n_head: int) -> gpt2.Config:
    """Return the configuration that weights belong to; the context of a layer is longer than its input."""
    if part != "gpt":
        return gpt2.Config(vocab_size=64, n_ctx=x.shape[1] + 3, n_embd=x.shape[-1], n_head=n_head, n_layer=2)
    (vocab_size, n_embd), n_ctx = weights["wte.weight"].shape, len(weights["wpe.weight"])
    return gpt2.Config(vocab_size, n_ctx, n_embd, n_head, n_layer=sum(name.endswith("ln_1.weight") for name in weights))


def _call(module: nn.Module, x: Tensor, weights: Mapping[str, Tensor]) -> Any:
    """Call a module with other weights. Its names may begin with "transformer.", and a tied parameter may have two."""
    parameters = {k.removeprefix("transformer."): (k, p) for k, p in module.named_parameters(remove_duplicate=False)}
    kind = type(module).__name__
    if missing := [name for name in weights if name not in parameters]:
        raise Unusable(f"{kind} has no parameter {', '.join(missing)}; it has {', '.join(parameters) or 'none'}")
    tied = {id(parameters[name][1]) for name in weights}
    if more := [name for name, (_, p) in parameters.items() if id(p) not in tied]:
        raise Unusable(f"{kind} has parameters that GPT-2 does not have there: {', '.join(more)}")
    for name, weight in weights.items():
        if (shape := parameters[name][1].shape) != weight.shape:
            raise Unusable(f"{kind}: {name} has shape {tuple(shape)}, expected {tuple(weight.shape)}")
    module = module.to(next(iter(weights.values())).dtype).eval()
    return functional_call(module, {parameters[name][0]: weight for name, weight in weights.items()}, (x,))


def _check_signature(name: str, function: Function) -> None:
    """Raise `Unusable` unless a function takes the arguments of a part in their order and needs no more."""
    expected = list(inspect.signature(getattr(gpt2, name)).parameters.values())
    try:
        given = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a compiled function need not say
        return
    same_names = [p.name for p in given[: len(expected)]] == [p.name for p in expected]
    same_optional = all(_optional(p) >= _optional(q) for p, q in zip(given, expected, strict=False))
    if not (same_names and same_optional and all(map(_optional, given[len(expected) :]))):
        raise Unusable(f"the signature is {_signature(name, given)}; it must be {_signature(name, expected)}")


def _optional(parameter: inspect.Parameter) -> bool:
    variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return variable or parameter.default is not parameter.empty


def _signature(name: str, parameters: Sequence[inspect.Parameter]) -> str:
    return f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"
