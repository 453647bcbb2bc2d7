"""A Hub on this machine: it speaks the Hugging Face Hub's HTTP layout, and misbehaves as told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "c0ffee" * 6 + "c0ff"
PAGE = 3
"""Files on a page of a listing."""
Repositories = Mapping[str, Mapping[str, bytes]]
"""Files by OWNER/NAME or NAME of a model, or datasets/OWNER/NAME, then by path."""


class Hub:
    """Repositories, and what to do wrong: a list of faults for the name of a file, one for each time it is asked."""

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.faults: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.tokens: list[str | None] = []
        self.revisions = {"main": COMMIT}
        self.address = ""

    def add(self, dataset: str, path: str, content: bytes) -> None:
        """Add a file to a dataset."""
        self.repositories.setdefault(f"datasets/{dataset}", {})[path] = content

    def tree(self, repository: str, folder: str) -> list[dict[str, Any]]:
        """List the files of a folder."""
        entries = []
        for path, content in sorted(self.repositories[repository].items()):
            if path.startswith(f"{folder}/" if folder else ""):
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                entries.append({"type": "file", "path": path, "size": len(content), "oid": "0" * 40, "lfs": lfs})
        return entries


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Keep the tests' output quiet."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            name = path.rpartition("/")[2]
            hub.asked[name] += 1
            hub.tokens.append(self.headers.get("Authorization"))
            fault = hub.faults[name].pop(0) if hub.faults.get(name) else None
            if isinstance(fault, int):
                self._answer(b"no", fault)
            elif isinstance(fault, tuple):
                self._answer(b"later", fault[0], {"Retry-After": str(fault[1])})
            elif asked := re.fullmatch(r"/api/(?:models/|(datasets/))(.+?)/(revision|tree)/(.+)", path):
                kind, name, what, rest = asked.groups("")
                self._list(kind + name, what, rest, int(parse_qs(url.query).get("cursor", ["0"])[0]))
            elif asked := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
                self._file(*asked.groups(), fault=fault)
            else:
                self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})

        def _list(self, repository: str, what: str, rest: str, cursor: int) -> None:
            revision, _, folder = rest.partition("/") if what == "tree" else (rest, "", "")
            known = revision in (hub.revisions if what == "revision" else hub.revisions.values())
            entries = hub.tree(repository, folder) if known and repository in hub.repositories else []
            if not entries:
                return self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            if what == "revision":
                files = [{"rfilename": entry["path"]} for entry in entries]
                found = {"id": repository, "sha": hub.revisions[revision], "siblings": files}
                return self._answer(json.dumps(found).encode())
            link = {}
            if cursor + PAGE < len(entries):
                link = {"Link": f'<{hub.address}{self.path.split("?")[0]}?cursor={cursor + PAGE}>; rel="next"'}
            return self._answer(json.dumps(entries[cursor : cursor + PAGE]).encode(), headers=link)

        def _file(self, repository: str, path: str, fault: Any) -> None:
            content = hub.repositories.get(repository, {}).get(path)
            if content is None:
                error = "EntryNotFound" if repository in hub.repositories else "RepoNotFound"
                return self._answer(b"no such file", 404, {"X-Error-Code": error})
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            start = 0
            if (asked := self.headers.get("Range")) and fault != "no ranges":
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            if fault == "slow":
                time.sleep(3.0)
            if fault == "wrong bytes":
                content = bytes(byte ^ 1 for byte in content)
            part = content[start:]
            sent = {"half": len(part) // 2, "drop": 0}.get(fault)
            return self._answer(part, 206 if start else 200, headers, sent)

        def _answer(
            self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, sent: int | None = None
        ) -> None:
            """Answer with a body, of which only ``sent`` bytes are sent before the connection closes."""
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:sent])

    return Handler


@contextmanager
def loopback_hub(repositories: Repositories | None = None) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub(repositories or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_client(endpoint: str, cache: Path) -> Iterator[None]:
    """Point the Hub's client in this process to an address and a cache: it reads its environment once, at import."""
    from huggingface_hub import constants

    changes = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(constants, name, value)
        yield


def gpt2lab_with(endpoint: str, home: Path, *argv: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line with that hub and a cache of its own: the client reads its environment once, at import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", "from gpt2lab.cli.main import main; raise SystemExit(main())", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
