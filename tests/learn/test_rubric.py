"""Rubrics: those that are shipped, points by verdict, and refusals that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from solving import check_part

from gpt2lab.errors import InputError
from gpt2lab.learn import gpt2
from gpt2lab.learn.check import Verdict
from gpt2lab.learn.exercises import PARTS
from gpt2lab.learn.mistakes import MISTAKES, variant
from gpt2lab.learn.rubric import Rubric, load


@pytest.mark.parametrize(("name", "chapters"), [("gpt2", range(1, 11)), ("transformer", range(2, 9))])
def test_the_shipped_rubrics_give_100_points_for_every_part_of_their_chapters(name: str, chapters: range) -> None:
    rubric = load(name)
    assert rubric.total == 100
    assert list(rubric.points) == [part.name for part in PARTS if part.chapter in chapters]
    assert rubric.chapters == tuple(chapters)


def test_a_right_part_gives_its_points_a_known_mistake_a_share_and_the_rest_none() -> None:
    rubric = Rubric("x", {"gelu": 4, "attention": 6}, known_mistake=0.5)
    assert rubric.of(check_part("gelu", gpt2.gelu)) == 4
    mistake = next(each for each in MISTAKES if each.part == "attention")
    verdict = check_part("attention", variant(mistake))
    assert verdict.mistake == mistake.key
    assert rubric.of(verdict) == 3
    for status in ("wrong", "missing", "error", "limit"):
        assert rubric.of(Verdict("gelu", status, f"Your output is that of {mistake.says}.")) == 0
    assert rubric.of(Verdict("merge", "right")) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title =", "not TOML"),
        ("[points]\ngelu = 1", "title is missing; it must be a text"),
        ("title = 3\n[points]\ngelu = 1", "title is 3; it must be a text"),
        ('title = "x"', "[points] is missing; it gives the points of each part, as in: attention = 5"),
        ('title = "x"\npoints = 3', "[points] is missing"),
        ('title = "x"\nshare = 1\n[points]\ngelu = 1', 'unknown key "share"; choose from title, known_mistake, points'),
        ('title = "x"\n[points]\natention = 1', 'unknown part "atention" (did you mean "attention"?)'),
        ('title = "x"\n[points]\ngelu = -1', "points.gelu is -1; it must be a number, 0 or more"),
        ('title = "x"\n[points]\ngelu = "2"', "points.gelu is '2'; it must be a number, 0 or more"),
        ('title = "x"\n[points]\ngelu = true', "points.gelu is True; it must be a number, 0 or more"),
        ('title = "x"\n[points]\ngelu = nan', "points.gelu is nan; it must be a number, 0 or more"),
        ('title = "x"\n[points]\ngelu = 0', "all points are 0; give at least one part some"),
        ('title = "x"\nknown_mistake = 2\n[points]\ngelu = 1', "known_mistake is 2; it must be a number from 0 to 1"),
    ],
)
def test_a_bad_rubric_is_refused_in_one_line_that_names_the_key(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load(str(file))
    assert str(error.value).startswith(f"{file}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rubric_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='no rubric "gpt3"; choose from gpt2, transformer, or give a'):
        load("gpt3")
    with pytest.raises(InputError, match=r"mine\.toml: cannot be read"):
        load(str(tmp_path / "mine.toml"))
