"""Text for people: numbers rounded and with their unit, and pages from the templates.

A page is one HTML file that includes its style sheet and loads nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpt2lab

GAP = "\u00a0"
"""Between a number and its unit, where no line may break."""
MISSING = "not measured"
GENERATOR = "gpt2lab report"
"""The generator tag of a file: files with it are ours and may be replaced."""
TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(n: float) -> str:
    """Return an integer with thousands separators: 12,345."""
    return f"{n:,.0f}"


def plural(n: float, noun: str) -> str:
    """Return a count with its noun: 1 layer, 12 layers."""
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def short(n: float) -> str:
    """Return a large count to three digits: 870 k, 12.3 M, 1.56 B."""
    return _scaled(n, {"B": 1e9, "M": 1e6, "k": 1e3}, GAP) or count(n)


def in_words(n: float) -> str:
    """Return a large count to three digits with its unit spelled out: 10.4 billion."""
    return _scaled(n, {"billion": 1e9, "million": 1e6, "thousand": 1e3}) or count(n)


def size(n_bytes: float) -> str:
    """Return a number of bytes to three digits, in powers of 1,000 as in data sheets: 30.6 GB."""
    return _scaled(n_bytes, {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}) or f"{count(n_bytes)} bytes"


def memory(mebibytes: float) -> str:
    """Return an amount of memory: 437 MiB, 1.32 GiB."""
    return f"{mebibytes / 1024:.2f}{GAP}GiB" if mebibytes >= 1024 else f"{mebibytes:.0f}{GAP}MiB"


def duration(seconds: float) -> str:
    """Return a time: 47 s, 2 min 31 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{GAP}s" if seconds < 10 else f"{whole}{GAP}s"
    if whole < 3600:
        return f"{whole // 60}{GAP}min{GAP}{whole % 60:02d}{GAP}s"
    return f"{whole // 3600}{GAP}h{GAP}{whole % 3600 // 60:02d}{GAP}min"


def percent(x: float) -> str:
    """Return a number of percent: 11.8 %."""
    return f"{x:.1f}{GAP}%" if math.isfinite(x) else "not finite"


def number(x: float, digits: int = 4) -> str:
    """Return a number to some significant digits, without an exponent unless it is very small."""
    if not math.isfinite(x):
        return "not finite"
    if x == 0 or 1e-2 <= abs(x) < 10**digits:
        return _digits(x, digits)
    if abs(x) >= 10**digits:
        return count(x)
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return _power_of_ten(mantissa.rstrip("0").removesuffix("."), exponent)


def setting(value: Any) -> str:
    """Return the value of an option: yes and no, "not set" for None, numbers as they were given."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):  # the shortest form that is the same number
        mantissa, _, exponent = repr(value).partition("e")
        return _power_of_ten(mantissa, exponent) if exponent else mantissa.removesuffix(".0")
    return str(value) if value != "" else "empty"


def _power_of_ten(mantissa: str, exponent: str) -> str:
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}{GAP}×{GAP}{power}"


def _scaled(n: float, units: Mapping[str, float], gap: str = " ") -> str:
    """Return ``n`` in the largest unit that it reaches when rounded, or nothing if it reaches none."""
    for unit, amount in units.items():
        if n >= 0.9995 * amount:
            return f"{_digits(n / amount, 3)}{gap}{unit}"
    return ""


def _digits(x: float, digits: int) -> str:
    """Round to significant digits and keep trailing zeros: they show the precision."""
    if x == 0:
        return "0"
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])  # of the rounded number: 9.9996 has that of 10.00
    return f"{x:,.{max(0, digits - 1 - exponent)}f}"


def page(template: str, **values: Any) -> str:
    """Fill a template: in HTML, ``css`` is the shared style sheet; in Markdown, ``cell`` escapes a text for a table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    html = template.endswith(".html.jinja")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=html,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment.globals.update(css=css, generator=GENERATOR, version=gpt2lab.__version__, **values)
    return printable(environment.get_template(template).render())


def folded(text: str) -> str:
    """Replace each run of more than four line breaks by their number: a model that loops must not fill a page.

    >>> folded("The end" + 96 * chr(10) + "x")
    'The end\\n↵ × 96\\nx'
    """
    return re.sub(r"\n(?:[ \t]*\n){4,}", lambda run: f"\n↵ × {run[0].count(chr(10))}\n", text)


def printable(text: str) -> str:
    """Replace characters that a page cannot hold: control characters by their symbols, lone surrogates by U+FFFD."""
    visible = _CONTROL.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)
    return visible.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
