"""Parts of a model that a user defines in a Python file of his own (model/parts.py); the file travels with the run.

    import_file(my_masks.py)         runs it: MASKS["dilated"] = dilated            the user gave it, so it is trusted
        GPTConfig(mask="dilated")    `GPTConfig.with_import` adds the SHA-256 of the file: import_sha256
            RUN/imports/my_masks.py  written when the run starts
    import_from(RUN)                 in a later process, before its model is built: checks the SHA-256, and asks before
                                     it runs code that is not trusted

A run directory may come from somebody else, so its code runs only if this user gave it by ``--import`` before, or
allowed it: at the question on a terminal, by ``gpt2lab trust RUN``, or by `trust`. The SHA-256 of each trusted file is
a line of the file ``trusted`` in the directory `state_directory`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gpt2lab.errors import InputError, ReportedElsewhere, located
from gpt2lab.files import write_atomically
from gpt2lab.model.parts import BUILT_IN, IMPORTED, REGISTRIES, Key, Part, known
from gpt2lab.runs import Run

log = logging.getLogger("gpt2lab")


class ImportedFile(NamedTuple):
    """A Python file of a user, as it was when it ran."""

    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content, in hexadecimal."""
        return hashlib.sha256(self.source).hexdigest()


FILES: dict[str, ImportedFile] = {}
"""The imported files by their SHA-256."""
_refused: set[str] = set()
"""Files that the user was asked about and did not allow."""


def import_file(path: Path) -> str:
    """Run a Python file of the user's own and make its parts known by name; return its SHA-256.

    The file is trusted from then on, in every run that has it.

    Raises:
        InputError: It cannot be read or run (with the line), has a name that a run cannot hold, or adds no part or
            replaces a built-in one.
    """
    file = _read(path)
    run_file(file)
    IMPORTED[file.sha256] = IMPORTED.pop(file.sha256)  # the last: see origin_of
    _set_known(known() | IMPORTED[file.sha256])
    _remember_if_possible(file)
    return file.sha256


def import_from(run: Run) -> None:
    """Run the Python file that a run's model needs, if it needs one and the file has not been imported.

    Raises:
        InputError: The file is missing, altered, or not trusted, or see `import_file`.
    """
    file = _file_of(run)
    if file is not None and file.sha256 not in FILES:
        _require_trusted(run, file)
        run_file(file)


def trust(run: Run) -> ImportedFile:
    """Allow the code of a run, now and in later processes; return its file. The same as ``gpt2lab trust RUN``.

    Raises:
        InputError: The run has no code of its own, its file is missing or altered, or the trust file cannot be written.
    """
    file = _file_of(run)
    if file is None:
        raise InputError(f"{run.path} contains no custom code")
    try:
        _remember(file)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot write the trust file ({error}); set GPT2LAB_HOME to a directory that can be written"
        ) from error
    return file


def copy_to(run: Run, sha256: str | None) -> None:
    """Write the imported file with this SHA-256 into a run, unless it is there already; None writes nothing."""
    if sha256 is not None and run.imported(sha256) is None:
        run.imports.mkdir(exist_ok=True)
        write_atomically(run.imports / FILES[sha256].path.name, FILES[sha256].source)


def run_file(file: ImportedFile) -> None:
    """Run a Python file and keep the parts that it adds; the registries are left as they were.

    Raises:
        InputError: As for `import_file`.
    """
    path, sha256 = file.path, file.sha256
    if sha256 in FILES:
        return
    module = ModuleType(re.sub(r"\W", "_", path.stem) + f"_{sha256[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and the compiler look it up
    before = known()
    _set_known({key: before[key] for key in before if key in BUILT_IN})  # without those of other files
    try:
        exec(compile(file.source, str(path), "exec", dont_inherit=True), vars(module))
        after = known()
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {located(error, str(path))}") from error
    finally:
        _set_known(before)
    if replaced := [" ".join(key) for key in BUILT_IN if after.get(key) is not before[key]]:
        raise InputError(f"{path} replaces {replaced[0]}, which is built in; give yours another name")
    own = {key: part for key, part in after.items() if key not in BUILT_IN}
    if not own:
        raise InputError(f'{path} adds no part; end it with MASKS["NAME"] = FUNCTION or the like (docs/parts.md)')
    for (kind, name), part in own.items():
        if not callable(part):
            needed = "function that returns a Mask" if kind == "mask" else "class of torch.nn.Module"
            raise InputError(f"{path}: {name!r} is {part!r:.60}; a {kind} must be a {needed}")
    FILES[sha256], IMPORTED[sha256] = file, own


def _set_known(parts: dict[Key, Part]) -> None:
    """Let the registries hold these parts."""
    for registry in REGISTRIES.values():
        registry.clear()
    for (kind, name), part in parts.items():
        REGISTRIES[kind][name] = part


def _read(path: Path) -> ImportedFile:
    if path.name.startswith(".") or not path.name.isprintable():  # it could make a terminal show another question
        raise InputError(
            f"the name of {str(path)!a} begins with a dot or has a character that cannot be printed; rename it"
        )
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file")
        return ImportedFile(path, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _file_of(run: Run) -> ImportedFile | None:
    """Return the Python file that a run's model needs, checked; None if it needs none."""
    config = run.config
    model = config.get("model") if isinstance(config, dict) else None
    sha256 = model.get("import_sha256") if isinstance(model, dict) else None
    if sha256 is None:
        return None
    if (path := run.imported(sha256)) is None:
        raise InputError(
            f"{run.imports} holds no readable file with the SHA-256 in config.json, {sha256}: it was altered or "
            "removed; restore it"
        )
    return _read(path)


def _require_trusted(run: Run, file: ImportedFile) -> None:
    """Raise `InputError` unless the code of a run is trusted; ask on a terminal, once, but not under torchrun.

    There, one process of each machine reports the error.
    """
    if file.sha256 in _trusted():
        return
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if terminal and "RANK" not in os.environ and file.sha256 not in _refused:
        print(f"{run.path} contains code that has not been imported on this machine:", file=sys.stderr)
        print(f"  {file.path}\n  SHA-256 {file.sha256}\nRun this code? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            _remember_if_possible(file)
            return
        _refused.add(file.sha256)
    kind = InputError if os.environ.get("LOCAL_RANK", "0") == "0" else ReportedElsewhere
    raise kind(
        f"{file.path} (SHA-256 {file.sha256}) is code that is not trusted here, so it was not run; read it, then allow "
        f"it with: gpt2lab trust {run.path}"
    )


def state_directory() -> Path:
    """Return the directory of what this user's gpt2lab remembers: ``GPT2LAB_HOME`` if set, else the platform's."""
    if given := os.environ.get("GPT2LAB_HOME"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpt2lab"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gpt2lab"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gpt2lab"


def _trusted() -> set[str]:
    """Return the SHA-256 of every file that is trusted."""
    try:
        return set((state_directory() / "trusted").read_text(encoding="ascii", errors="replace").split())
    except (OSError, RuntimeError):
        return set()


def _remember(file: ImportedFile) -> None:
    """Add a file to those that are trusted. Raises `OSError`, or `RuntimeError` if the user has no home directory."""
    if file.sha256 not in _trusted():
        state_directory().mkdir(parents=True, exist_ok=True)
        with (path := state_directory() / "trusted").open("ab") as lines:
            lines.write(f"\n{file.sha256}\n".encode("ascii"))  # the last line may lack its end
        if file.sha256 not in _trusted():
            raise OSError(f"{path} cannot be read back")


def _remember_if_possible(file: ImportedFile) -> None:
    try:
        _remember(file)
    except (OSError, RuntimeError) as error:
        log.warning("cannot remember that %s is trusted (%s): you will be asked again", file.path, error)
