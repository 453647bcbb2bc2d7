"""A hub on this machine, for the tests: it speaks the HTTP layout of the real one, and misbehaves as told."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub import serving

COMMIT = "c0ffee" * 6 + "c0ff"
PAGE = 3


class Hub:
    """Files by (repository, path), and what to do wrong: a list of faults for a path, one for each time it is asked."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.faults: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.tokens: list[str | None] = []
        self.revisions = {"main": COMMIT}
        self.address = ""

    def add(self, repository: str, path: str, content: bytes) -> None:
        self.files[repository, path] = content

    def tree(self, repository: str, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": "0" * 40,
                "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)},
            }
            for (owner, path), content in sorted(self.files.items())
            if owner == repository and path.startswith(prefix)
        ]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path).strip("/")
            name = path.rpartition("/")[2]
            hub.asked[name] += 1
            hub.tokens.append(self.headers.get("Authorization"))
            faults = hub.faults.get(name, [])
            fault = faults.pop(0) if faults else None
            if isinstance(fault, int):
                self._answer(b"no", fault, {})
            elif isinstance(fault, tuple):
                self._answer(b"later", fault[0], {"Retry-After": str(fault[1])})
            elif path.startswith("api/datasets/"):
                self._api(path.split("/")[2:], int(parse_qs(url.query).get("cursor", ["0"])[0]))
            else:
                self._file(path.split("/"), fault)

        def _api(self, parts: list[str], cursor: int) -> None:
            repository, what = "/".join(parts[:2]), parts[2]
            if not any(owner == repository for owner, _ in hub.files):
                return self._answer(b"{}", 404, {})
            if what == "revision":
                revision = "/".join(parts[3:])
                if revision not in hub.revisions:
                    return self._answer(b"{}", 404, {})
                return self._answer(json.dumps({"sha": hub.revisions[revision]}).encode(), 200, {})
            entries = hub.tree(repository, "/".join(parts[4:]))
            if not entries:
                return self._answer(b"[]", 404, {})
            link = {}
            if cursor + PAGE < len(entries):
                link = {"Link": f'<{hub.address}{self.path.split("?")[0]}?cursor={cursor + PAGE}>; rel="next"'}
            return self._answer(json.dumps(entries[cursor : cursor + PAGE]).encode(), 200, link)

        def _file(self, parts: list[str], fault: Any) -> None:
            content = hub.files.get(("/".join(parts[1:3]), "/".join(parts[5:])))
            if content is None or parts[4] not in hub.revisions.values():
                return self._answer(b"no such file", 404, {})
            start = 0
            if (asked := self.headers.get("Range")) and fault != "no ranges":
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            if fault == "slow":
                time.sleep(3.0)
            if fault == "wrong bytes":
                content = bytes(byte ^ 1 for byte in content)
            part = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.close_connection = fault in ("half", "drop")  # in the midst of the answer, or before it
            self.wfile.write(part[: {"half": len(part) // 2, "drop": 0}.get(fault, len(part))])
            return None

        def _answer(self, body: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub()
    with serving(_handler(hub)) as hub.address:
        yield hub
