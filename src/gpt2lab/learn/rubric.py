"""Rubrics: how many points each part gives, as TOML (docs/teaching.md).

title = "Build GPT-2"
known_mistake = 0.5

[points]
attention = 5
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab.errors import InputError, one_of
from gpt2lab.files import read_text
from gpt2lab.learn.exercises import PARTS

if TYPE_CHECKING:
    from gpt2lab.learn.check import Verdict

SHIPPED = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class Rubric:
    """What an assignment is worth."""

    title: str
    points: Mapping[str, float]
    """Of each graded part, in the order of `PARTS`."""
    known_mistake: float = 0.0
    """Share of a part's points for a part with a known mistake."""

    @property
    def total(self) -> float:
        """The highest number of points."""
        return sum(self.points.values())

    @property
    def chapters(self) -> tuple[int, ...]:
        """The chapters of the graded parts."""
        return tuple(sorted({part.chapter for part in PARTS if part.name in self.points}))

    def of(self, verdict: Verdict) -> float:
        """Return the points for a part: all, a share for a known mistake, or none."""
        points = self.points.get(verdict.part, 0)
        return points if verdict.right else self.known_mistake * points if verdict.mistake else 0


def load(name: str) -> Rubric:
    """Read a rubric that is shipped, by its name, or a TOML file.

    Raises:
        InputError: There is none of this name, or the file has an unknown key or part, a wrong type or a bad number.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if path.suffix != ".toml" and not path.exists():
        raise InputError(f'there is no rubric "{name}"; choose from {", ".join(shipped)}, or give a .toml file')
    try:
        read = tomllib.loads(read_text(path, newline=""))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from error
    try:
        return _parsed(read)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parsed(read: Mapping[str, Any]) -> Rubric:
    for key in read:
        one_of("key", key, ("title", "known_mistake", "points"))
    title, share, points = read.get("title", ""), read.get("known_mistake", 0), read.get("points")
    if not isinstance(title, str) or not title.strip():
        raise InputError(
            "title is missing; it must be a text" if title == "" else f"title is {title!r}; it must be a text"
        )
    if not _is_number(share) or share > 1:
        raise InputError(f"known_mistake is {share!r}; it must be a number from 0 to 1")
    if not isinstance(points, dict) or not points:
        raise InputError("[points] is missing; it gives the points of each part, as in: attention = 5")
    names = [part.name for part in PARTS]
    for part, value in points.items():
        one_of("part", part, names)
        if not _is_number(value):
            raise InputError(f"points.{part} is {value!r}; it must be a number, 0 or more")
    if not sum(points.values()):
        raise InputError("all points are 0; give at least one part some")
    return Rubric(title, {name: points[name] for name in names if name in points}, share)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
