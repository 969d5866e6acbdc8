"""A browser for the pages of reports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.chromium import Browser, executable


@pytest.fixture(scope="session")
def _report_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executable() is None:
        pytest.skip("no Chromium here: install it to test the page")
    with Browser(tmp_path_factory.mktemp("report-profile")) as browser:
        yield browser


@pytest.fixture
def browser(_report_browser: Browser) -> Browser:
    """With nothing noted yet."""
    _report_browser.send("Page.navigate", url="about:blank")
    _report_browser.events.clear()
    return _report_browser
