"""Who is answered: this machine, the server's own pages, and those who have the token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from small_server import Server, random_texts
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.server import app
from gpt2lab.server.app import listen
from gpt2lab.training.session import save_imported

TOKEN = "a-token"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a token and a page."""

    def page(request: Request) -> Response:
        if request.query_params.get("wrong"):
            raise InputError("this is wrong")
        if request.query_params.get("defect"):
            raise ZeroDivisionError
        return PlainTextResponse(f"page {request.url.query}")

    server = Server({"random": random_texts()}, TOKEN, routes=[Route("/", page), Route("//other", page)])
    yield server
    server.models.stop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),  # as over an SSH tunnel
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "localhost.attacker.example:8000"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9001"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link on another site
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ],
)
def test_only_requests_from_here_are_answered(
    http: httpx.Client, server: Server, headers: dict[str, str], status: int
) -> None:
    answer = http.get(f"{server.address}/v1/models", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    if status == 403:
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models/random", 405),
        ("OPTIONS", "/v1/completions", 405),
    ],
)
def test_other_addresses_are_refused_in_form(
    http: httpx.Client, server: Server, method: str, path: str, status: int
) -> None:
    answer = http.request(method, f"{server.address}{path}")
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)


def test_bodies_are_bounded_in_size_and_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{server.address}/v1/completions"
    for content in (b" " * 2**20 + b"{}", iter([b" " * 2**19] * 3)):
        answer = httpx.post(address, content=content)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)

    def slowly() -> Iterator[bytes]:
        yield b"{"
        time.sleep(0.4)

    answer = httpx.post(address, content=slowly())
    assert answer.status_code == 408


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer ünï".encode("latin-1")}, 401),
        ({"Cookie": "gpt2lab=a-token"}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "my-machine.example:80"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://attacker.example"}, 403),
    ],
)
def test_a_server_for_other_machines_wants_its_token(
    http: httpx.Client, guarded: Server, headers: Any, status: int
) -> None:
    answer = http.get(f"{guarded.address}/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_is_the_api_key_of_clients(guarded: Server) -> None:
    base = f"{guarded.address}/v1"
    assert len(openai.OpenAI(base_url=base, api_key=TOKEN).completions.create(model="random", prompt="a").choices) == 1
    with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
        openai.OpenAI(base_url=base, api_key="other").models.list()


def test_the_first_page_takes_the_token_from_its_address_and_keeps_it_in_a_cookie(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.address) as browser:
        assert browser.get("/?token=wrong").status_code == 401
        first = browser.get(f"/?a=1&token={TOKEN}")
        assert (first.status_code, first.headers["location"]) == (303, "/?a=1")
        assert "HttpOnly" in first.headers["set-cookie"] and "samesite=lax" in first.headers["set-cookie"].lower()
        assert browser.get("/?a=1").text == "page a=1"
        assert browser.get("/v1/models").status_code == 200
        assert browser.get("/?wrong=1").json()["error"]["message"] == "this is wrong"
        failed = browser.get("/?defect=1")
        assert failed.status_code == 500 and failed.headers["x-content-type-options"] == "nosniff"
    elsewhere = httpx.get(f"{guarded.address}//attacker.example/?token={TOKEN}")
    assert elsewhere.headers["location"] == "/attacker.example/"


def test_a_busy_port_names_the_next_free_one(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use; port [0-9]+ is free: --port"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1, port 0"):
        listen("192.0.2.1", 0)
    assert main(["serve", "/nowhere"]) == 2
    assert main(["serve"]) == 2
    assert "no run given" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C reaches a whole group of processes")
def test_ctrl_c_ends_at_once_with_open_streams(tmp_path: Path) -> None:
    small, run = random_texts(), tmp_path / "run"
    save_imported(small.model, small.tokenizer, run, "a test")
    command = [sys.executable, "-m", "gpt2lab", "serve", str(run), "--port", "0", "--precision", "fp32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("serving run at http://127.0.0.1:") and line.endswith("/v1; Ctrl-C ends\n"), line
        client = openai.OpenAI(base_url=line.split()[3].rstrip(";"), api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "run", "prompt": "a", "max_tokens": 30_000, "stream": True}
        streams = [client.completions.create(**asked) for _ in range(3)]
        for stream in streams:
            next(stream)
        os.kill(process.pid, signal.SIGINT)
        for stream in streams:
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(stream)
        assert process.wait(30) == 0  # the texts would take minutes
        assert process.stderr.read() == ""
