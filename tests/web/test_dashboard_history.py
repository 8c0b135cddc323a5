"""The dashboard in a real browser: time ranges, the timeline by keyboard, long records, and its links."""

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.conftest import Running
from tests.support.api import add_assigned_work, add_running_work, complete_work
from tests.support.browser import needs_chromium, shared_browser, visit
from tests.support.shared import SHARED_BROKER

on_one_loop, database, broker, sql, http = SHARED_BROKER
pytestmark = [on_one_loop, needs_chromium]
browser = shared_browser

EXACT = "123456789012345678901234567890.10"
# A payload may contain a picture.
LONG = "x" * 8_000_000


def timeline(page: Page) -> Locator:
    return page.get_by_role("application", name="Timeline")


async def fail_task(http: httpx.AsyncClient, task: str) -> str:
    pair = await add_running_work(http, task, "microscope", max_attempts=1)
    await complete_work(http, pair.work, "failed", error="No focus.")
    return pair.work


async def test_the_timeline_works_by_keyboard(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    work = await fail_task(http, "blurred")
    async with visit(browser, broker.url, "/#/history") as visited:
        page = visited.page
        await timeline(page).focus()
        await page.keyboard.press("ArrowRight")
        description = page.locator(".timeline [role=status]")
        await expect(description).to_contain_text("microscope: task blurred, attempt 1, failed after")
        await page.keyboard.press("-")
        await expect(page).to_have_url(f"{broker.url}/#/history/2h")
        await expect(page.get_by_text("1 attempt ended: 1 failed.")).to_be_visible()
        await expect(timeline(page)).to_be_focused()
        await expect(description).to_contain_text("blurred")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{broker.url}/#/record/{work}")


async def test_the_time_range_is_in_the_url(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    await fail_task(http, "seen")
    now = datetime.now(UTC)
    until = now - timedelta(hours=2)
    since = until - timedelta(hours=1)
    async with visit(browser, broker.url, f"/#/history/{since.isoformat()}/{until.isoformat()}") as visited:
        page = visited.page
        await expect(page.get_by_text("No attempt ended in this time range. Zoom out")).to_be_visible()
        await expect(page.get_by_text("No attempt failed in this time range.")).to_be_visible()
        await page.get_by_role("button", name="Now", exact=True).click()
        await expect(page).to_have_url(f"{broker.url}/#/history/1h")
        await expect(page.get_by_role("row").filter(has_text="seen")).to_contain_text("No focus.")
        await page.go_back()
        await expect(page.get_by_text("No attempt ended in this time range. Zoom out")).to_be_visible()


async def test_a_long_record_keeps_all_digits(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    pair = await add_assigned_work(http, "exact", "balance", payload={"picture": LONG, "escaped": 'a "\\'})
    headers = {"Content-Type": "application/json"}
    report = f'{{"message": "weighed", "data": {{"grams": {EXACT}}}}}'
    await http.post(f"/v1/work/{pair.work}/reports", content=report, headers=headers)
    result = f'{{"outcome": "succeeded", "result": [{EXACT}]}}'
    await http.post(f"/v1/work/{pair.work}/complete", content=result, headers=headers)
    async with visit(browser, broker.url, f"/#/record/{pair.work}") as visited:
        page = visited.page
        await expect(page.get_by_label("Result", exact=True)).to_contain_text(EXACT)
        await expect(page.get_by_role("row").filter(has_text="weighed")).to_contain_text(EXACT)
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Download all of Payload").click()
        path = await (await download.value).path()
        assert json.loads(path.read_text())["picture"] == LONG


@pytest.mark.parametrize(
    ("old", "view"), [("now", "Overview"), ("why", "Waiting"), ("then", "History"), ("then/2h", "History")]
)
async def test_bookmarks_of_earlier_versions_still_work(
    broker: Running, browser: Browser, old: str, view: str
) -> None:
    async with visit(browser, broker.url, f"/#/{old}") as visited:
        current = visited.page.get_by_role("navigation").locator("[aria-current=page]")
        await expect(current).to_have_text(view)
        await expect(visited.page.get_by_role("heading", name=view, exact=True)).to_be_attached()


async def test_the_header_links_to_the_documentation(broker: Running, browser: Browser) -> None:
    async with visit(browser, broker.url) as visited:
        for name, path in (("API", "/docs"), ("Help", "/help/")):
            link = visited.page.get_by_role("navigation").get_by_role("link", name=name, exact=True)
            await expect(link).to_have_attribute("href", path)
