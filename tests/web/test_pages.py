"""The web pages load scripts and data only from the broker, and keep the user's key private."""

import re

import pytest
from playwright.async_api import Browser, Page, expect

from broker.http.assets import PAGE_HEADERS
from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support.browser import needs_chromium, shared_browser, visit
from tests.support.shared import shared_broker, shared_database

pytestmark = pytest.mark.asyncio(loop_scope="module")
browser = shared_browser
database = shared_database
broker = shared_broker

KEY = "the-key-of-the-user-of-the-page"
PAGES = ["/docs", "/"]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_scripts_and_data_only_from_the_broker(broker: Running, path: str) -> None:
    page = await broker.client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert {name: page.headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    policy = dict(part.split(maxsplit=1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    inline = r'<script(?![^>]*\bsrc=|[^>]*\btype="application/json")|\son\w+=|<style|\bstyle=|javascript:'
    assert not re.search(
        inline, re.sub(r'(?s)(<script type="application/json"[^>]*>).*?</script>', r"\1", page.text)
    )


@pytest.mark.parametrize("path", [*PAGES, "/openapi.json", "/docs/assets/start.js", "/v1/tools", "/nothing"])
async def test_browsers_do_not_guess_media_types(broker: Running, path: str) -> None:
    assert (await broker.client.get(path)).headers["x-content-type-options"] == "nosniff"


@needs_chromium
async def test_the_api_page_sends_requests_with_a_key(database: str, browser: Browser) -> None:
    settings = Settings(database_url=database, admin_key=KEY)
    async with running_broker(settings) as broker, visit(browser, broker.url, "/docs") as visited:
        page = visited.page
        assert await try_out(page) == "401"
        visited.problems.clear()  # the browser reports the refused request
        await page.click(".btn.authorize")
        await page.fill(".auth-container input", KEY)
        await page.click(".auth-btn-wrapper .authorize")
        await page.click(".btn-done")
        assert await try_out(page) == "201"
    assert not any(KEY in url for url in visited.requested_urls)


async def try_out(page: Page) -> str:
    """Submit the example task, and return the status that the page shows."""
    operation = page.locator("#operations-Tasks-tasks_submit")
    if not await operation.locator(".execute").count():
        await operation.locator(".opblock-summary").click()
    if await operation.locator(".btn-clear").count():
        await operation.locator(".btn-clear").click()
    await operation.locator(".execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status")
    await expect(status).to_have_text(re.compile(r"\d{3}"))
    return (await status.inner_text()).split()[0]
