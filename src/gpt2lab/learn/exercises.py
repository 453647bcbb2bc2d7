"""The exercises: the parts of gpt2.py, and files with their signatures and docstrings for a student to complete.

Everything is read from the source of gpt2.py, which is not imported. In a chapter's file all that is named here as
given stays whole. Every other function is an exercise; in the style ``modules`` a class may stand for it::

    gpt2.py                                  ch03_attention.py
    # Chapter 3: scaled dot-product ..       # Chapter 3: scaled dot-product ..
    def attention(q, k, v, mask=None):       def attention(q, k, v, mask=None):
        .. docstring ..                          .. docstring ..
        D = q.shape[-1]                          raise NotImplementedError
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2lab.errors import InputError, require

Style = Literal["functions", "modules"]
SLUGS = ("bytes", "embeddings", "attention", "heads", "layers", "model", "loss", "optimizer", "sampling", "evaluation")
FILES = tuple(f"ch{chapter:02}_{slug}.py" for chapter, slug in enumerate(SLUGS, 1))
"""The file of each chapter, of chapter 1 first."""
OWN_MODEL = "my_gpt2.py"
"""The file that makes a model of chapters 6 and 7."""
CLASSES = {
    "multi_head_attention": "CausalSelfAttention",
    "layer_norm": "LayerNorm",
    "feed_forward": "FeedForward",
    "block": "Block",
    "gpt": "GPT",
}
"""The class that may be written instead of a function."""
GIVEN = {"Config", "linear", "within", "layers", "parameter_shapes"}
"""The functions and classes that are no exercises."""

# The reference --------------------------------------------------------------------------------------------------------

REFERENCE = Path(__file__).with_name("gpt2.py")
_SOURCE = REFERENCE.read_text(encoding="utf-8")
_LINES = _SOURCE.splitlines()
_HEADINGS = [number for number, line in enumerate(_LINES, 1) if line.startswith("# Chapter ")]


def _chapter(node: ast.stmt) -> int:
    return sum(heading < node.lineno for heading in _HEADINGS)


def _name(node: ast.stmt) -> str:
    """Return the name that a statement defines, or nothing."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""


def _source(first: ast.stmt, last: ast.stmt) -> str:
    """Return the text from one statement, its decorators included, to the end of another."""
    decorators = first.decorator_list if isinstance(first, ast.FunctionDef | ast.ClassDef) else []
    begin = min([first.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(_LINES[begin - 1 : last.end_lineno])


def _signature(function: ast.FunctionDef) -> str:
    arguments = ast.parse(ast.unparse(function)).body[0].args  # type: ignore[attr-defined]
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return f"{function.name}({ast.unparse(arguments)})"


_TREE = ast.parse(_SOURCE).body
_CHAPTER_OF = {_name(node): _chapter(node) for node in _TREE if _name(node)}


@dataclass(frozen=True)
class Part:
    """An exercise."""

    name: str
    """The function in gpt2.py."""
    chapter: int
    """From 1 to 10."""
    signature: str
    """Name and arguments, without types: ``causal_mask(T, S)``."""

    @property
    def file(self) -> str:
        """The name of the chapter's file."""
        return FILES[self.chapter - 1]

    @property
    def class_name(self) -> str | None:
        """The class that may be written instead, if there is one."""
        return CLASSES.get(self.name)


PARTS = tuple(
    Part(node.name, _chapter(node), _signature(node))
    for node in _TREE
    if isinstance(node, ast.FunctionDef) and node.name not in GIVEN
)
"""In the order of gpt2.py."""

# The student's files --------------------------------------------------------------------------------------------------


def start(directory: Path, chapters: Iterable[int] = (), style: Style = "functions") -> list[Path]:
    """Write the files of chapters, by default of all, and `OWN_MODEL` once 6 and 7 are there; return their paths.

    What a file needs of a chapter that is neither written now nor there yet, or that the student writes in the other
    style, it imports from gpt2.py.

    Raises:
        InputError: A chapter is not from 1 to 10, or a file exists, and nothing is written; or the directory cannot be.
    """
    chosen = sorted(set(chapters)) or list(range(1, len(FILES) + 1))
    for chapter in chosen:
        require(1 <= chapter <= len(FILES), "chapter", chapter, f"from 1 to {len(FILES)}")
    names = [FILES[chapter - 1] for chapter in chosen]
    present = {*names, *(name for name in FILES if (directory / name).exists())}
    texts = {name: _stubs(chapter, style, present) for chapter, name in zip(chosen, names, strict=True)}
    if present >= {FILES[5], FILES[6]} and not (directory / OWN_MODEL).exists():
        texts[OWN_MODEL] = OWN_MODELS[style]
    for name in texts:
        if (directory / name).exists():
            raise InputError(f"{directory / name} exists and nothing was written; give another directory or chapters")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}); give another directory") from error
    return [directory / name for name in texts]


def _stubs(chapter: int, style: Style, present: set[str]) -> str:
    """Return the text of a chapter's file."""
    whole = [node for node in _TREE if _chapter(node) == chapter]
    others = CLASSES.values() if style == "functions" else CLASSES
    nodes = [node for node in whole if _name(node) not in others]
    title = _LINES[_HEADINGS[chapter - 1] - 1].strip("#- ")
    page = f"docs/build/{chapter:02}-{SLUGS[chapter - 1]}.md"
    text = f'"""{title}.\n\nRead {page} in the repository of gpt2lab. Replace each NotImplementedError.\n"""\n\n'
    text += _imports(nodes if style == "functions" else whole, chapter, style, present)
    for node in nodes:
        text += ("\n" if isinstance(node, ast.Expr) else "\n\n\n") + _stub(node)
    return text + "\n"


def _stub(node: ast.stmt) -> str:
    """Return a statement at the top level, or in a class, as the student gets it."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name in GIVEN:
        return _source(node, node)
    head = _source(node, node.body[0])
    if isinstance(node, ast.ClassDef):
        return "\n\n".join([head, *map(_stub, node.body[1:])])
    indent = " " * node.body[0].col_offset
    return f"{head}\n{indent}raise NotImplementedError"


def _imports(nodes: list[ast.stmt], chapter: int, style: Style, present: set[str]) -> str:
    """Return the imports of what the reference uses for these parts."""
    used = {node.id for part in nodes for node in ast.walk(part) if isinstance(node, ast.Name)}
    if style == "modules" and chapter <= 6:  # here classes stand for these functions
        used -= CLASSES.keys()
    standard, libraries, others = ["from __future__ import annotations"], list[str](), dict[str, list[str]]()
    for node in copy.deepcopy(_TREE):
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if alias.name in used]
            if node.names:
                line = ast.unparse(node)
                (standard if line.split()[1].split(".")[0] in sys.stdlib_module_names else libraries).append(line)
    for name in sorted(used & _CHAPTER_OF.keys(), key=lambda name: (_module(name, style, present), name)):
        if _CHAPTER_OF[name] != chapter:
            others.setdefault(_module(name, style, present), []).append(name)
    chapters = [f"from {module} import {', '.join(names)}" for module, names in others.items()]
    return "\n\n".join("\n".join(group) for group in (standard, libraries, chapters) if group)


def _module(name: str, style: Style, present: set[str]) -> str:
    """Return where a student's file imports a name of another chapter from."""
    file = FILES[_CHAPTER_OF[name] - 1]
    absent = file not in present or (style == "modules" and name in CLASSES)
    return "gpt2lab.learn.gpt2" if absent else file.removesuffix(".py")


OWN_MODELS: dict[Style, str] = {
    "functions": '''"""Your functions as a model, for gpt2lab train --model my_gpt2.py:GPT."""

import torch
from torch import nn

from ch06_model import gpt
from ch07_loss import cross_entropy, initial_weights


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        for name, tensor in initial_weights(config, torch.default_generator).items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(tensor))

    def forward(self, tokens, targets=None):
        logits = gpt(tokens, dict(self.named_parameters()), self.n_head)
        return logits, None if targets is None else cross_entropy(logits, targets)
''',
    "modules": '''"""Your model with your initial weights, for gpt2lab train --model my_gpt2.py:GPT."""

import torch

import ch06_model
from ch07_loss import initial_weights


class GPT(ch06_model.GPT):
    def __init__(self, config):
        super().__init__(config)
        weights = initial_weights(config, torch.default_generator)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(weights[name.removeprefix("transformer.")])
''',
}
"""The text of `OWN_MODEL`."""
