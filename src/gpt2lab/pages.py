"""HTML pages and other text from the templates: a page is one file that includes its style sheet and loads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import gpt2lab

GENERATOR = "gpt2lab report"
"""The generator tag of a file: files with it are ours and may be replaced."""
TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page(template: str, **values: Any) -> str:
    """Fill an HTML template; ``css`` is the style sheet that all of them share."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment.globals.update(css=css, generator=GENERATOR, version=gpt2lab.__version__, **values)
    return printable(environment.get_template(template).render())


def markdown_page(template: str, **values: Any) -> str:
    """Fill a Markdown template; the filter ``cell`` escapes a text for a table."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())
    return environment.get_template(template).render(version=gpt2lab.__version__, **values)


def printable(text: str) -> str:
    """Replace characters that a page cannot hold: control characters by their symbols, lone surrogates by U+FFFD."""
    visible = _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)
    return visible.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
