"""Imports go down only, and what is slow or optional is imported by those who need it, when they need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2lab

SOURCE = Path(gpt2lab.__file__).parent
LEVELS = {
    "errors": 0,
    "files": 1,
    "formatting": 1,
    "hub": 2,
    "runtime": 2,
    "plots": 3,
    "runs": 3,
    "stories": 4,
    "tokenizer": 4,
    "model": 5,
    "data": 6,
    "generation": 7,
    "training": 7,
    "evaluation": 8,
    "console": 8,
    "lab": 9,
    "compare": 10,
    "report": 11,
    "cli": 12,
    "__main__": 13,
}
"""A part may import parts of lower levels only. Parts of one level do not know one another."""
STRANGERS = {("data", "model"), ("model", "tokenizer"), ("model", "runs")}
"""(part, lower part that it does not know all the same)."""
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def part_of(path: Path) -> str:
    """The package below gpt2lab, or the module, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


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


def at_import_time(path: Path) -> set[str]:
    """The modules imported when a file is, for type checkers only left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported(ast.Module(top, []))


def parts_imported(path: Path) -> set[str]:
    """The parts of gpt2lab that a file imports, at any time."""
    names = imported(ast.parse(path.read_text(encoding="utf-8")))
    return {name.split(".")[1] for name in names if name.startswith("gpt2lab.")} & LEVELS.keys()


def test_every_part_has_its_level() -> None:
    assert {part_of(path) for path in MODULES} <= LEVELS.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    part = part_of(path)
    for other in parts_imported(path) - {part}:
        assert LEVELS[other] < LEVELS[part], f"{part} imports {other}"
        assert (part, other) not in STRANGERS, f"{part} imports {other}"


def test_only_the_command_line_imports_tyro() -> None:
    importing = {part_of(p) for p in MODULES if "tyro" in imported(ast.parse(p.read_text(encoding="utf-8")))}
    assert importing == {"cli"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_pictures_are_drawn_with_a_library_that_is_imported_late(path: Path) -> None:
    assert not {name.split(".")[0] for name in at_import_time(path)} & {"matplotlib", "transformers", "tokenizers"}


@pytest.mark.parametrize("module", ["model", "data", "tokenizer", "training", "evaluation"])
def test_the_library_needs_no_terminal(module: str) -> None:
    for path in (SOURCE / module).rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))} & {
            "rich",
            "tyro",
            "jinja2",
        }


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after running a line."""
    script = f"import sys\n{code}\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(said.stdout.rpartition("LOADED")[2].split())


def test_importing_the_package_costs_nothing() -> None:
    assert not loaded_after("import gpt2lab") & {"torch", "numpy", "matplotlib", "rich", "tyro", "tiktoken", "regex"}


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["sample", "--help"], ["data", "prepare", "--help"], ["train", "--help"]],
    ids=" ".join,
)
def test_help_does_not_wait_for_torch(argv: list[str]) -> None:
    code = f"import gpt2lab.cli.main\ntry: gpt2lab.cli.main.main({argv})\nexcept SystemExit: pass"
    assert not loaded_after(code) & {"torch", "matplotlib"}


def test_the_names_of_the_package_are_those_of_its_parts() -> None:
    for name in gpt2lab.__all__:
        assert getattr(gpt2lab, name).__module__.startswith("gpt2lab.")
    with pytest.raises(AttributeError, match="no attribute 'GTP'"):
        _ = gpt2lab.GTP  # type: ignore[attr-defined]
