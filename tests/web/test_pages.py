"""The pages for people: they run and load nothing but what is the broker's, and keep a key to themselves."""

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

KEY = "the-key-of-who-looks-at-the-page"
PAGES = ["/docs", "/"]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_may_run_and_load_nothing_but_what_is_the_brokers(broker: Running, path: str) -> None:
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
async def test_nothing_is_taken_for_what_it_is_not(broker: Running, path: str) -> None:
    assert (await broker.client.get(path)).headers["x-content-type-options"] == "nosniff"


@needs_chromium
async def test_the_api_can_be_tried_out_on_its_page_with_a_key(database: str, browser: Browser) -> None:
    settings = Settings(database_url=database, admin_key=KEY)
    async with running_broker(settings) as broker, visit(browser, broker.url, "/docs") as looks:
        page = looks.page
        assert await try_out(page) == "401"
        looks.problems.clear()  # that was one
        await page.click(".btn.authorize")
        await page.fill(".auth-container input", KEY)
        await page.click(".auth-btn-wrapper .authorize")
        await page.click(".btn-done")
        assert await try_out(page) == "201"
    assert not any(KEY in url for url in looks.requested_urls)


async def try_out(page: Page) -> str:
    """Submit the task that is shown; the status that the page shows then."""
    call = page.locator("#operations-Tasks-tasks_submit")
    if not await call.locator(".execute").count():
        await call.locator(".opblock-summary").click()
    if await call.locator(".btn-clear").count():
        await call.locator(".btn-clear").click()
    await call.locator(".execute").click()
    status = call.locator(".live-responses-table tbody .response-col_status")
    await expect(status).to_have_text(re.compile(r"\d{3}"))
    return (await status.inner_text()).split()[0]
