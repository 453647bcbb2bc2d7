"""Near-identical submissions: found whatever is renamed and moved; right solutions in different styles are not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from solving import SOLUTIONS, solve

from gpt2lab.learn.exercises import FILES, PARTS, start
from gpt2lab.learn.similarity import OURS, alike, streams


def _files(source: Path | ast.Module) -> dict[str, bytes]:
    """Return a solution as files: in each the parts of its chapter and all helpers."""
    body = (ast.parse(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source).body
    chapter = {name: part.file for part in PARTS for name in (part.name, part.class_name)}
    kept = {file: [node for node in body if chapter.get(getattr(node, "name", ""), file) == file] for file in FILES}
    return {file: ast.unparse(ast.Module(nodes, [])).encode() for file, nodes in kept.items()}


class _Renamed(ast.NodeTransformer):
    """Rename the arguments and variables, add docstrings, and reverse the order of the functions."""

    own: frozenset[str] = frozenset()

    def visit_Module(self, node: ast.Module) -> ast.AST:
        functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        others = [each for each in node.body if not isinstance(each, ast.FunctionDef)]
        return ast.Module([*others, *map(self.visit, reversed(functions))], [])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, inside = self.own, list(ast.walk(node))
        stored = {each.id for each in inside if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        self.own = outer | stored | {each.arg for each in inside if isinstance(each, ast.arg)}
        node.body.insert(0, ast.Expr(ast.Constant("What a copy says.")))
        self.generic_visit(node)
        self.own = outer
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(f"my_{node.arg}", None)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(f"my_{node.id}" if node.id in self.own else node.id, node.ctx)


def test_right_solutions_in_three_styles_are_not_alike() -> None:
    assert alike({name: _files(path) for name, path in SOLUTIONS.items()}) == []


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_copy_with_other_names_order_and_comments_is_found(name: str) -> None:
    tree = ast.parse(SOLUTIONS[name].read_text(encoding="utf-8"))
    copy = _files(ast.fix_missing_locations(_Renamed().visit(tree)))
    everyone = {other: _files(path) for other, path in SOLUTIONS.items()}
    (pair,) = alike({**everyone, "copy": copy})
    assert pair.students == (name, "copy")
    assert pair.similarity == 1
    assert len(pair.parts) == len(streams(everyone[name]))


def test_a_copy_of_the_reference_is_found(tmp_path: Path) -> None:
    folder = solve(tmp_path)
    (pair,) = alike({"ann": {file: (folder / file).read_bytes() for file in FILES}})
    assert pair.students == ("ann", OURS)
    assert pair.similarity == 1


def test_one_long_part_that_is_copied_is_found_and_named() -> None:
    einsum, loops = (SOLUTIONS[name].read_text(encoding="utf-8") for name in ("einsum", "loops"))
    longest = max(streams({FILES[0]: loops.encode()}).items(), key=lambda item: len(item[1]))[0]
    copied = next(node for node in ast.parse(loops).body if isinstance(node, ast.FunctionDef) and node.name == longest)
    mixed = ast.parse(f"{einsum}\n\n{ast.unparse(copied)}\n")
    pairs = alike({"ann": _files(SOLUTIONS["loops"]), "bob": _files(mixed)})
    assert [(pair.students, list(pair.parts)) for pair in pairs] == [(("ann", "bob"), [longest])]


def test_short_parts_and_what_learn_start_writes_do_not_count(tmp_path: Path) -> None:
    short = b"def bits_per_byte(nats, n_bytes):\n    return nats / n_bytes / math.log(2)\n"
    assert alike({"ann": {FILES[9]: short}, "bob": {FILES[9]: short}}) == []
    start(tmp_path)
    assert streams({file: (tmp_path / file).read_bytes() for file in FILES}) == {}


@pytest.mark.parametrize("source", [b"def gelu(", b"\0", b"\xff\xfe", b"x = " + b"(" * 5000, b"-" * 100_000 + b"1"])
def test_files_that_are_not_python_are_alike_to_nothing(source: bytes) -> None:
    assert streams({FILES[4]: source}) == {}
