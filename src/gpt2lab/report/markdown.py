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
from html import unescape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

Tree = dict[str, Any]
"""A node: its ``kind``, ``text`` and ``children``, and more by kind."""
_ATTRIBUTES = {
    "accent", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence", "form",
    "height", "largeop", "linebreak", "linethickness", "lspace", "mathbackground", "mathcolor", "mathsize",
    "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel",
    "separator", "stretchy", "voffset", "width",
}  # fmt: skip
"""Attributes of a formula that stay: it has no links, and no style of its own."""
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
    from latex2mathml.converter import convert_to_element

    try:
        root = convert_to_element(tex.replace("{aligned}", "{split}"), display="block" if block else "inline")
        for element in root.iter():
            _require_known(element)
            element.text = unescape(element.text or "")
            element.attrib = {name: value for name, value in element.items() if name in _ATTRIBUTES}
            if element.tag == "mspace":
                element.set("width", f"{_em(element.get('width', '0em')):.4g}em")
    except Exception as error:  # the converter raises what it meets
        why = str(error) or type(error).__name__
        raise InputError(f"the formula ${tex}$ cannot be typeset ({why}); correct it in the notes") from error
    return root


def _require_known(element: ElementTree.Element) -> None:
    """Raise `InputError` for what the converter lets through: an unknown command, a stray &, a fraction of one part."""
    if unknown := re.match(r"\\\w+", element.text or ""):
        raise InputError(f"{unknown[0]} is not known")
    if element.tag == "mi" and element.text == "&":
        raise InputError("& stands outside a table; write \\&")
    if element.tag == "mfrac" and len(element) != 2:
        raise InputError("a fraction needs two parts")


_EM = {"em": 1, "ex": 0.43, "mu": 1 / 18, "pt": 0.1, "px": 0.075, "pc": 1.2, "mm": 0.2845, "cm": 2.845, "in": 7.227}
"""Units of length in em, at 10 points an em."""
_NAMED_SPACES = {"thin": 3 / 18, "medium": 4 / 18, "thick": 5 / 18}


def _em(length: str) -> float:
    """Return a length in em; a named one is such as ``negativethinmathspace``."""
    if named := re.fullmatch("(negative)?(thin|medium|thick)mathspace", length):
        return _NAMED_SPACES[named[2]] * (-1 if named[1] else 1)
    known = re.fullmatch(rf"([+-]?\d*\.?\d+) *({'|'.join(_EM)})", length.strip())
    if known is None:
        raise InputError(f"{length} is not a length such as 1em or 3pt")
    return float(known[1]) * _EM[known[2]]


def _formula(element: ElementTree.Element) -> Tree:
    kind = "stack" if element.get("linethickness") == "0" else element.tag
    width = float(element.get("width", "0em").removesuffix("em")) if kind == "mspace" else 0.0
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
