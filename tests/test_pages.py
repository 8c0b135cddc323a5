"""The pages for people: they run and load nothing but what is the broker's, and keep a key to themselves."""

import re
import shutil

import pytest
from playwright.async_api import Page, async_playwright, expect

from broker.api.pages import PAGE_HEADERS
from tests.conftest import Running, Serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "the-key-of-who-looks-at-the-page"
PAGES = ["/docs", "/"]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")


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
async def test_the_api_can_be_tried_out_on_its_page_with_a_key(serve: Serve) -> None:
    broker = await serve(admin_key=KEY)
    asked, trouble = [], []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        await page.goto(f"{broker.url}/docs")
        assert await try_out(page) == "401"
        trouble.clear()  # that was one
        await page.click(".btn.authorize")
        await page.fill(".auth-container input", KEY)
        await page.click(".auth-btn-wrapper .authorize")
        await page.click(".btn-done")
        assert await try_out(page) == "201"
        await browser.close()
    assert trouble == []
    assert {url for url in asked if not url.startswith((f"{broker.url}/", "data:"))} == set()
    assert not any(KEY in url for url in asked)


async def try_out(page: Page) -> str:
    """Submit the task that is shown; the status that the page shows then."""
    call = page.locator("#operations-Tasks-tasks_submit")
    if not await call.locator(".execute").count():
        await call.locator(".opblock-summary").click()
    if await call.locator(".btn-clear").count():
        await call.locator(".btn-clear").click()
    await call.locator(".execute").click()
    status = call.locator(".live-responses-table tbody .response-col_status")
    await expect(status).to_have_text(re.compile(r"\d{3}"), timeout=20_000)
    return (await status.inner_text()).split()[0]
