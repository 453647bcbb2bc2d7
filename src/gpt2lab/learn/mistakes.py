"""The mistakes that people make in building GPT-2, each a small variant of the reference.

They stand in mistakes.toml, as changes to the source of gpt2.py. A student's part whose output equals that of a variant
to rounding has this mistake, however it is written.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.learn import gpt2


@dataclass(frozen=True)
class Mistake:
    """A part with the source of the reference where `old` is replaced by `new`."""

    part: str
    key: str
    what: str
    """The end of the sentence "Your output is that of ..."."""
    instead: str
    """What to do."""
    old: str
    new: str
    seen: str = ""
    """An issue or pull request on GitHub where somebody made it, as in "karpathy/minGPT#10"."""

    @property
    def says(self) -> str:
        """What the output is that of, and what to do."""
        return f"{self.what}: {self.instead}"

    @property
    def source(self) -> str:
        """The source of the function with the mistake.

        Raises:
            ValueError: `old` does not stand exactly once in the reference.
        """
        source = inspect.getsource(getattr(gpt2, self.part))
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.part}.{self.key}: {self.old!r} stands {count} times in the reference, not once")
        return source.replace(self.old, self.new)


def _read() -> tuple[Mistake, ...]:
    catalogue = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Mistake(part, key, **told) for part, keys in catalogue.items() for key, told in keys.items())


MISTAKES = _read()
"""In the order of gpt2.py."""
_FUTURE = "from __future__ import annotations"


def variant(mistake: Mistake) -> Callable[..., Any]:
    """Return the reference's function with a mistake."""
    code = compile(f"{_FUTURE}\n{mistake.source}", f"{mistake.part} ({mistake.key})", "exec", dont_inherit=True)
    scope = dict(vars(gpt2))
    exec(code, scope)
    return scope[mistake.part]
