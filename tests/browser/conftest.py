"""A real Chromium. Where there is none, tests are skipped with the reason; on CI they fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, BrowserType, Page, expect, sync_playwright

from idp_middleware._demo import Parties, demo

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    # What a test browser has no business doing.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    *("--disable-gpu", "--disable-quic"),
    # Else the search would see the first 1024 characters of each string.
    "--js-flags=--heap-snapshot-string-limit=10000000",
]
PATIENCE = 20_000
"""Milliseconds that anything may take to appear."""


@pytest.fixture(scope="package")
def chromium() -> Iterator[Chromium]:
    """How to start one. Playwright runs an event loop of its own, hence no longer than for the tests here."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: install it from your distribution (Debian: apt install chromium)")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        yield Chromium(playwright.chromium, path)


class Chromium:
    """The Chromium of this machine."""

    def __init__(self, browser_type: BrowserType, path: str) -> None:
        self._type = browser_type
        self._options: dict[str, Any] = {"executable_path": path, "args": FLAGS}

    def launch(self) -> Browser:
        return self._type.launch(**self._options)

    def launch_persistent_context(self, folder: Path, **options: Any) -> BrowserContext:
        return self._type.launch_persistent_context(str(folder), **self._options, **options)


@pytest.fixture(scope="package")
def browser(chromium: Chromium) -> Iterator[Browser]:
    """A browser that many tests share; each takes contexts of its own."""
    browser = chromium.launch()
    yield browser
    browser.close()


@pytest.fixture
def parties() -> Iterator[Parties]:
    """The demo, as `idp-middleware demo` serves it."""
    with demo() as parties:
        yield parties


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that was never here before."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def screenshot(page: Page, name: str) -> None:
    """Kept for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled")
