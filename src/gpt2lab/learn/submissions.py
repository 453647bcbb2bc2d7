"""Submissions: the Python files of a directory or .zip archive, read with limits and nothing from outside of it.

A submission may be empty, damaged or made to do harm. What cannot be read becomes a note, and the rest is read.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.files import neighbors
from gpt2lab.formatting import printable, size
from gpt2lab.learn.exercises import FILES

LARGEST_FILE, LARGEST, MOST, LARGEST_ARCHIVE = 2**20, 16 * 2**20, 500, 64 * 2**20
"""Bytes of a file and of all files of a submission, how many files, and bytes of an archive."""
SHOWN = 10
"""Notes that are kept."""
OTHER_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz")


@dataclass(frozen=True)
class Submission:
    """What a student handed in."""

    student: str
    """The name of the directory, or of the archive without .zip."""
    files: Mapping[str, bytes]
    """The Python files, by their path below the directory of the chapters."""
    notes: tuple[str, ...] = ()
    """What was not read, and why."""


def find(folder: Path) -> list[Path]:
    """Return the submissions in a folder, by name: directories and archives.

    Raises:
        InputError: It is not a directory, or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory{did_you_mean(str(folder), neighbors(folder))}")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from error
    found = [path for path in entries if not path.name.startswith((".", "__")) and _is_submission(path)]
    if any((folder / file).is_file() for file in FILES):
        raise InputError(f"{folder} is itself a submission; give the folder that holds all of them")
    if not found:
        raise InputError(f"{folder} holds no submissions; each is a directory, or a .zip, with the student's chapters")
    return found


def _is_submission(path: Path) -> bool:
    return path.is_dir() or path.is_symlink() or path.suffix.lower() in (".zip", *OTHER_ARCHIVES)


def read_all(paths: Iterable[Path]) -> Iterator[Submission]:
    """Read submissions; names that are the same get a number."""
    seen = set[str]()
    for path in paths:
        plain = printable(" ".join((path.stem if path.suffix.lower() == ".zip" else path.name).split())) or "unnamed"
        numbered = (f"{plain} ({number})" for number in range(2, len(seen) + 3))
        student = plain if plain not in seen else next(name for name in numbered if name not in seen)
        seen.add(student)
        yield read(path, student)


def read(path: Path, student: str) -> Submission:
    """Read the Python files of a submission."""
    notes: list[str] = []
    files = dict[PurePosixPath, bytes]()
    try:
        for name, data in _files(path, notes):
            if len(files) == MOST or sum(map(len, files.values())) + len(data) > LARGEST:
                notes.append(f"more than {MOST} Python files or {size(LARGEST)}: the rest was not read")
                break
            files[name] = data
    except Exception as error:  # of a damaged archive or directory: anything
        notes.append(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    homes = sorted({name.parent for name in files if name.name in FILES}, key=lambda home: (len(home.parts), home))
    if not homes:
        return Submission(student, {}, _printable([*notes, "no chapters found, such as ch01_bytes.py"]))
    home = homes[0]
    if len(homes) > 1:
        notes.append(f"chapters in {len(homes)} directories; those in {home} are graded")
    return Submission(
        student,
        {name.relative_to(home).as_posix(): data for name, data in files.items() if name.is_relative_to(home)},
        _printable(notes),
    )


def _printable(notes: list[str]) -> tuple[str, ...]:
    more = [f"and {len(notes) - SHOWN:,} more files were not read"] if len(notes) > SHOWN else []
    return tuple(printable(" ".join(note.split())) for note in [*notes[:SHOWN], *more])


def _files(path: Path, notes: list[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the Python files of a submission and note what cannot be read."""
    if path.is_symlink():
        notes.append("is a link, which is not followed")
    elif path.is_dir():
        yield from _of_directory(path, notes)
    elif path.suffix.lower() == ".zip":
        yield from _of_archive(path, notes)
    else:
        notes.append(f"{path.suffix} archives are not read; unpack it, or make it a .zip")


def _of_directory(path: Path, notes: list[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
    def note(error: OSError) -> None:
        notes.append(f"{os.path.relpath(error.filename or path, path)} cannot be read ({error.strerror})")

    for folder, folders, names in os.walk(path, onerror=note):
        here = Path(folder)
        notes += [
            f"{(here / name).relative_to(path)} is a link, which is not followed"
            for name in folders
            if (here / name).is_symlink()
        ]
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for file in sorted(here / name for name in names if name.endswith(".py")):
            name = file.relative_to(path)
            try:
                about = file.lstat()
                if stat.S_ISLNK(about.st_mode):
                    notes.append(f"{name} is a link, which is not followed")
                elif not stat.S_ISREG(about.st_mode):
                    notes.append(f"{name} is not a regular file")
                elif about.st_size > LARGEST_FILE:
                    notes.append(f"{name} is larger than {size(LARGEST_FILE)}")
                else:
                    yield PurePosixPath(name.as_posix()), file.read_bytes()
            except OSError as error:
                note(error)


def _of_archive(path: Path, notes: list[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
    if path.stat().st_size > LARGEST_ARCHIVE:
        notes.append(f"is larger than {size(LARGEST_ARCHIVE)}")
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if name.suffix != ".py" or any(part.startswith("__") for part in name.parts[:-1]):
                continue
            if name.is_absolute() or ".." in name.parts or ":" in str(name):
                notes.append(f"{name} is outside of the archive and was not read")
            elif stat.S_ISLNK(info.external_attr >> 16):
                notes.append(f"{name} is a link, which is not followed")
            elif info.flag_bits & 1:
                notes.append(f"{name} is encrypted")
            elif info.file_size > LARGEST_FILE:  # zipfile reads no more than this
                notes.append(f"{name} is larger than {size(LARGEST_FILE)}")
            else:
                yield name, archive.read(info)
