"""Write the ten chapters as notebooks, for Colab and Kaggle: docs/build/notebooks/NN-name.ipynb.

    python docs/build/notebooks.py

A notebook is its chapter in cells. Text and equations are Markdown. Examples are code, each followed by what the
chapter prints, as a comment. Pictures are shown by code, since Colab does not find files beside a notebook. The
exercise is a cell that writes the chapter's file as `gpt2lab learn start` does; the next cell checks it.
"""

from __future__ import annotations

import doctest
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gpt2lab.files import write_atomically
from gpt2lab.learn.exercises import FILES, start

BUILD = Path(__file__).parent
FOLDER = BUILD / "notebooks"
CHAPTERS = sorted(BUILD.glob("[01]?-*.md"))

SETUP = """\
%load_ext autoreload
%autoreload 2

import sys
from pathlib import Path

import gpt2lab
from IPython.display import Image

pictures = Path(gpt2lab.__file__).parents[2] / "docs/images/build"
Path("my-gpt2").mkdir(exist_ok=True)
sys.path.insert(0, "my-gpt2")"""
INSTALL = """\
If gpt2lab is not installed, for example on Colab or Kaggle, clone the repository, run `%pip install -e .` in it, and
restart the session. What you write goes to the directory `my-gpt2`."""
BLOCK = re.compile(
    r"^```(pycon|python)\n(.*?)^```\n|^!\[([^\]]*)\]\(\.\./images/build/(\S+)\.png\)\n", re.DOTALL | re.M
)


def notebook(page: Path) -> nbformat.NotebookNode:
    """Return a chapter as a notebook, without results."""
    chapter = int(page.name[:2])
    cells = list(cells_of(page.read_text(encoding="utf-8"), chapter))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"
    python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=python | {"language_info": {"name": "python"}})


def cells_of(text: str, chapter: int) -> Iterator[nbformat.NotebookNode]:
    """Yield the cells of a chapter's text."""
    title, rest = text.split("\n\n", 1)
    yield new_markdown_cell(f"{title}\n\n{INSTALL}")
    yield new_code_cell(SETUP)
    position = 0
    for block in BLOCK.finditer(rest):
        yield from markdown(rest[position : block.start()])
        position = block.end()
        kind, code, caption, picture = block.groups()
        if picture:
            yield new_code_cell(f'Image(pictures / "{picture}.png")  # {caption}')
        elif kind == "python":
            yield new_code_cell(f"%%writefile my-gpt2/{FILES[chapter - 1]}\n{stubs(chapter)}")
            yield new_code_cell(f"!gpt2lab learn check my-gpt2 {chapter}")
        else:
            yield from examples(code, chapter)
    yield from markdown(rest[position:])


def markdown(text: str) -> Iterator[nbformat.NotebookNode]:
    """Yield a cell of text, if there is any, with its links seen from the notebooks' folder."""
    if text.strip():
        yield new_markdown_cell(re.sub(r"\]\((?!https?:|#)", "](../", text.strip()))


def examples(code: str, chapter: int) -> Iterator[nbformat.NotebookNode]:
    """Yield a cell for each result, as a notebook shows only the last. Other chapters' parts are the reference's."""
    source = ""
    for example in doctest.DocTestParser().get_examples(code):
        source += re.sub(
            r"from (ch\d\d)_\w+ import",
            lambda match: match[0] if int(match[1][2:]) == chapter else "from gpt2lab.learn.gpt2 import",
            example.source,
        )
        if example.want:
            yield new_code_cell(source + "".join(f"# {line}\n" for line in example.want.splitlines())[:-1])
            source = ""
    if source:
        yield new_code_cell(source.rstrip("\n"))


def stubs(chapter: int) -> str:
    """Return a chapter's file as a student gets it who has no other."""
    with tempfile.TemporaryDirectory() as folder:
        return start(Path(folder) / "my-gpt2", [chapter])[0].read_text(encoding="utf-8").rstrip("\n")


def main() -> None:
    """Write all notebooks."""
    FOLDER.mkdir(exist_ok=True)
    for page in CHAPTERS:
        content: Any = nbformat.writes(notebook(page), version=4, indent=1)
        write_atomically(FOLDER / f"{page.stem}.ipynb", (content + "\n").encode())


if __name__ == "__main__":
    main()
