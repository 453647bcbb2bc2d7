"""What pages are made with: colors that can be read, and numbers with their units."""

from __future__ import annotations

import math
import re

import pytest

from gpt2lab import formatting
from gpt2lab.server.pages import STATIC


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1 for text; 1.4.11: 3 to 1 for lines."""
    css = (formatting.TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if scheme == "dark" else "")))
    for paper in (colors["paper"], colors["card"]):
        for name in ("ink", "soft", "accent", "figure-ink"):
            assert contrast(colors[name], paper) >= 4.5, name
        for name in (f"line-{n}" for n in range(1, 7)):
            assert contrast(colors[name], paper) >= 3, name
    assert contrast(colors["warn"], colors["warn-tint"]) >= 4.5
    assert contrast(colors["ink"], colors["tint"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_pages_has_enough_contrast(scheme: str) -> None:
    """The same for `gpt2lab play`, whose text also stands on the darkest colors of its pictures."""
    pairs = re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (STATIC / "style.css").read_text(encoding="utf-8")
    )
    colors = {name: (light if scheme == "light" else dark) for name, light, dark in pairs}
    for paper in ("paper", "card"):
        for name in ("ink", "soft", "accent", "warn"):
            assert contrast(colors[name], colors[paper]) >= 4.5, name
        for name in ("blue", "orange", "green", "edge"):
            assert contrast(colors[name], colors[paper]) >= 3, name
    for ground in ("tint", "surprised", "heat", "heat-against"):
        assert contrast(colors["ink"], colors[ground]) >= 4.5, ground
    assert contrast(colors["on-accent"], colors["accent"]) >= 4.5


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.count(12345.0), "12,345"),
        (formatting.short(950272), "950 k"),
        (formatting.short(12_288_000), "12.3 M"),
        (formatting.short(999_999), "1.00 M"),
        (formatting.short(999), "999"),
        (formatting.number(2.0141), "2.014"),
        (formatting.number(27_390.4), "27,390"),
        (formatting.number(0.25461), "0.2546"),
        (formatting.number(0.00003), "3 × 10⁻⁵"),
        (formatting.number(9.99996), "10.00"),
        (formatting.number(0), "0"),
        (formatting.number(-1.5), "-1.500"),
        (formatting.number(math.inf), "not finite"),
        (formatting.setting(1e-8), "10⁻⁸"),
        (formatting.setting(0.003), "0.003"),
        (formatting.setting(1.0), "1"),
        (formatting.setting(None), "not set"),
        (formatting.setting(False), "no"),
        (formatting.setting(50257), "50,257"),
        (formatting.duration(9.04), "9.0 s"),
        (formatting.duration(151), "2 min 31 s"),
        (formatting.duration(59.7), "1 min 00 s"),
        (formatting.duration(11_100), "3 h 05 min"),
        (formatting.memory(437.2), "437 MiB"),
        (formatting.memory(1351.7), "1.32 GiB"),
        (formatting.percent(11.84), "11.8 %"),
        (formatting.plural(1, "layer"), "1 layer"),
        (formatting.plural(12, "layer"), "12 layers"),
    ],
)
def test_numbers_have_their_unit(text: str, expected: str) -> None:
    assert text.replace("\u00a0", " ") == expected
