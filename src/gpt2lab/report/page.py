"""Pages of HTML from templates: each one file with its style sheet in it, which loads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

GENERATOR = "gpt2lab report"
"""What a file's generator tag begins with: the sign that it is ours and may be replaced."""
TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page(template: str, **values: Any) -> str:
    """Fill a template; ``css`` is the style sheet that all of them share."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(css=(TEMPLATES / "report.css").read_text(encoding="utf-8"), **values)
    return printable(environment.get_template(template).render())


def printable(text: str) -> str:
    """Replace what a page cannot hold: control characters by pictures of them, halves of surrogate pairs by U+FFFD."""
    visible = _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)
    return visible.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
