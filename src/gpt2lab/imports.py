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

import ast
import builtins
import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gpt2lab.errors import InputError, ReportedElsewhere, did_you_mean, located
from gpt2lab.files import write_atomically
from gpt2lab.model.parts import BUILT_IN, IMPORTED, REGISTRIES, Key, Part, known
from gpt2lab.runs import SHA256SUMS, Run

log = logging.getLogger("gpt2lab")


class ImportedFile(NamedTuple):
    """A Python file of a user, as it was when it ran."""

    path: Path
    source: bytes
    beside: tuple[ImportedFile, ...] = ()
    """The modules in its directory that it imports, or that those import."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content, in hexadecimal; with modules beside it, that of `sums`."""
        return hashlib.sha256(self.sums if self.beside else self.source).hexdigest()

    @property
    def sums(self) -> bytes:
        """A line with SHA-256 and name of each file, as ``sha256sum`` writes and checks them; this file is the first.

        It is the file ``SHA256SUMS`` in a run's ``imports``.
        """
        lines = (f"{each._replace(beside=()).sha256}  {each.path.name}\n" for each in (self, *self.beside))
        return "".join(lines).encode("utf-8")


FILES: dict[str, ImportedFile] = {}
"""The imported files by their SHA-256."""
_refused: set[str] = set()
"""Files that the user was asked about and did not allow."""


def import_file(path: Path, network: str | None = None) -> str:
    """Run a Python file of the user's own and make its parts known by name; return its SHA-256.

    The file is trusted from then on, in every run that has it, with the modules beside it that it imports.

    Args:
        path: The file.
        network: The class in it that is a whole model; None if there is none.

    Raises:
        InputError: It cannot be read or run (with the line), has a name that a run cannot hold, adds no part or
            replaces a built-in one, or has no such class.
    """
    file = _read(path)
    run_file(file, network)
    IMPORTED[file.sha256] = IMPORTED.pop(file.sha256)  # the last: see origin_of
    _set_known(known() | IMPORTED[file.sha256])
    _remember_if_possible(file)
    return file.sha256


def import_model(given: str) -> dict[str, str]:
    """Import the class that ``FILE:CLASS`` names; return the options of a `GPTConfig` that name it.

    Raises:
        InputError: It has another form, or see `import_file`.
    """
    path, colon, name = given.rpartition(":")
    if not (path and colon and name.isidentifier()):
        raise InputError(
            f'model is "{given}"; it must be FILE:CLASS, such as my_gpt2.py:GPT (a size of GPT-2 is given by --preset)'
        )
    return {"network": name, "import_sha256": import_file(Path(path), name)}


def import_from(run: Run) -> None:
    """Run the Python file that a run's model needs, if it needs one and the file has not been imported.

    Raises:
        InputError: The file is missing, altered, or not trusted, or see `import_file`.
    """
    file = file_of(run)
    if file is not None:
        if file.sha256 not in FILES:
            _require_trusted(run, file)
        network = run.config["model"].get("network")
        run_file(file, None if network is None else str(network))


def trust(run: Run) -> ImportedFile:
    """Allow the code of a run, now and in later processes; return its file. The same as ``gpt2lab trust RUN``.

    Raises:
        InputError: The run has no code of its own, its file is missing or altered, or the trust file cannot be written.
    """
    file = file_of(run)
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
        file = FILES[sha256]
        run.imports.mkdir(exist_ok=True)
        for each in (file, *file.beside):
            write_atomically(run.imports / each.path.name, each.source)
        if file.beside:
            write_atomically(run.imports / SHA256SUMS, file.sums)


def run_file(file: ImportedFile, network: str | None = None) -> None:
    """Run a Python file and keep the parts that it adds; the registries are left as they were.

    Raises:
        InputError: As for `import_file`.
    """
    if file.sha256 not in FILES:
        _run(file, network is not None)
    if network is not None:
        _add_network(file, network)


class _Modules:
    """The modules of a file and of those beside it. They are their own: another file may import others by these names.

    A module in ``sys.modules`` is everybody's, so they are there under names that no import statement uses, and import
    one another through an ``__import__`` of theirs.
    """

    def __init__(self, file: ImportedFile) -> None:
        self._suffix, self._made = file.sha256[:8], dict[str, ModuleType]()
        self._files = {each.path.stem: each for each in (file, *file.beside)}

    def load(self, name: str) -> ModuleType:
        """Return a module, run if it has not been."""
        if name not in self._made:
            path, source = self._files[name][:2]
            module = self._made[name] = ModuleType(_module_name(path, self._suffix))
            module.__file__ = str(path)
            sys.modules[module.__name__] = module  # where dataclasses and the compiler look it up
            if len(self._files) > 1:
                vars(module)["__builtins__"] = vars(builtins) | {"__import__": self._import}
            try:
                exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
            except BaseException:
                del self._made[name], sys.modules[module.__name__]
                raise
        return self._made[name]

    def _import(self, name: str, *arguments: Any, **named: Any) -> ModuleType:
        """Take the place of ``__import__`` in the import statements of these modules."""
        return self.load(name) if name in self._files else builtins.__import__(name, *arguments, **named)


def _module_name(path: Path, suffix: str) -> str:
    return re.sub(r"\W", "_", path.stem) + f"_{suffix}"


def _run(file: ImportedFile, is_model: bool) -> None:
    path, sha256 = file.path, file.sha256
    before, modules = known(), set(sys.modules)
    _set_known({key: before[key] for key in before if key in BUILT_IN})  # without those of other files
    try:
        _Modules(file).load(path.stem)
        after = known()
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {located(error, str(path))}") from error
    finally:
        _set_known(before)
    _require_complete(file, sys.modules.keys() - modules)
    if replaced := [" ".join(key) for key in BUILT_IN if after.get(key) is not before[key]]:
        raise InputError(f"{path} replaces {replaced[0]}, which is built in; give yours another name")
    own = {key: part for key, part in after.items() if key not in BUILT_IN}
    if not own and not is_model:
        raise InputError(f'{path} adds no part; end it with MASKS["NAME"] = FUNCTION or the like (docs/parts.md)')
    for (kind, name), part in own.items():
        if not callable(part):
            needed = "function that returns a Mask" if kind == "mask" else "class of torch.nn.Module"
            raise InputError(f"{path}: {name!r} is {part!r:.60}; a {kind} must be a {needed}")
    FILES[sha256], IMPORTED[sha256] = file, own


def _require_complete(file: ImportedFile, new: Iterable[str]) -> None:
    """Raise `InputError` if a file needs code of its directory that does not travel, such as a package.

    ``new`` are the modules that it has imported so far; others it names in import statements.
    """
    files = [file, *file.beside]
    folder, travel = file.path.parent.resolve(), {each.path.resolve() for each in files}
    roots = {name.partition(".")[0] for each in files for name in _imported_by(each)} - {path.stem for path in travel}
    for name in sorted({*new, *roots}):
        if name.partition(".")[0] in {*sys.stdlib_module_names, "gpt2lab"}:
            continue
        for place in _places(name):
            if place.is_relative_to(folder) and place not in travel and "site-packages" not in place.parts:
                raise InputError(
                    f"{file.path} imports {place}, which cannot travel with the run; only a module in the same "
                    "directory that an import statement names can: put the code there, or install it as a package"
                )


def _places(name: str) -> list[Path]:
    """Return the file of a module, or the folders of a package without one; it is not imported."""
    try:
        spec = importlib.util.find_spec(name) if name in sys.modules or "." not in name else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    file = getattr(sys.modules.get(name), "__file__", None) or (spec.origin if spec and spec.has_location else None)
    return [Path(each).resolve() for each in ([file] if file else (spec and spec.submodule_search_locations) or [])]


def _add_network(file: ImportedFile, name: str) -> None:
    """Add a class of a file that has been run to its parts, as a whole model."""
    from torch.nn import Module

    names = vars(sys.modules[_module_name(FILES[file.sha256].path, file.sha256[:8])])
    found, classes = names.get(name), [own for own, value in names.items() if _is_own_module(value, Module)]
    if not (isinstance(found, type) and issubclass(found, Module)):
        what = f"{name} is no class of torch.nn.Module" if name in names else f"there is no class {name}"
        others = f"its classes are {', '.join(classes)}" if classes else "it has no class of torch.nn.Module"
        raise InputError(f"{file.path}: {what}{did_you_mean(name, classes)}; {others}")
    IMPORTED[file.sha256][("network", name)] = found


def _is_own_module(value: object, module: type) -> bool:
    return isinstance(value, type) and issubclass(value, module) and not value.__module__.startswith("torch.")


def _set_known(parts: dict[Key, Part]) -> None:
    """Let the registries hold these parts."""
    for registry in REGISTRIES.values():
        registry.clear()
    for (kind, name), part in parts.items():
        REGISTRIES[kind][name] = part


def _read(path: Path) -> ImportedFile:
    """Read a file, and the modules in its directory that it imports, directly or through one another, by name."""
    file = _read_alone(path)
    found, waiting = {path.stem: file}, [file]
    while waiting:
        for name in _imported_by(waiting.pop()):
            beside = path.with_name(f"{name}.py")
            if name not in found and name not in sys.stdlib_module_names and beside.is_file():
                found[name] = _read_alone(beside)
                waiting.append(found[name])
    return file._replace(beside=tuple(found[name] for name in sorted(found.keys() - {path.stem})))


def _imported_by(file: ImportedFile) -> Iterator[str]:
    """Yield the modules that a file names in import statements, wherever in it; none if it is not Python."""
    try:
        tree = ast.parse(file.source)
    except (SyntaxError, ValueError, RecursionError):
        return  # running it will tell
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield node.module


def _read_alone(path: Path) -> ImportedFile:
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


def file_of(run: Run) -> ImportedFile | None:
    """Return the Python file that a run's model needs, checked; None if it needs none.

    Raises:
        InputError: The file, or one that it imports, is missing or altered.
    """
    config = run.config
    model = config.get("model") if isinstance(config, dict) else None
    sha256 = model.get("import_sha256") if isinstance(model, dict) else None
    if sha256 is None:
        return None
    path = run.imported(sha256)
    file = None if path is None else _read(path)
    if file is None or file.sha256 != sha256:
        raise InputError(
            f"{run.imports} holds no readable file with the SHA-256 in config.json, {sha256}: it was altered or "
            "removed; restore it"
        )
    return file


def _require_trusted(run: Run, file: ImportedFile) -> None:
    """Raise `InputError` unless the code of a run is trusted; ask on a terminal, once, but not under torchrun.

    There, one process of each machine reports the error.
    """
    if file.sha256 in _trusted():
        return
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if terminal and "RANK" not in os.environ and file.sha256 not in _refused:
        print(f"{run.path} contains code that has not been imported on this machine:", file=sys.stderr)
        for each in (file, *file.beside):
            print(f"  {each.path}\n  SHA-256 {each._replace(beside=()).sha256}", file=sys.stderr)
        print("Run this code? [y/N] ", end="", file=sys.stderr, flush=True)
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
