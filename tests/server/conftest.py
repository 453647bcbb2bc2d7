"""A real browser for the tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window; tests are skipped where it is missing, except under CI, where that is a failure."""
    path = shutil.which("chromium")
    if path is None:
        reason = "needs chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 1,280 by 800 pixels, on which nothing may fail."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not errors


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    """A client that opens a connection for each request; ``httpx.get`` would read all certificates each time too."""
    with httpx.Client(limits=httpx.Limits(max_keepalive_connections=0)) as client:
        yield client


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A server with a model of random texts and one that writes a text with characters of several tokens."""
    from small_server import Server, one_text, random_texts

    server = Server({"random": random_texts(), "fixed": one_text("a€üz🐈!")})
    yield server
    server.models.stop()
