"""The service shows the documentation at /help, with a search that works without the internet."""

import re

import pytest
from playwright.async_api import Browser, expect

from broker.http.assets import WEB
from tests.conftest import Running
from tests.support.browser import needs_chromium, shared_browser, visit
from tests.support.shared import shared_broker, shared_database

pytestmark = pytest.mark.asyncio(loop_scope="module")
browser = shared_browser
database = shared_database
broker = shared_broker


async def test_help_redirects_to_the_folder_of_a_page(broker: Running) -> None:
    for path, location in (("/help", "help/"), ("/help/operate/backup", "backup/")):
        response = await broker.client.get(path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (308, location)
    assert (await broker.client.get("/help/operate/backup/")).status_code == 200


@pytest.mark.parametrize(
    "path", ["nothing/", "nothing.html", "../app.py", "%2e%2e/app.py", "a%0d%0ab", "%ff"]
)
async def test_unknown_help_page_is_not_found(broker: Running, path: str) -> None:
    response = await broker.client.get(f"/help/{path}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@needs_chromium
async def test_search_finds_a_page_and_loads_nothing_from_other_hosts(
    broker: Running, browser: Browser
) -> None:
    assert (WEB / "help" / "index.html").exists(), "run `make docs`"
    async with visit(browser, broker.url, "/help/") as visited:
        page = visited.page
        await page.get_by_role("button", name="Search").first.click()
        await page.get_by_role("combobox", name="Search").fill("back up")
        await page.get_by_role("option").filter(has_text="Back up and restore").first.click()
        await expect(page.locator("h1")).to_have_text(re.compile("Back up and restore"))
