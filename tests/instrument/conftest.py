"""A headless Chromium for pages that are read as a user reads them; without one these tests are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Opened:
    """A page and what it complained of or asked for."""

    page: Any
    paths: list[Path]
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def wait_until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Waits for an expression to be true, over reloads; playwright's own way needs eval, which the page forbids."""
    from playwright.sync_api import Error

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if page.evaluate(expression):
                return
        except Error:  # in the middle of a reload
            pass
        time.sleep(0.05)
    raise AssertionError(f"never true: {expression}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Opens a file; at the end nothing but it may have been asked for, and nothing complained of."""
    every: list[Opened] = []

    def open_file(path: Path, width: int = 1280, height: int = 900, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": height}, locale="en-US", **options)
        found = Opened(context.new_page(), [path])
        found.page.on("console", lambda m: found.errors.append(m.text) if m.type in ("error", "warning") else None)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        every.append(found)
        return found

    yield open_file
    for found in every:
        assert found.errors == []
        assert {url.partition("#")[0] for url in found.requests} <= {path.as_uri() for path in found.paths}
        found.page.context.close()
