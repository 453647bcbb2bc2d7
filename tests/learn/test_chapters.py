"""docs/build: what a chapter prints is what comes out, its exercises are the reference's, its pictures are drawn."""

from __future__ import annotations

import ast
import doctest
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageChops, ImageStat
from solving import check_part, load

from gpt2lab.cli.main import main
from gpt2lab.learn import gpt2, sandbox
from gpt2lab.learn.check import Verdict
from gpt2lab.learn.exercises import PARTS
from gpt2lab.learn.mistakes import MISTAKES, variant
from gpt2lab.plots import png

BUILD = Path(__file__).parents[2] / "docs" / "build"
CHAPTERS = sorted(BUILD.glob("[01]?-*.md"))
PAGES = sorted(path for path in BUILD.glob("*.md") if path.stem != "mistakes")
REFERENCE = ast.parse(Path(gpt2.__file__).read_text(encoding="utf-8"))


pictures = load(BUILD / "pictures.py")
FOLDER = pictures.FOLDER


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a student who has everything right: they hold the parts of the reference."""
    for part in PARTS:
        name = part.file.removesuffix(".py")
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        setattr(sys.modules[name], part.name, getattr(gpt2, part.name))


@pytest.mark.usefixtures("student")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_prints_is_what_comes_out(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -m doctest PAGE`` in the student's directory does."""
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert failed == 0, capsys.readouterr().out
    assert tried or page not in CHAPTERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_checker_says_in_a_page_is_what_it_prints(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With right verdicts for all parts; that right parts get them is tested with the checker."""

    def check_directory(path: Path, chapters: tuple[int, ...], *limits: float) -> Iterator[Verdict]:
        yield from (Verdict(part.name, "right") for part in PARTS if part.chapter in chapters)

    monkeypatch.setattr(sandbox, "check_directory", check_directory)
    blocks = re.findall(r"```console\n\$ gpt2lab (.+?)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks or page not in CHAPTERS
    for command, shown in blocks:
        assert main(command.split()) == 0
        assert capsys.readouterr().out.strip() == shown.strip()


def test_the_first_page_shows_how_a_mistake_is_named() -> None:
    [mistake] = [mistake for mistake in MISTAKES if (mistake.part, mistake.key) == ("attention", "no-scale")]
    verdict = check_part("attention", variant(mistake))
    assert verdict.says.rstrip(".") in (BUILD / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_the_exercises_of_a_chapter_are_those_of_the_reference(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = {name: code for block in blocks for name, code in interfaces(ast.parse(block)).items()}
    expected = interfaces(REFERENCE)
    assert shown.keys() == {part.name for part in PARTS if part.chapter == int(page.stem[:2])}
    assert shown == {name: expected[name] for name in shown}


def interfaces(tree: ast.Module) -> dict[str, str]:
    """Return signature and docstring of each function of a module."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            returns = "" if node.returns is None else ast.unparse(node.returns)
            found[node.name] = f"({ast.unparse(node.args)}) -> {returns}\n{ast.get_docstring(node)}"
    return found


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_what_the_script_draws(name: str) -> None:
    """But for the number of colors. After a change, run ``python docs/build/pictures.py``."""
    drawn = Image.open(io.BytesIO(png(pictures.PICTURES[name]())))
    kept = Image.open(FOLDER / f"{name}.png")
    assert drawn.size == kept.size
    difference = ImageChops.difference(drawn.convert("RGB"), kept.convert("RGB"))
    assert max(ImageStat.Stat(difference).mean) < 0.3  # of 255


def test_the_script_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FOLDER", tmp_path / "new")
    pictures.main(["masks"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["masks.png"]


def test_what_was_measured_for_pictures_comes_out_again() -> None:
    found, (model, _) = pictures.measured(), pictures.trained()
    assert pictures.memorize(steps=3) == pytest.approx(found["one_batch"][0][:3], abs=1e-3)
    assert pictures.perplexity_by_stride(model, pictures.held_out(1, 40), 64) == pytest.approx(found["stride"][0])


def test_each_picture_stands_in_one_page_and_its_file_is_small() -> None:
    named = [
        target
        for page in PAGES
        for target in re.findall(r"!\[[^\]]+\]\(\.\./images/build/(\S+)\.png\)", page.read_text(encoding="utf-8"))
    ]
    assert sorted(named) == sorted(pictures.PICTURES) == sorted(path.stem for path in FOLDER.iterdir())
    assert all(path.stat().st_size < 60_000 for path in FOLDER.iterdir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_refers_to_exists(page: Path) -> None:
    """Its links, and the functions and classes that it names behind a link to a file of the package."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    for file, names in re.findall(r"\]\((\S+\.py)\): ((?:`[\w.]+`(?:, )?)+)", text):
        code = (page.parent / file).read_text(encoding="utf-8")
        for name in re.findall(r"[\w.]+", names):
            assert re.search(rf"(def|class) {name.split('.')[-1]}\b", code), (file, name)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_formulas_are_rendered_on_github(page: Path) -> None:
    """Its Markdown takes the backslash from punctuation before the formula is read: write a space for ``\\,``."""
    for formula in re.findall(r"\$\$(.+?)\$\$", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert not re.search(r"\\[,{}_!;]", formula)
