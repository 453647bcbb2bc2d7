"""A trained model over HTTP: ``gpt2lab serve``."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from gpt2lab.cli.arguments import Checkpoint, Command, Device
from gpt2lab.errors import InputError, require

if TYPE_CHECKING:
    from gpt2lab.evaluation.measure import LoadedRun


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

    def load(self, path: Path) -> LoadedRun:
        """Open a run and load its weights. Raises `InputError` if they are missing or damaged."""
        from gpt2lab.evaluation.measure import LoadedRun

        return LoadedRun(path, self.checkpoint, self.device, self.precision)

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

        runs = Runs(self.runs, self.load)
        if not runs.paths():
            raise InputError("no run given; give the directory of at least one run")
        models = Models(runs.paths, runs.load, LOADED)
        for name in list(runs.paths())[:LOADED]:
            models.get(name)
        listening = self.listen()

        def say() -> None:
            print(f"serving {', '.join(runs.paths())} at {listening.address}/v1; Ctrl-C ends", flush=True)
            if listening.token is not None:
                print(f"API key: {listening.token}", flush=True)

        serve(create_app(models, listening.token), listening.socket, say)
