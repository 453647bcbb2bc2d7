"""Arguments by tyro: what it says about bad ones becomes one line."""

from __future__ import annotations

import contextlib
import difflib
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
    said = _one_line(framed.getvalue(), prog)
    raise InputError(_name_the_nearest(said, lambda: _flags(what, options)))


def _flags(what: Callable[..., Any], options: dict[str, Any]) -> list[str]:
    """Return the flags that ``what`` takes, from its help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(what, args=["--help"], **options)
    return sorted(set(re.findall(r"--[a-z][\w.-]*", shown.getvalue())))


def _name_the_nearest(said: str, flags: Callable[[], list[str]]) -> str:
    """Put the flag that is spelt most alike, by its whole name or its last part, behind one that is unknown.

    >>> _name_the_nearest("train: Unrecognized options: --step, 5; see ...", lambda: ["--optim.lr", "--steps"])
    'train: Unrecognized options: --step, 5 (did you mean "--steps"?); see ...'
    """
    match = re.match(r"([^:]*: Unrecognized options: (--[\w.-]+)[^;]*)(?:;.*)?(; see .*)", said)
    if match is None:
        return said
    spelt = {f"--{flag.lstrip('-').rpartition('.')[2]}": flag for flag in flags()}
    spelt |= {flag: flag for flag in spelt.values()}
    near = difflib.get_close_matches(match[2], spelt, n=1, cutoff=0.5)
    hint = f' (did you mean "{spelt[near[0]]}"?)' if near else ""
    return f"{match[1]}{hint}{match[3]}"


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
