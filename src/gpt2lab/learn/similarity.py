"""Near-identical submissions: what two students wrote, compared part by part as streams of normalized tokens.

Comments, layout, docstrings and annotations are removed, and so is all that learn start writes. The names that a
student chose (arguments, variables, helpers, attributes of self) become one symbol. The rest is cut into runs::

    weights = scores.softmax(-1)             v = v . softmax ( - 1 )
                                             {v = v . softmax (}, {= v . softmax ( -}, ..

The similarity of two streams is Dice's: twice the runs in common, over the runs of both. So the order of functions and
statements matters little. Right solutions of a short part are alike by nature, so a pair is judged by all parts that
both wrote, weighted by length, or by a long part. See Schleimer et al., "Winnowing" (SIGMOD 2003), sections 1 and 2.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from gpt2lab.learn.exercises import CLASSES, FILES, GIVEN, PARTS, REFERENCE

RUN = 6
"""Tokens of a run."""
OURS = "the reference, gpt2.py"
"""Stands for the reference among the students."""
ALIKE, LONG = 0.8, 150
"""A pair is alike from this similarity on, over at least so many tokens."""
MOST_HELPERS = 100
"""Helpers that are followed: nobody's file may take the grader hours."""
Runs = Counter[tuple[str, ...]]
ALL = tuple(part.name for part in PARTS)
_OURS = set(ALL) | set(CLASSES.values()) | GIVEN


@dataclass(frozen=True)
class Pair:
    """Two submissions that are alike."""

    students: tuple[str, str]
    similarity: float
    """Of all parts that both wrote, from 0 to 1."""
    tokens: int
    """Length of these parts, of the shorter side."""
    parts: Mapping[str, float]
    """Similarity of each part that is alike, longest part first."""


def alike(submissions: Mapping[str, Mapping[str, bytes]], parts: Collection[str] = ALL) -> list[Pair]:
    """Return the pairs of submissions (files by name) that are alike in some parts, the most similar first.

    The reference is one of the submissions: it comes with gpt2lab.
    """
    everyone = {**submissions, OURS: dict.fromkeys(FILES, REFERENCE.read_bytes())}
    runs = {student: _runs_of(streams(files, parts)) for student, files in everyone.items()}
    pairs = (_pair(a, b, runs[a], runs[b]) for a, b in combinations(runs, 2))
    return sorted((pair for pair in pairs if pair), key=lambda pair: (-pair.similarity, pair.students))


def _pair(a: str, b: str, runs_a: Mapping[str, Runs], runs_b: Mapping[str, Runs]) -> Pair | None:
    """Return two submissions as a pair if all they wrote is alike, or their long parts."""
    sizes = {part: min(runs_a[part].total(), runs_b[part].total()) for part in runs_a if part in runs_b}
    both = {part: similarity([runs_a[part]], [runs_b[part]]) for part in sorted(sizes, key=lambda part: -sizes[part])}
    close = {part: value for part, value in both.items() if value >= ALIKE}
    whole = similarity([runs_a[part] for part in both], [runs_b[part] for part in both])
    long = sum(sizes[part] for part in close if sizes[part] >= LONG)
    if sum(sizes.values()) < LONG or (whole < ALIKE and not long):
        return None
    return Pair((a, b), whole, sum(sizes.values()), close)


def similarity(left: Iterable[Runs], right: Iterable[Runs]) -> float:
    """Return Dice's coefficient of the runs of several streams, each compared with its counterpart; 0 for none."""
    shared = total = 0
    for a, b in zip(left, right, strict=True):
        shared += (a & b).total()
        total += a.total() + b.total()
    return 2 * shared / total if total else 0.0


def _runs_of(tokens_of: Mapping[str, list[str]]) -> dict[str, Runs]:
    return {part: Counter(zip(*(tokens[i:] for i in range(RUN)), strict=False)) for part, tokens in tokens_of.items()}


def streams(files: Mapping[str, bytes], parts: Collection[str] = ALL) -> dict[str, list[str]]:
    """Return the normalized tokens of the parts that a student wrote, function or class, with the helpers they use."""
    found = {}
    for file in FILES:
        defined = _definitions(files.get(file, b""))
        helpers = {name: node for name, node in defined.items() if name not in _OURS}
        for part in PARTS:
            graded = part.file == file and part.name in parts
            for name in {part.name, part.class_name} & defined.keys() if graded else ():
                nodes = _with_helpers(defined[name], helpers)
                if tokens := [token for node in nodes for token in _tokens(node, helpers)]:
                    found[name] = tokens
    return found


def imported(files: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Return for each chapter what it imports from gpt2lab, except parts of other chapters and what is given."""
    found = {}
    for file in FILES:
        own = {name for part in PARTS if part.file == file for name in (part.name, part.class_name)}
        names = set[str]()
        for node in ast.walk(_parsed(files.get(file, b""))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gpt2lab":
                names |= {alias.name for alias in node.names} - (_OURS - own)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "gpt2lab"}
        if names:
            found[file] = sorted(names)
    return found


def _parsed(source: bytes) -> ast.Module:
    """Return the syntax tree of a file, an empty one if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


Definition = ast.FunctionDef | ast.ClassDef


def _definitions(source: bytes) -> dict[str, Definition]:
    """Return the functions and classes at the top level of a file."""
    return {node.name: node for node in _parsed(source).body if isinstance(node, Definition)}


def _with_helpers(node: Definition, helpers: Mapping[str, Definition]) -> list[Definition]:
    """Return a definition, and after it the helpers that it uses, directly or not."""
    found = [node]
    for each in found:  # which grows
        if len(found) > MOST_HELPERS:
            break
        names = [child.id for child in ast.walk(each) if isinstance(child, ast.Name)]
        found += [helpers[name] for name in dict.fromkeys(names) if name in helpers and helpers[name] not in found]
    return found


def _tokens(node: Definition, helpers: Iterable[str]) -> list[str]:
    """Return the normalized tokens of what stands below the head of a definition."""
    walked = list(ast.walk(node))
    chosen = {child.arg for child in walked if isinstance(child, ast.arg)} | set(helpers)
    chosen |= {child.id for child in walked if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
    chosen |= {child.name for child in walked if isinstance(child, ast.FunctionDef)} - _OURS
    try:
        fresh = ast.parse(ast.unparse(node)).body[0]
        text = ast.unparse(ast.Module(_Normalized(chosen).visit(fresh).body, []))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return [token.string for token in tokens if token.string.strip()]
    except (RecursionError, ValueError, tokenize.TokenError):
        return []


class _Normalized(ast.NodeTransformer):
    """Remove docstrings and annotations, and replace the names that a student chose."""

    def __init__(self, chosen: set[str]) -> None:
        self.chosen = chosen

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._named(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._named(node)

    def _named(self, node: Definition) -> ast.AST:
        if ast.get_docstring(node) is not None:
            del node.body[0]
        node.body = [each for each in node.body if "NotImplementedError" not in ast.unparse(each)]
        node.name = "v"
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg("v")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return ast.Pass()
        return self.generic_visit(ast.Assign([node.target], node.value, lineno=node.lineno))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name("v", node.ctx) if node.id in self.chosen else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        return self.generic_visit(ast.Attribute(node.value, "v" if own else node.attr, node.ctx))
