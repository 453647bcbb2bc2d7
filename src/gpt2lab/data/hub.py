"""Data sets of the Hugging Face hub by its HTTP layout: what files there are, pinned to a commit, and where each is.

    ENDPOINT/api/datasets/OWNER/NAME/revision/REVISION    {"sha": COMMIT}
    ENDPOINT/api/datasets/OWNER/NAME/tree/COMMIT/FOLDER   [{"path", "size", "lfs": {"oid": SHA-256}}, ...], in pages
    ENDPOINT/datasets/OWNER/NAME/resolve/COMMIT/PATH      the bytes

Data is read as files (Parquet, mostly), never by a data set's own script, so nothing that a stranger wrote is run.
``HF_ENDPOINT`` names another server, ``HF_TOKEN`` is sent to it.

This is not huggingface_hub, which keeps what it fetches in its cache: corpora pass through a disk that is bounded, are
fetched to the byte that a stop left, and retried with a limit that is told. `gpt2lab.hub` is for what is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from urllib.parse import quote

from gpt2lab.data.download import PATIENCE, Patience, get_json, token_header
from gpt2lab.errors import InputError

CONVERTED = "refs/convert/parquet"
"""The branch where the hub keeps data sets of other forms as Parquet."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT_WORDS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class HubFile:
    """A file of a data set: its path, bytes, and SHA-256 where the hub tells it."""

    path: str
    size: int
    sha256: str | None
    url: str


def endpoint() -> str:
    """Return the address of the hub. Raises `InputError` where ``HF_ENDPOINT`` is none."""
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if not address.startswith(("http://", "https://")):
        raise InputError(f'HF_ENDPOINT is "{address}"; give an address such as https://huggingface.co')
    return address


def list_files(
    repository: str, folder: str = "", revision: str = "main", patience: Patience = PATIENCE
) -> list[HubFile]:
    """Return the files below a folder of a data set, in the order of their paths, as of the revision's present commit.

    Raises:
        Unreachable: The hub does not answer.
        InputError: It has no such data set, revision or folder, or is no hub.
    """
    base = f"{endpoint()}/api/datasets/{repository}"
    try:
        return _listed(base, repository, folder, revision, patience)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{base}: does not answer as the hub does; see that HF_ENDPOINT names a hub") from error


def _listed(base: str, repository: str, folder: str, revision: str, patience: Patience) -> list[HubFile]:
    commit, _ = get_json(f"{base}/revision/{quote(revision, safe='')}", token_header(), patience)
    sha = commit["sha"]
    page: str | None = f"{base}/tree/{sha}{'/' + quote(folder) if folder else ''}?recursive=true"
    entries = []
    while page is not None:
        part, page = get_json(page, token_header(), patience)
        entries += part
    files = (_file(entry, f"{endpoint()}/datasets/{repository}/resolve/{sha}") for entry in entries if _is_file(entry))
    return sorted(files, key=lambda file: file.path)


def _is_file(entry: Mapping[str, object]) -> bool:
    return entry["type"] == "file"


def _file(entry: Mapping, base: str) -> HubFile:
    large = entry.get("lfs") or {}
    return HubFile(entry["path"], entry["size"], large.get("oid"), f"{base}/{quote(entry['path'])}")


def matching(repository: str, patterns: Mapping[str, str], patience: Patience = PATIENCE) -> dict[str, list[HubFile]]:
    """Return the files of each split, by its pattern of paths; ``*`` does not go below a folder.

    Raises:
        InputError: As `list_files`, or a pattern that no file has.
    """
    found = {}
    for split, pattern in patterns.items():
        folder = str(PurePosixPath(pattern).parent).removeprefix(".")
        files = [file for file in list_files(repository, folder, patience=patience) if _matches(file.path, pattern)]
        if not files:
            raise InputError(f"{endpoint()}: {repository} has no file {pattern}; it was changed since this was written")
        found[split] = files
    return found


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def any_dataset(name: str, patience: Patience = PATIENCE) -> dict[str, list[HubFile]]:
    """Return the Parquet files of ``OWNER/NAME`` or ``OWNER/NAME/FOLDER`` by split, an empty name where none is told.

    Raises:
        InputError: The name is none, there is no Parquet, or several sets from which one must be named.
    """
    parts = name.split("/", 2)
    repository, folder = "/".join(parts[:2]), (parts[2].strip("/") if len(parts) > 2 else "")
    if not _NAME.fullmatch(repository):
        raise InputError(f'"hub:{name}" names no data set; give hub:OWNER/NAME or hub:OWNER/NAME/FOLDER')
    for revision in ("main", CONVERTED):
        files = [f for f in list_files(repository, folder, revision, patience) if f.path.endswith(".parquet")]
        if files:
            return _by_split(name, files)
        if folder:
            break
    raise InputError(f"hub:{name} holds no Parquet, and the hub has not converted it; fetch its files and name those")


def _by_split(name: str, files: list[HubFile]) -> dict[str, list[HubFile]]:
    sets = sorted({_set_of(file.path) for file in files})
    if len(sets) > 1:
        listed = ", ".join(sets[:12]) + (", ..." if len(sets) > 12 else "")
        raise InputError(f"hub:{name} holds several sets: {listed}; name one: hub:{name}/{sets[0]}")
    splits: dict[str, list[HubFile]] = {}
    for file in files:
        splits.setdefault(_split_of(file.path), []).append(file)
    return splits


def _set_of(path: str) -> str:
    """Return the folder of a file, without one that is named like a split."""
    folders = PurePosixPath(path).parent.parts
    kept = folders[:-1] if folders and folders[-1].removeprefix("partial-") in _SPLIT_WORDS else folders
    return "/".join(kept)


def _split_of(path: str) -> str:
    """Return the split that a file's name or folder tells, as the hub's own rule has it."""
    pure = PurePosixPath(path)
    words = [
        re.split(r"[-_.\d]", pure.name)[0],
        *(part.removeprefix("partial-") for part in reversed(pure.parent.parts)),
    ]
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "")
