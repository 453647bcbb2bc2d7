"""Fetching files over HTTP so that a bad line costs time and nothing else.

    ask -> bytes -> FILE.partial -> size and SHA-256 as published? -> FILE

What went wrong for the moment (no connection, a server that is busy or broken, an answer that stops half way) is
tried again after 1, 2, 4, ... seconds, or after as long as the server asks for (``Retry-After``, RFC 9110, section
10.2.3), up to a limit; a download goes on at the byte where it stopped. What will not change (no such file, no right to
it) ends at once.
Only the standard library is used: no client of another package decides how often to try.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from gpt2lab.errors import InputError
from gpt2lab.files import sha256_of, sync

_KEPT = "what is finished is kept: run the same command again"


class DiskFull(InputError):
    """There is no room, on the disk or in what was allowed of it; with more the same command goes on."""


class DiskBudget:
    """Counts the bytes of downloads and token files that are on the disk, and refuses those beyond ``limit``."""

    def __init__(self, limit: int | None, used: int = 0) -> None:
        self.limit = limit
        self.used = used

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written. Raises `DiskFull` where they are beyond the limit."""
        if self.limit is not None and self.used + size > self.limit:
            raise DiskFull(
                f"{self.used:,} bytes are written and {size:,} more would go beyond the {self.limit:,} of --max-disk; "
                f"{_KEPT} with more"
            )
        self.used += size

    def release(self, size: int) -> None:
        """Count bytes that were deleted."""
        self.used -= size


def is_full(error: OSError) -> bool:
    """Return whether the system says that a disk, a quota or a limit on files is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explaining_full_disk(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the system says of a full disk into a line with the bytes needed and free.

    Args:
        folder: Where is written; it need not be there yet.
        needed: About how many bytes are still to be written.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"{folder}: the disk is full ({error.strerror}): about {needed:,} bytes are needed, {free:,} are free; "
            f"{_KEPT} with more room"
        ) from error


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of(text: str) -> int:
    """Return the bytes of a size such as 20GB, 500 MB or 5GiB.

    Raises:
        InputError: It is no size.
    """
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in units:
        raise InputError(f'"{text}" is no size; give one such as 20GB, 500MB or 5GiB')
    return int(float(found[1]) * units[found[2]])


T = TypeVar("T")
_BLOCK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of troubles that pass."""


class Unreachable(InputError):
    """A server did not give what it should within the limit of patience; a later try may succeed."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try: ``attempts`` without progress, ``wait`` seconds after the first, doubled up to ``longest``."""

    attempts: int = 6
    wait: float = 1.0
    longest: float = 120.0
    timeout: float = 30.0


DEFAULT_RETRY = RetryPolicy()


def get_json(
    url: str, headers: Mapping[str, str] | None = None, patience: RetryPolicy = DEFAULT_RETRY
) -> tuple[Any, str | None]:
    """Return what a URL gives as JSON, and the URL of the next page where the answer names one.

    Raises:
        Unreachable: No usable answer within the limit.
        InputError: The server says that it has no such thing, or not for us.
    """

    def once() -> tuple[Any, str | None]:
        with _open(url, headers or {}, patience) as answer:
            return json.loads(answer.read()), _next_page(answer.headers.get("Link"))

    return _persist(url, patience, once, lambda: 0)


def fetch(
    url: str,
    target: Path,
    size: int,
    sha256: str | None,
    headers: Mapping[str, str] | None = None,
    patience: RetryPolicy = DEFAULT_RETRY,
) -> None:
    """Download a file, going on where an earlier call was stopped; it has its name only when it is whole.

    Args:
        url: Where it is.
        target: Its name here; ``.partial`` is appended while it is not whole.
        size: Its length in bytes.
        sha256: What its bytes must give, where that is known.
        headers: Sent to the server of ``url``, not to one that it refers to.
        patience: How often to try, and for how long.

    Raises:
        Unreachable: Not to be had within the limit, or again and again with other bytes than published.
        InputError: The server says that it has no such file, or not for us.
    """
    partial = target.with_name(target.name + ".partial")

    def once() -> None:
        _receive(url, partial, size, headers or {}, patience)
        if sha256 is not None and (found := sha256_of(partial)) != sha256:
            partial.unlink()
            raise ConnectionError(f"the bytes are not those published: SHA-256 {found[:12]}..., not {sha256[:12]}...")

    _persist(url, patience, once, lambda: partial.stat().st_size if partial.exists() else 0)
    sync(partial)
    partial.replace(target)


def _receive(url: str, partial: Path, size: int, headers: Mapping[str, str], patience: RetryPolicy) -> None:
    """Append to ``partial`` what is missing of the file."""
    have = partial.stat().st_size if partial.exists() else 0
    if have > size:
        partial.unlink()
        have = 0
    if have == size and size:
        return
    ranged = {**headers, "Range": f"bytes={have}-"} if have else headers
    with _open(url, ranged, patience) as answer:
        if answer.status != 206:  # the server gives the whole file, whatever was asked for
            have = 0
        with partial.open("ab" if have else "wb") as file:
            while have < size and (block := answer.read(min(_BLOCK, size - have))):
                file.write(block)
                have += len(block)
    if have != size:
        raise ConnectionError(f"the answer ended after {have:,} of {size:,} bytes")


def _open(url: str, headers: Mapping[str, str], patience: RetryPolicy) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "gpt2lab"})
    for name, value in headers.items():
        if name == "Range":
            request.add_header(name, value)
        else:  # a token is for this server alone
            request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=patience.timeout)


def _persist(url: str, patience: RetryPolicy, once: Callable[[], T], have: Callable[[], int]) -> T:
    """Call ``once`` until it succeeds; attempts are counted anew whenever more of the file is here."""
    began, attempt, most = time.monotonic(), 0, have()
    while True:
        try:
            return once()
        except urllib.error.HTTPError as error:
            trouble, wait = _of_status(url, error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and (error.filename is not None or is_full(error)):
                raise  # our own disk, not the server
            trouble, wait = _in_words(error), None
        attempt, most = (1, have()) if have() > most else (attempt + 1, most)
        if attempt >= patience.attempts:
            seconds = time.monotonic() - began
            raise Unreachable(f"{url}: gave up after {attempt} attempts in {seconds:.0f} s ({trouble}); {_LATER}")
        if wait is not None and wait > patience.longest:
            raise Unreachable(f"{url}: {trouble}, and asks to be left alone for {wait:.0f} s; {_LATER}")
        time.sleep(min(patience.wait * 2 ** (attempt - 1), patience.longest) if wait is None else wait)


_LATER = "what is finished is kept: run the same command again later"


def _of_status(url: str, error: urllib.error.HTTPError) -> tuple[str, float | None]:
    """Return what a bad status means, and the seconds that the server asks for. Raises where it will not change."""
    trouble = f"HTTP {error.code} {error.reason}"
    error.close()
    if error.code in (401, 403):
        raise InputError(f"{url}: {trouble}: not open to everyone; set HF_TOKEN to a token that may read it") from error
    if error.code == 404:
        raise InputError(f"{url}: {trouble}: there is no such thing, or not for everyone; check the name") from error
    if error.code not in _PASSING:
        raise Unreachable(f"{url}: {trouble}; {_LATER}") from error
    return trouble, _seconds(error.headers.get("Retry-After"))


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which gives them or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _in_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (str(reason).splitlines() or [""])[0] or type(error).__name__


def _next_page(link: str | None) -> str | None:
    """Return the URL marked ``rel="next"`` in a ``Link`` header."""
    for part in (link or "").split(","):
        address, _, relation = part.partition(";")
        if 'rel="next"' in relation:
            return address.strip(" <>")
    return None


def token_header() -> dict[str, str]:
    """Return the header that carries the user's ``HF_TOKEN``, where there is one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


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
    repository: str, folder: str = "", revision: str = "main", patience: RetryPolicy = DEFAULT_RETRY
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


def _listed(base: str, repository: str, folder: str, revision: str, patience: RetryPolicy) -> list[HubFile]:
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


def matching(
    repository: str, patterns: Mapping[str, str], patience: RetryPolicy = DEFAULT_RETRY
) -> dict[str, list[HubFile]]:
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


def any_dataset(name: str, patience: RetryPolicy = DEFAULT_RETRY) -> dict[str, list[HubFile]]:
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
