"""A trained model over HTTP: ``gpt2lab serve`` and ``gpt2lab play``, and the page of ``gpt2lab train --watch``."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from tyro.conf import Positional

from gpt2lab import console
from gpt2lab.cli.arguments import Checkpoint, Command, Device
from gpt2lab.errors import InputError, require
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from gpt2lab.evaluation.measure import LoadedRun
    from gpt2lab.server.pages import Runs


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, and how it loads models."""

    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    host: str | None = None
    """Address to listen on for other machines, such as 0.0.0.0; requests then need the token that is printed."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to load."""
    device: Device = "auto"
    """Device to run on."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; auto is that of training where the device supports it."""
    quantize: Literal["int8", "int4"] | None = None
    """Round the weights to this many bits, on a CPU: less memory, and int4 often writes faster."""

    def load(self, path: Path) -> LoadedRun:
        """Open a run and load its weights. Raises `InputError` if they are missing or damaged."""
        from gpt2lab.evaluation.measure import LoadedRun

        return LoadedRun(path, self.checkpoint, self.device, self.precision, self.quantize)

    def listen(self) -> Listening:
        """Begin to listen. Raises `InputError` if the port is in use."""
        from gpt2lab.server.app import LOOPBACK, listen

        require(0 <= self.port < 2**16, "port", self.port, f"from 0 to {2**16 - 1}")
        host = self.host or LOOPBACK[0]
        token = None if host in LOOPBACK else secrets.token_urlsafe(24)
        return Listening(listen(host, self.port), token)


@dataclass(frozen=True)
class Listening:
    """A socket that listens, and the token that requests need."""

    socket: socket.socket
    token: str | None

    @property
    def address(self) -> str:
        """Where a browser on this machine, or on another if there is a token, finds the server."""
        host, port = self.socket.getsockname()[:2]
        host = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}"


@dataclass(frozen=True)
class Serve(ServerOptions, Command):
    """Serve trained models with OpenAI's completions API, at /v1, on this machine.

    Requests are answered together: a step of the model continues all of them.
    """

    runs: Positional[tuple[Path, ...]]
    """Run directories, or directories that hold some."""

    def run(self) -> None:
        """Load the models and answer until Ctrl-C."""
        from gpt2lab.server.app import create_app, serve
        from gpt2lab.server.models import Models
        from gpt2lab.server.pages import LOADED, Runs

        runs = Runs(self.runs, self.load, self.checkpoint)
        if not runs.paths():
            raise InputError("no run given; give the directory of at least one run")
        models = Models(runs.ready, runs.load, LOADED)
        if not models.names():
            raise InputError("no run has a checkpoint yet; start again once the first is written")
        for name in list(models.names())[:LOADED]:
            models.get(name)
        listening = self.listen()

        def say() -> None:
            print(f"serving {', '.join(models.names())} at {listening.address}/v1; Ctrl-C ends", flush=True)
            if listening.token is not None:
                print(f"API key: {listening.token}", flush=True)

        serve(create_app(models, listening.token), listening.socket, say)


@dataclass(frozen=True)
class Play(ServerOptions, Command):
    """Open trained models in the browser: write with them, look inside, patch, compare, and watch a training.

    The server has OpenAI's completions API, too, at /v1.
    """

    runs: Positional[tuple[Path, ...]] = ()
    """Run directories, or directories that hold some; by default runs/."""
    browser: bool = True
    """Open the browser; without a display, the address is printed only."""

    def run(self) -> None:
        """Serve the pages until Ctrl-C."""
        from gpt2lab.server.pages import Runs

        for path in self.runs:
            if not Runs([path], self.load).paths():
                Run.open(path)
        runs = Runs(self.runs or [Path("runs")], self.load, self.checkpoint)
        names = list(runs.paths())
        view = _view(names[0], "write") if self.runs and len(names) == 1 else ""
        _serve_pages(runs, self.listen(), view, "play at {address} (Ctrl-C ends)", self.browser)


def watch(run: Run) -> None:
    """Show a run in the browser while this process trains it: its files, not its model. The server ends with it."""
    from gpt2lab.server.pages import Runs

    def not_here(path: Path) -> LoadedRun:
        raise InputError(
            f"this server only watches the training; open the model in another terminal: gpt2lab play {path}"
        )

    try:
        listening = ServerOptions().listen()
    except InputError:  # the port is in use
        listening = ServerOptions(port=0).listen()
    arguments = (Runs([run.path], not_here), listening, _view(run.path.resolve().name, "watch"), "watch at {address}")
    Thread(target=_serve_pages, args=(*arguments, True), daemon=True).start()


def _view(name: str, view: str) -> str:
    return f"#/run/{quote(name, safe='')}/{view}"


def _serve_pages(runs: Runs, listening: Listening, view: str, said: str, browser: bool) -> None:
    from gpt2lab.server.app import create_app, serve
    from gpt2lab.server.models import Models
    from gpt2lab.server.pages import LOADED, routes

    models = Models(runs.ready, runs.load, LOADED)
    token = "" if listening.token is None else f"?token={listening.token}"
    address = f"{listening.address}/{token}{view}"

    def started() -> None:
        console.console.print(said.format(address=address), markup=False, highlight=False, soft_wrap=True)
        if browser and _has_display():
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    serve(create_app(models, listening.token, routes(runs, models)), listening.socket, started)


def _has_display() -> bool:
    """Return whether a browser that is opened here is seen by the user."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
