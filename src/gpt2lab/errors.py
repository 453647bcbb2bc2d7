"""What a user can do wrong, in one line.

Every check of user input (an option, a file, a name) raises :class:`InputError`. The command line prints its message
without a traceback and exits with 2; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Unusable input. The message is one line: what was given, what is allowed, what to do."""


class TemporaryError(InputError):
    """An error that the same command may not raise again: what it has done so far is kept."""


class ReportedElsewhere(InputError):
    """An error that another process of the same run reports, so that this one need not."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean "X"?)`` for the nearest allowed name, or nothing if none is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


def one_of(what: str, given: str, allowed: Iterable[str]) -> None:
    """Raise :class:`InputError` unless ``given`` is one of the ``allowed`` names of ``what``."""
    names = list(allowed)
    if given not in names:
        hint = did_you_mean(given, names)
        raise InputError(f'unknown {what} "{given}"{hint}; choose from {", ".join(names)}')


def require(true: bool, name: str, value: object, allowed: str) -> None:
    """Raise :class:`InputError` unless the value of an option is allowed. Write the condition so that NaN fails it."""
    if not true:
        raise InputError(f"{name} is {value}; it must be {allowed}")


def located(error: BaseException, file: str) -> str:
    """Return an error that a user's ``file`` raised, in one line, with the place in it or in a file beside it."""
    folder = Path(file).parent
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        places.append((error.filename, error.lineno))
    places = [
        f"{name}, line {line}" for name, line in places if file and name[0] != "<" and Path(name).parent == folder
    ]
    place = places[-1] if places else file
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    first, *_ = message.strip().splitlines() or [""]
    return f"{place}: {type(error).__name__}: {first}".removeprefix(": ")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    said = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return known or "DefaultCPUAllocator" in said or "MPS backend out of memory" in said
