"""The author's notes: Markdown with mathematics, the same in both kinds of report."""

from __future__ import annotations

import re
from pathlib import Path

from pypdf import PdfReader

from gpt2lab.cli.main import main
from gpt2lab.report.markdown import read_markdown
from gpt2lab.runs import Run

NOTES = r"""# Seen

The *window* **hurts** [a lot](https://example.org/a?b=1&c=2) and costs $5 and $6; `n_ctx` is
small. <script>alert(1)</script> ![picture](https://example.org/x.png) [bad](javascript:alert(1)) [empty]()

### Why
Since $M_{ij} = -\infty$ and $a < b$:

$$\mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{D}}\right), \quad \sum_{t=1}^{T} \hat{x}_t, \quad \binom{n}{k}$$

$$\begin{aligned} f(x) &= \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases} \end{aligned}$$

3. more steps
4. more data
   - of books

> quoted

| variant | loss |
|---|---:|
| rope | 3.39 |

```sh
gpt2lab train --steps 5000
```
"""


def test_notes_are_markdown_with_mathematics_in_both_kinds_of_report(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(NOTES, encoding="utf-8")
    for name in ("r.html", "r.pdf"):
        words = ["report", str(run.path), "--out", str(tmp_path / name), "--notes", str(tmp_path / "notes.md")]
        assert main(words) == 0
    html = (tmp_path / "r.html").read_text(encoding="utf-8").partition('<section class="notes"')[2]
    html = html.partition("</section>")[0]
    for element in (
        "<h3>Seen</h3>", "<h5>Why</h5>", "<em>window</em>", "<strong>hurts</strong>", "<code>n_ctx</code>",
        '<a href="https://example.org/a?b=1&amp;c=2">a lot</a>', '<ol start="3">', "<blockquote>", "<mfrac>", "<msqrt>",
        '<math display="block">', "<mtable", "&lt;script&gt;", '<code class="language-sh">',
    ):  # fmt: skip
        assert element in html, element
    assert "costs $5 and $6" in html and html.count("<math") == 4
    assert not re.search(r"<script|<img|href=.javascript", html)
    pdf = " ".join(" ".join(page.extract_text() for page in PdfReader(tmp_path / "r.pdf").pages).split())
    for text in (
        "Seen The window hurts a lot and costs $5 and $6; n_ctx is small. <script>alert(1)</script>", "3. more steps",
        "variant loss rope 3.39", "gpt2lab train --steps 5000", "softmax", "∞", "else", "quoted",
    ):  # fmt: skip
        assert text in pdf, text
    assert re.search("𝑎 *< *𝑏", pdf), "letters of a formula are italic"


def test_formulas_keep_their_text_and_lengths_and_have_no_links() -> None:
    text = (
        r"$\text{if x < 0 & <b}\!\hspace{1cm}\kern3pt\mkern18mu\rule{1ex}{2pt} \href{javascript:x}{\style{a:b}{y}} < z$"
    )
    html = read_markdown(text).html
    assert "if\u00a0x\u00a0&lt;\u00a00\u00a0&amp;\u00a0&lt;b</mtext>" in html and "<mo>&lt;</mo>" in html
    assert re.findall('<mspace.*? width="([^"]*)', html) == ["-0.1667em", "2.845em", "0.3em", "1em", "0.43em"]
    assert "href" not in html and "style=" not in html


def test_headings_begin_below_the_title_of_the_notes_whatever_their_level() -> None:
    assert re.findall("<h.>", read_markdown("## a\n### b\n###### c\n## d").html) == ["<h3>", "<h4>", "<h6>", "<h3>"]
    assert read_markdown("").html == ""
