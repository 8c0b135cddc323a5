"""A browser that opens the broker's pages, and records errors and requests to other hosts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.engines import find_program, requires_program

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = find_program(*_NAMES)
needs_chromium = requires_program(*_NAMES)

# The dashboard shows a change within a second (see tests.support.dashboard_load), but not on a busy machine.
expect.set_options(timeout=30_000)

# Each window draws the popup of its address bar in a separate process, which costs 0.7 s of CPU. The argument
# `--disable-features` replaces Playwright's, so the list repeats Playwright's features that matter here.
_FEATURES_OFF = (
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "AimEnabled", "HttpsUpgrades", "MediaRouter"),
    *("NetworkTimeServiceQuerying", "OptimizationHints", "PaintHolding", "PreconnectToSearch"),
)
# Without some of these arguments Chromium contacts Google when it starts.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--disable-features={','.join(_FEATURES_OFF)}",
]
_SERIOUS = ("serious", "critical")


class PageVisit:
    """A page in the browser, with the requests and problems that it caused.

    Args:
        page: The page.
        url: The URL of the broker.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requested_urls: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requested_urls.append(request.url))
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    @property
    def foreign_urls(self) -> set[str]:
        """The requested URLs that are not the broker's."""
        return {url for url in self.requested_urls if not url.startswith((f"{self.url}/", "data:", "blob:"))}

    async def accessibility_problems(self) -> list[str]:
        """Return what axe finds that hinders people who use a keyboard or a screen reader."""
        results = await Axe().run(self.page)
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in results.response["violations"]
            if each["impact"] in _SERIOUS
            for node in each["nodes"]
        ]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_browser() -> AsyncIterator[Browser]:
    """Start one browser for all tests of a module."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(browser: Browser, url: str, path: str = "/", **context: Any) -> AsyncIterator[PageVisit]:
    """Open a page. At the end, check that it had no problems and contacted no host but the broker.

    Args:
        browser: The browser. The page gets a new context, without data of earlier pages.
        url: The URL of the broker.
        path: The path of the page.
        context: Playwright's options of a context, such as `color_scheme` and `viewport`.
    """
    async with await browser.new_context(**context) as opened:
        page = await opened.new_page()
        opened_page = PageVisit(page, url)
        await page.goto(url + path)
        yield opened_page
        assert opened_page.problems == []
        assert opened_page.foreign_urls == set()
