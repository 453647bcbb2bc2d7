"""A hub on this machine: it speaks the Hugging Face Hub's HTTP layout, so that its real client can be tested."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on a free port of this machine; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def loopback_hub(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serve files by NAME, OWNER/NAME or datasets/OWNER/NAME, then file name; yield the address for ``HF_ENDPOINT``."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            content, error = _find(self.path, models)
            self.send_response(404 if error else 200)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output quiet."""

    with serving(Handler) as address:
        yield address


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


def _find(path: str, models: Mapping[str, Mapping[str, bytes]]) -> tuple[bytes, str]:
    """Return what lies at an address, and what the Hub calls the error where nothing does."""
    if asked := re.match(r"/api/models/([^/]+(?:/[^/]+)?)/(revision|tree)/", path):
        name, what = asked.groups()
        if name not in models:
            return b"", "RepoNotFound"
        if what == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in models[name].items()
            ]
            return json.dumps(tree).encode(), ""
        siblings = [{"rfilename": file} for file in models[name]]
        return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), ""
    if asked := re.match(r"/((?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/[^/]+/(.+)", path):
        name, file = asked.groups()
        if file in models.get(name, {}):
            return models[name][file], ""
        return b"", "EntryNotFound" if name in models else "RepoNotFound"
    return b"", "EntryNotFound"


def gpt2lab_with(endpoint: str, home: Path, *argv: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line with that hub and a cache of its own: the client reads its environment once, at import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", "from gpt2lab.cli.main import main; raise SystemExit(main())", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
