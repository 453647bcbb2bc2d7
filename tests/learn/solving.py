"""Complete the exercises in a directory, with the reference or with a solution in another style."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

from gpt2lab.learn.check import Verdict, judge
from gpt2lab.learn.exercises import CLASSES, FILES, REFERENCE, Style, start
from gpt2lab.learn.outcomes import Function, decoded, observe

SOLUTIONS = {name: Path(__file__).parent / "solutions" / f"{name}.py" for name in ("einsum", "loops", "modules")}
"""Right solutions: the parts that each writes in its own way, and helpers; the others are the reference's."""


def solve(directory: Path, solution: Path = REFERENCE, style: Style = "functions") -> Path:
    """Write the exercises and, below the stubs, the definitions that replace them; return the directory."""
    start(directory, style=style)
    _, reference = read(REFERENCE)
    imports, own = read(solution)
    helpers = [text for name, text in own.items() if name not in reference]
    for file in FILES:
        text = (directory / file).read_text(encoding="utf-8")
        defined = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        stubs = [node.name for node in defined if "NotImplementedError" in ast.unparse(node)]
        assert stubs, "each chapter has an exercise"
        behind = [name for name, kind in CLASSES.items() if kind in stubs]  # the classes of the reference call them
        parts = [own.get(name, reference[name]) for name in behind + stubs]
        (directory / file).write_text("\n\n".join([text, *imports, *helpers, *parts]), encoding="utf-8")
    return directory


def check_part(part: str, function: Function) -> Verdict:
    """Judge a function in this process. What it raises is raised."""
    return judge(part, decoded(observe(part, function)))


def read(file: Path) -> tuple[list[str], dict[str, str]]:
    """Return the imports of libraries in a file and its functions and classes by name, as source."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = [
        node
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module in ("__future__", "gpt2lab.learn.gpt2")
    ]
    return (
        [ast.unparse(node) for node in imports if node not in ours],
        {node.name: ast.unparse(node) for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)},
    )


def load(script: Path) -> ModuleType:
    """Import a script that is in no package, such as those of docs/build."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
