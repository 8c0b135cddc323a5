"""A browser that looks at the broker's pages, and notes whatever they should not do."""

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

# What happens is seen within a second, as tests.support.dashboard_load measures; a busy machine takes longer.
expect.set_options(timeout=30_000)

# Each window draws the popup of its address bar in a process of its own, which takes 0.7 s of CPU, and nobody
# sees it. This argument replaces Playwright's, so those of its features that matter here follow.
_FEATURES_OFF = (
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "AimEnabled", "HttpsUpgrades", "MediaRouter"),
    *("NetworkTimeServiceQuerying", "OptimizationHints", "PaintHolding", "PreconnectToSearch"),
)
# Chromium calls home at its start, if it may.
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
    """A page that is looked at.

    Args:
        page: The page.
        url: The broker's.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        #: What was asked for, and what went wrong.
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
        """What was asked of anybody but the broker."""
        return {url for url in self.requested_urls if not url.startswith((f"{self.url}/", "data:", "blob:"))}

    async def accessibility_problems(self) -> list[str]:
        """What hinders people who use a keyboard or a screen reader, as far as axe finds it."""
        results = await Axe().run(self.page)
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in results.response["violations"]
            if each["impact"] in _SERIOUS
            for node in each["nodes"]
        ]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_browser() -> AsyncIterator[Browser]:
    """A browser for all tests of a module."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(browser: Browser, url: str, path: str = "/", **context: Any) -> AsyncIterator[PageVisit]:
    """Look at a page; at the end it has asked nobody but the broker, and had no trouble.

    Args:
        browser: The browser; nothing is left in it of who looked before.
        url: The broker.
        path: The page.
        context: What Playwright takes for a context: `color_scheme`, `viewport` and the like.
    """
    async with await browser.new_context(**context) as opened:
        page = await opened.new_page()
        looks = PageVisit(page, url)
        await page.goto(url + path)
        yield looks
        assert looks.problems == []
        assert looks.foreign_urls == set()
