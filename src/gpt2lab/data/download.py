"""Fetching files over HTTP so that a bad line costs time and nothing else.

    ask -> bytes -> FILE.partial -> size and SHA-256 as published? -> FILE

What went wrong for the moment (no connection, a server that is busy or broken, an answer that stops half way) is
tried again after 1, 2, 4, ... seconds, or after as long as the server asks for (``Retry-After``, RFC 9110, section
10.2.3), up to a limit; a download goes on at the byte where it stopped. What will not change (no such file, no right to
it) ends at once.
Only the standard library is used: no client of another package decides how often to try.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from gpt2lab.data.disk import is_full
from gpt2lab.errors import InputError
from gpt2lab.files import sha256_of, sync

T = TypeVar("T")
_BLOCK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of troubles that pass."""


class Unreachable(InputError):
    """A server did not give what it should within the limit of patience; a later try may succeed."""


@dataclass(frozen=True)
class Patience:
    """How long to try: ``attempts`` without progress, ``wait`` seconds after the first, doubled up to ``longest``."""

    attempts: int = 6
    wait: float = 1.0
    longest: float = 120.0
    timeout: float = 30.0


PATIENCE = Patience()


def get_json(
    url: str, headers: Mapping[str, str] | None = None, patience: Patience = PATIENCE
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
    patience: Patience = PATIENCE,
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


def _receive(url: str, partial: Path, size: int, headers: Mapping[str, str], patience: Patience) -> None:
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


def _open(url: str, headers: Mapping[str, str], patience: Patience) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "gpt2lab"})
    for name, value in headers.items():
        if name == "Range":
            request.add_header(name, value)
        else:  # a token is for this server alone
            request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=patience.timeout)


def _persist(url: str, patience: Patience, once: Callable[[], T], have: Callable[[], int]) -> T:
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
