"""Imports go down only, and what is slow or optional is imported by those who need it, when they need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2lab

SOURCE = Path(gpt2lab.__file__).parent
LAYERS = (
    *("errors", "files formatting", "hub runtime", "plots runs", "stories tokenizer", "model", "data imports"),
    *("generation inspection llama_cpp training", "evaluation console", "lab", "compare", "report"),
    *("learn server", "cli"),
    "__main__",
)
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts.split()}
"""A part may import parts of lower levels only. Parts of one level do not know one another."""
STRANGERS = {("data", "model"), ("model", "tokenizer"), ("model", "runs")}
"""(part, lower part that it does not know all the same)."""
MODULES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
    if path != SOURCE / "__init__.py"
}
"""The syntax tree of each file, by its path."""


def part_of(file: str) -> str:
    """The package below gpt2lab, or the module, that a file belongs to."""
    return file.partition("/")[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The modules that a piece of source imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def libraries(tree: ast.AST) -> set[str]:
    """The top-level packages that a piece of source imports."""
    return {name.partition(".")[0] for name in imported(tree)}


def test_every_part_has_its_level() -> None:
    assert {part_of(file) for file in MODULES} <= LEVELS.keys()


@pytest.mark.parametrize("file", MODULES)
def test_imports_go_down_only(file: str) -> None:
    part = part_of(file)
    others = {name.split(".")[1] for name in imported(MODULES[file]) if name.startswith("gpt2lab.")} & LEVELS.keys()
    for other in others - {part}:
        assert LEVELS[other] < LEVELS[part], f"{part} imports {other}"
        assert (part, other) not in STRANGERS, f"{part} imports {other}"


def test_libraries_are_imported_by_those_who_need_them_when_they_need_them() -> None:
    assert {part_of(file) for file, tree in MODULES.items() if "tyro" in libraries(tree)} == {"cli"}
    for file, tree in MODULES.items():
        at_once = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not libraries(at_once) & {"matplotlib", "transformers", "tokenizers"}, file
        assert not libraries(at_once) & {"starlette", "uvicorn"} or part_of(file) == "server", file
        if part_of(file) in ("model", "data", "tokenizer", "training", "evaluation"):
            assert not libraries(tree) & {"rich", "tyro", "jinja2"}, f"{file} needs no terminal"


COMMANDS = ("", "--help", "--version", "sample --help", "data prepare --help", "train --help")
"""Command lines that answer at once; the first is the import of the package alone."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that are loaded after each command, in one process that runs one after the other."""
    lines = ["import sys, gpt2lab", "print('LOADED', *sys.modules)", "import gpt2lab.cli.main"]
    for command in COMMANDS[1:]:
        lines += [f"try: gpt2lab.cli.main.main({command.split()})", "except SystemExit: pass", lines[1]]
    said = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    modules = [line.split()[1:] for line in said.splitlines() if line.startswith("LOADED ")]
    return {command: set(names) for command, names in zip(COMMANDS, modules, strict=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_the_package_do_not_wait_for_torch(command: str, loaded: dict[str, set[str]]) -> None:
    assert not loaded[command] & {"torch", "matplotlib"}
    if not command:
        assert not loaded[command] & {"numpy", "rich", "tyro", "tiktoken", "regex"}


def test_the_names_of_the_package_are_those_of_its_parts() -> None:
    for name in gpt2lab.__all__:
        assert getattr(gpt2lab, name).__module__.startswith("gpt2lab.")
    with pytest.raises(AttributeError, match="no attribute 'GTP'"):
        _ = gpt2lab.GTP  # type: ignore[attr-defined]
