"""The server of the pages in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.server.pages import Runs, routes


@dataclass(frozen=True)
class LocalServer:
    url: str


@contextmanager
def serving(given: Sequence[Path]) -> Iterator[LocalServer]:
    runs = Runs(given, lambda path: LoadedRun(path, "best", "cpu", "fp32"))
    refused = {InputError: lambda request, error: JSONResponse({"error": {"message": str(error)}}, 400)}
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes(runs), exception_handlers=refused), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield LocalServer(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    server.should_exit = server.force_exit = True
    thread.join(5)
