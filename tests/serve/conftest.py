"""A served run and a browser to look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from smidgen.errors import LoadError
from smidgen.serve.server import PageServer
from smidgen.serve.vendor import vendored
from tests.serve.chromium import Browser, executable


class Serving:
    """A server that answers in a thread, in a ``with`` block."""

    def __init__(self, server: PageServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="session")
def _one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executable() is None:
        pytest.skip("no Chromium here: install it to test the page")
    try:
        vendored()
    except LoadError as error:
        pytest.skip(str(error))
    with Browser(tmp_path_factory.mktemp("profile"), "--ignore-certificate-errors") as browser:
        yield browser


@pytest.fixture
def browser(_one_browser: Browser) -> Iterator[Browser]:
    """At a phone's size, with nothing noted yet."""
    _one_browser.send("Page.navigate", url="about:blank")
    _one_browser.events.clear()
    _one_browser.size(390, 844)
    yield _one_browser
    _one_browser.send("Page.navigate", url="about:blank")
