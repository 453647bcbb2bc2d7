"""The client of the Hugging Face Hub: models and benchmark files by name, and downloads of corpora that can be resumed.

The Hub is at ``HF_ENDPOINT``, by default https://huggingface.co; ``HF_TOKEN`` is sent to it and to no other server.

Weights, vocabularies and benchmark files are downloaded once by huggingface_hub (extra ``hub``) and stay in its cache
(``HF_HOME``). A name is looked up only if it cannot be a mistyped path: one of `PUBLISHED`, ``OWNER/NAME`` if there is
no directory OWNER, or anything after ``hub:``.

Corpora are downloaded by `fetch`, since huggingface_hub does not limit disk space. It needs the standard library only:

    request -> bytes -> FILE.partial -> size and SHA-256 as published -> FILE

Temporary failures (no connection, a busy or broken server, an incomplete response) are retried after 1, 2, 4, ...
seconds, or after the ``Retry-After`` of the response (RFC 9110, section 10.2.3), up to a limit. A download resumes at
the byte where it stopped. Permanent failures (no such file, no access) are raised at once.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from gpt2lab.errors import InputError, TemporaryError, did_you_mean
from gpt2lab.files import is_full, neighbors, sha256_of, sync

PREFIX = "hub:"
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Models whose name on the Hub has no owner."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""The name of a repository, with or without its owner."""
_BLOCK = 1 << 20
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of temporary failures."""
_LATER = "completed files are kept: run the same command again later"
T = TypeVar("T")


def find_model(source: Path | str, files: Sequence[str]) -> Path:
    """Return a local directory as it is, or the local copy of a model of the Hub.

    Args:
        source: The directory, or a name such as ``gpt2``, ``OWNER/NAME`` or ``hub:OWNER/NAME``.
        files: Names or patterns of the files to download, if the model has them.

    Raises:
        InputError: There is no such directory or model, or the Hub is unreachable.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _name_of(source)
    return _cached(
        f'"{name}" is not a local directory', lambda client: client.snapshot_download(name, allow_patterns=list(files))
    )


def fetch_data(name: str, file: str, revision: str) -> Path:
    """Return the local copy of a file of a dataset of the Hub.

    Raises:
        InputError: huggingface_hub is not installed, or the download failed.
    """
    return _cached(
        f'no local file is given for "{name}"',
        lambda client: client.hf_hub_download(name, file, repo_type="dataset", revision=revision),
    )


def _name_of(source: Path | str) -> str:
    """Return the name that ``source`` has on the Hub. Raises InputError where it must be a path, or is neither."""
    given = source if isinstance(source, str) else source.as_posix()
    name = given.removeprefix(PREFIX)
    owner, slash, _ = name.partition("/")
    is_meant = given != name or name in PUBLISHED or (slash and not Path(owner).exists())
    if is_meant and NAME.fullmatch(name):
        return name
    hint = did_you_mean(given, [*PUBLISHED, *neighbors(Path(given))])
    raise InputError(f"{given} does not exist{hint}; give a directory, or a name on the Hub: gpt2 or hub:OWNER/NAME")


def _cached(problem: str, download: Callable[[Any], str]) -> Path:
    """Return what huggingface_hub has downloaded, now or earlier; ``problem`` begins the message of a failure."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise InputError(f'{problem}; to download it from the Hub: pip install "gpt2lab[hub]"') from None
    try:
        return Path(download(huggingface_hub))
    except RepositoryNotFoundError:
        raise InputError(f"{problem}, and the Hub has no such public model or dataset") from None
    except LocalEntryNotFoundError:
        raise InputError(f"{problem}, is not in the cache, and the Hub is unreachable") from None
    except Exception as error:  # of the client, its HTTP library or the disk; each says what failed
        reason = " ".join(str(error).split())
        raise InputError(f"{problem}, and the download from the Hub failed: {reason}") from error


class Unreachable(TemporaryError):
    """A server did not respond as it should within the limits of the `RetryPolicy`; a later attempt may succeed."""


@dataclass(frozen=True)
class RetryPolicy:
    """``attempts`` without progress; ``wait`` seconds after the first one, doubled up to ``longest``."""

    attempts: int = 6
    wait: float = 1.0
    longest: float = 120.0
    timeout: float = 30.0


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class SourceFile:
    """A file to read, or to download if it has a ``url``; ``version`` is its SHA-256, if known, or time of change."""

    name: str
    size: int
    version: str
    url: str = ""


def endpoint() -> str:
    """Return the address of the Hub. Raises `InputError` if ``HF_ENDPOINT`` is not an address."""
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    if not address.startswith(("http://", "https://")):
        raise InputError(f'HF_ENDPOINT is "{address}"; give an address such as https://huggingface.co')
    return address


def list_files(
    dataset: str, folder: str = "", revision: str = "main", retry: RetryPolicy = DEFAULT_RETRY
) -> list[SourceFile]:
    """Return the files below a folder of a dataset, sorted by path, at the current commit of the revision.

    Raises:
        Unreachable: The Hub does not respond.
        InputError: It has no such dataset, revision or folder, or the server is not a Hub.
    """
    base = f"{endpoint()}/api/datasets/{dataset}"
    try:
        commit = get_json(f"{base}/revision/{quote(revision, safe='')}", retry)[0]["sha"]
        page: str | None = f"{base}/tree/{commit}{'/' + quote(folder) if folder else ''}?recursive=true"
        entries = []
        while page is not None:
            part, page = get_json(page, retry)
            entries += [entry for entry in part if entry["type"] == "file"]
        files = f"{endpoint()}/datasets/{dataset}/resolve/{commit}"
        found = [
            SourceFile(e["path"], e["size"], (e.get("lfs") or {}).get("oid") or "", f"{files}/{quote(e['path'])}")
            for e in entries
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{base}: not the response of a Hub; check that HF_ENDPOINT names one") from error
    return sorted(found, key=lambda file: file.name)


def get_json(url: str, retry: RetryPolicy = DEFAULT_RETRY) -> tuple[Any, str | None]:
    """Return the JSON at a URL, and the URL of the next page if the response names one.

    Raises:
        Unreachable: No usable response within the limits.
        InputError: The server has no such thing, or denies access.
    """

    def once() -> tuple[Any, str | None]:
        with _open(url, retry) as response:
            following = re.search(r'<([^>]*)>;[^,]*rel="next"', response.headers.get("Link") or "")
            return json.loads(response.read()), following and following[1]

    return _until_it_succeeds(url, retry, once, lambda: 0)


def fetch(file: SourceFile, target: Path, retry: RetryPolicy = DEFAULT_RETRY) -> None:
    """Download a file, or resume its download; it gets its name when it is complete.

    Args:
        file: What to download; its bytes must have its SHA-256, if that is known.
        target: Its local path; ``.partial`` is appended until it is complete.
        retry: The limits of attempts and waiting.

    Raises:
        Unreachable: The limits are exceeded, or the bytes are repeatedly not those published.
        InputError: The server has no such file, or denies access.
    """
    partial = target.with_name(target.name + ".partial")

    def received() -> int:
        return partial.stat().st_size if partial.exists() else 0

    def once() -> None:
        _receive(file.url, partial, received(), file.size, retry)
        if file.version and (found := sha256_of(partial)) != file.version:
            partial.unlink()
            why = f"SHA-256 {found[:12]}..., not {file.version[:12]}..."
            raise ConnectionError(f"the bytes are not those published: {why}")

    _until_it_succeeds(file.url, retry, once, received)
    sync(partial)
    partial.replace(target)


def _receive(url: str, partial: Path, have: int, size: int, retry: RetryPolicy) -> None:
    """Append what is missing to the ``have`` bytes of ``partial``."""
    if have == size and size:
        return
    with _open(url, retry, have if have < size else 0) as response:
        if response.status != 206:  # the server sends the whole file
            have = 0
        with partial.open("ab" if have else "wb") as file:
            while have < size and (block := response.read(min(_BLOCK, size - have))):
                file.write(block)
                have += len(block)
    if have != size:
        raise ConnectionError(f"the response ended after {have:,} of {size:,} bytes")


def _open(url: str, retry: RetryPolicy, start: int = 0) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "gpt2lab"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and url.startswith(endpoint() + "/"):  # and not to a server that the Hub redirects to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return urllib.request.urlopen(request, timeout=retry.timeout)


def _until_it_succeeds(url: str, retry: RetryPolicy, once: Callable[[], T], received: Callable[[], int]) -> T:
    """Call ``once`` until it succeeds; the count of attempts restarts whenever more bytes are received."""
    began, attempt, most = time.monotonic(), 0, received()
    while True:
        wait = None
        try:
            return once()
        except urllib.error.HTTPError as error:
            failure, wait = _of_status(url, error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and (error.filename is not None or is_full(error)):
                raise  # the local disk, not the server
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            failure = str(reason).partition("\n")[0] or type(reason).__name__
        attempt, most = (1, received()) if received() > most else (attempt + 1, most)
        if attempt >= retry.attempts:
            seconds = time.monotonic() - began
            raise Unreachable(f"{url}: gave up after {attempt} attempts in {seconds:.0f} s ({failure}); {_LATER}")
        if wait is not None and wait > retry.longest:
            raise Unreachable(f"{url}: {failure}, and asks to retry after {wait:.0f} s; {_LATER}")
        time.sleep(min(retry.wait * 2 ** (attempt - 1), retry.longest) if wait is None else wait)


def _of_status(url: str, error: urllib.error.HTTPError) -> tuple[str, float | None]:
    """Return what a status means, and the seconds of its ``Retry-After``. Raises if the failure is permanent."""
    failure = f"HTTP {error.code} {error.reason}"
    error.close()
    if error.code in (401, 403):
        raise InputError(f"{url}: {failure}: access is restricted; set HF_TOKEN to a token that has access") from error
    if error.code == 404:
        raise InputError(f"{url}: {failure}: does not exist or is not public; check the name") from error
    if error.code not in _TEMPORARY:
        raise Unreachable(f"{url}: {failure}; {_LATER}") from error
    after = error.headers.get("Retry-After") or ""
    try:
        return failure, max(0.0, float(after))
    except ValueError:  # it may also be a date
        date = parsedate_tz(after)
    return failure, None if date is None else max(0.0, mktime_tz(date) - time.time())
