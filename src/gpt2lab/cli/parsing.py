"""Arguments by tyro: what it says about bad ones becomes one line."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from gpt2lab.errors import InputError

T = TypeVar("T")


def parse(what: Callable[..., T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Let tyro build ``what`` from the arguments; its framed message on bad ones becomes one line."""
    return _by_tyro(what, argv, prog, {} if default is None else {"default": default})


def parse_known(what: Callable[..., T], argv: list[str], prog: str) -> tuple[T, list[str]]:
    """Do the same, and return the arguments that are not those of ``what`` as well."""
    return _by_tyro(what, argv, prog, {"return_unknown_args": True})


def _by_tyro(what: Callable[..., Any], argv: list[str], prog: str, options: dict[str, Any]) -> Any:
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            return tyro.cli(what, args=argv, prog=prog, **options)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(_one_line(framed.getvalue(), prog))


def call(verb: Callable[..., int], argv: list[str], prog: str) -> int:
    """Parse the arguments of a function first, then run it: only the parser's messages are caught."""

    @functools.wraps(verb)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(verb, *args, **kwargs)

    return parse(bind, argv, prog)()


def _one_line(framed: str, prog: str) -> str:
    """Turn a framed message of several paragraphs into a line: what is wrong, the nearest option, where to look.

    >>> _one_line("╭─ Unrecognized ─╮\\n│ Unrecognized options: --x │\\n╰───╯", "gpt2lab train")
    'train: Unrecognized options: --x; see gpt2lab train --help'
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    rows = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"^[─-]+$", "\n".join(rows), flags=re.MULTILINE)
    if "╭" not in text:  # where only ASCII can be printed, the frame's title is a paragraph
        del paragraphs[0]
    parts = [" ".join(paragraph.split()).rstrip(".") for paragraph in paragraphs]
    said = [re.sub(r"Perhaps you meant: (\S+).*", r"did you mean \1?", part) for part in parts if "--help" not in part]
    return f"{prog.removeprefix('gpt2lab ')}: {'; '.join(filter(None, said))}; see {prog} --help"
