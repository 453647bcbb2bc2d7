"""The server: what protects it, and its start and end.

It listens on this machine alone, unless a host is given. A page of another site can then reach it through the visitor's
browser, so what the browser says of a request is checked:

    Host       names this machine, unless there is a token: another name was made to point here (DNS rebinding)
    Origin     is the server itself: scripts of other sites are refused, and no answer allows them to read
    token      with a host: ``Authorization: Bearer``, or in the address of the first page, which then sets a cookie

A policy (CSP) lets the pages load nothing from elsewhere and run no script that is written into them.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2lab.errors import InputError
from gpt2lab.server.http import APIError

if TYPE_CHECKING:
    from gpt2lab.server.models import Models

MOST_BODY, BODY_SECONDS = 2**20, 30.0
"""Largest body of a request in bytes, and how long it may take to come."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE = 1
"""Seconds that open requests have when the server ends."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Middleware that refuses what does not come from here, and bodies that are too large."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; every response gets `HEADERS`."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = None
        try:
            self._require_own(Headers(scope=scope))
            if self._token is not None:
                answer = self._sign_in(Request(scope), self._token)
            if scope["method"] not in ("GET", "HEAD"):
                receive = await _read(receive)
        except APIError as error:
            answer = error.response()
        await (answer or self._app)(scope, receive, send_guarded)

    def _require_own(self, headers: Headers) -> None:
        """Refuse a request that a page of another site has made. Raises `APIError`."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._token is None and _host_name(host) not in LOOPBACK:
            raise APIError(403, f"the host {host!r:.100} is not this server; open it as localhost or 127.0.0.1")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise APIError(403, f"requests from {origin!r:.100} are refused; this server answers its own pages")
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            raise APIError(403, "requests of other sites are refused")

    def _sign_in(self, request: Request, token: str) -> Response | None:
        """Return None if a request has the token, or the response that sets the cookie if its address has it.

        Raises:
            APIError: It has none.
        """
        port = request.scope["server"][1]
        cookie = f"gpt2lab-{port}"  # browsers send cookies to every port of a host
        key = re.sub("^bearer +", "", request.headers.get("authorization", ""), flags=re.IGNORECASE)
        given = [key, request.cookies.get(cookie, "")]
        if any(_equal(one, token) for one in given):
            return None
        query = parse_qsl(request.url.query, keep_blank_values=True)
        if request.method == "GET" and _equal(dict(query).get("token", ""), token):
            rest = urlencode([item for item in query if item[0] != "token"])
            path = "/" + request.url.path.lstrip("/")  # two slashes would lead to another server
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(cookie, token, httponly=True, samesite="lax")  # strict would not be sent after a link
            return answer
        message = "the token is missing or wrong; give it as the API key, or open the address that the server printed"
        raise APIError(401, message, code="invalid_api_key")


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _read(receive: Receive) -> Receive:
    """Read a body and return what gives it again. Raises `APIError` if it is too large or too slow."""
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BODY:
                    raise APIError(413, f"the body exceeds {MOST_BODY:,} bytes", code="request_too_large")
    except TimeoutError:
        raise APIError(408, f"the body did not come within {BODY_SECONDS:.0f} s") from None
    whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


def create_app(models: Models, token: str | None = None, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application: OpenAI's API, and further routes, in which `InputError` is the answer 400.

    Args:
        models: The models.
        token: What requests must hold; None if only this machine can reach the server.
        routes: Pages.
    """

    def refused(request: Request, error: Exception) -> Response:
        headers = {}
        if isinstance(error, HTTPException):
            headers = error.headers or {}  # Allow, with 405
            known = {404: f"there is nothing at {request.method} {request.url.path:.200}"}
            known[405] = f"{request.method} is not possible at {request.url.path:.200}"
            error = APIError(error.status_code, known.get(error.status_code, error.detail))
        elif not isinstance(error, APIError):
            error = APIError(400, str(error)) if isinstance(error, InputError) else APIError(500, "the server failed")
        answer = error.response()
        answer.headers.update({**HEADERS, **headers})  # what nobody expected is answered outside of the guard
        return answer

    handlers = dict.fromkeys((APIError, InputError, HTTPException, Exception), refused)
    api = Route("/v1/{path:path}", _Completions(models))
    app = Starlette(routes=[api, *routes], middleware=[Middleware(Guard, token)], exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.models = models
    return app


class _Completions:
    """OpenAI's API, imported with torch when it is first asked for: the first page need not wait for it."""

    def __init__(self, models: Models) -> None:
        self._models, self._router = models, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._router = self._router or await run_in_threadpool(self._routes)
        await self._router(scope, receive, send)

    def _routes(self) -> Router:
        from gpt2lab.server import completions

        return Router(completions.routes(self._models), redirect_slashes=False)


# Start and end --------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        InputError: The port is in use (the next free one is named), or the host is not of this machine.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise InputError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    for other in range(port + 1, min(port + 100, 2**16)):
        try:
            _bound(host, other).close()
        except OSError:
            continue
        raise InputError(f"port {port} is in use; port {other} is free: --port {other}")
    raise InputError(f"port {port} and those after it are in use; give another --port")


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, models: Models, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._models, self._on_start = models, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._models.stop()  # texts end, and with them their streams
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(
            logging.CRITICAL
        )  # what is still open is cut off, which is no error
        await super().shutdown(sockets)


def serve(app: Starlette, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve an application of `create_app` until Ctrl-C; in a thread other than the main one, for ever.

    Args:
        app: The application.
        listening: What `listen` returned.
        started: Called once requests are answered.
    """
    models: Models = app.state.models
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    try:
        with suppress(KeyboardInterrupt):  # how Ctrl-C goes on after the end of the server
            _Server(config, models, started).run([listening])
    finally:
        models.stop()
        models.join(GRACE)
