"""Markdown with mathematics, for HTML and for PDF.

    text ── markdown-it ──> tokens ─┬─ its HTML, formulas as MathML
                                    └─ a tree of plain values, which report.typ typesets

Formulas stand between ``$`` or ``$$``. HTML in the text stays text, and pictures are links: a report loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

Tree = dict[str, Any]
"""A node: its ``kind``, ``text`` and ``children``, and more by kind."""
TOP_LEVEL = 3
"""Level of the highest heading in a text, below the title of its section."""


@dataclass(frozen=True)
class Markdown:
    """A text in both forms."""

    html: str
    tree: Tree


def read_markdown(text: str) -> Markdown:
    """Read a text.

    Raises:
        InputError: A formula cannot be typeset.
    """
    from markdown_it.tree import SyntaxTreeNode

    parser = _parser()
    tokens = parser.parse(text)
    headings = [token for token in tokens if token.type.startswith("heading")]
    raised = min((int(token.tag[1]) for token in headings), default=1)
    for token in headings:
        token.tag = f"h{min(6, int(token.tag[1]) - raised + TOP_LEVEL)}"
    return Markdown(parser.renderer.render(tokens, parser.options, {}), _tree(SyntaxTreeNode(tokens)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return parser.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        double_inline=True,
        renderer=lambda tex, options: ElementTree.tostring(_mathml(tex, options["display_mode"]), encoding="unicode"),
    )


def _tree(node: SyntaxTreeNode) -> Tree:
    values: Tree = {"kind": node.type, "text": "", "children": [_tree(child) for child in node.children]}
    if node.type.startswith("math"):
        block = node.type != "math_inline"
        return values | {"kind": "formula", "block": block, "children": [_formula(_mathml(node.content, block))]}
    if node.type == "heading":
        values["level"] = int(node.tag[1]) - TOP_LEVEL
    if node.type == "link":
        values["href"] = str(node.attrs["href"])
    if node.type in ("th", "td"):
        values["right"] = node.attrs.get("style") == "text-align:right"
    if node.type == "ordered_list":
        values["start"] = int(node.attrs.get("start", 1))
    if node.type in ("text", "code_inline", "code_block", "fence"):
        values["text"] = node.content
    return values


def _mathml(tex: str, block: bool) -> ElementTree.Element:
    """Convert a formula; an element is named without its namespace, which HTML does not need.

    Raises:
        InputError: It is not TeX, or has a command that is not known.
    """
    from latex2mathml.converter import convert

    source = tex.replace("<", r"\lt ").replace(">", r"\gt ").replace("{aligned}", "{split}")
    try:
        root = ElementTree.fromstring(convert(source, display="block" if block else "inline"))
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            _require_known(element)
    except Exception as error:  # the converter raises what it meets, and lets through what is not well-formed
        why = str(error) or type(error).__name__
        raise InputError(f"the formula ${tex}$ cannot be typeset ({why}); correct it in the notes") from error
    return root


def _require_known(element: ElementTree.Element) -> None:
    """Raise `InputError` for what the converter lets through: a command it does not know, a fraction of one part."""
    if unknown := re.match(r"\\\w+", element.text or ""):
        raise InputError(f"{unknown[0]} is not known")
    if element.tag == "mfrac" and len(element) != 2:
        raise InputError("a fraction needs two parts")


def _formula(element: ElementTree.Element) -> Tree:
    kind = "stack" if element.get("linethickness") == "0" else element.tag
    width = float(element.get("width", "0em").removesuffix("em"))
    upright = element.get("mathvariant") == "normal"
    children = list(_fenced([_formula(child) for child in element]))
    return {
        "kind": kind, "text": element.text or "", "children": children, "upright": upright, "width": width,
        "fence": element.get("fence") == "true",
    }  # fmt: skip


def _fenced(row: list[Tree]) -> Iterator[Tree]:
    """Put a table or a stack and its delimiters into one node, which typst makes equally high."""
    place = 0
    while place < len(row):
        part = row[place : place + 3]
        if len(part) == 3 and part[1]["kind"] in ("mtable", "stack") and part[0]["kind"] == part[2]["kind"] == "mo":
            yield part[0] | {"kind": "fenced", "text": "", "children": part}
            place += 3
        else:
            yield row[place]
            place += 1
