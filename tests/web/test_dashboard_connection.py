"""The dashboard's connection to the broker: keys, restarts, and thousands of events."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from broker.settings import Settings
from broker.store import Store
from tests.conftest import Running, running_broker, temporary_database
from tests.support.api import add_task, add_tasks, add_tool, bearer, make_key
from tests.support.browser import needs_chromium, shared_browser, visit
from tests.support.processes import free_port
from tests.support.shared import shared_database

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_chromium]
browser = shared_browser
database = shared_database

ADMIN = "the-key-that-is-there-from-the-start"


@pytest_asyncio.fixture(loop_scope="module")
async def broker_with_keys(postgres: str, template: str) -> AsyncIterator[Running]:
    """Run a broker that has keys."""
    async with (
        temporary_database(postgres, template) as url,
        running_broker(Settings(database_url=url, admin_key=ADMIN)) as running,
    ):
        running.client.headers.update(bearer(ADMIN))
        yield running


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("Key").fill(key)
    await page.get_by_role("button", name="Sign in").click()


async def test_a_key_is_kept_only_in_the_tab(broker_with_keys: Running, browser: Browser) -> None:
    await add_tool(broker_with_keys.client, "microscope")
    async with visit(browser, broker_with_keys.url) as visited:
        page = visited.page
        await sign_in(page, "a-wrong-key")
        await expect(page.get_by_role("alert")).to_contain_text("does not know this key")
        await sign_in(page, ADMIN)
        await expect(page.locator(".tile")).to_contain_text("microscope")
        visited.problems.clear()  # the browser reports the refused requests, too
        assert await page.evaluate("Object.values(localStorage).length + document.cookie.length") == 0
        assert not any(ADMIN in url for url in visited.requested_urls)
        await page.reload()
        await expect(page.locator(".tile")).to_contain_text("microscope")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Key")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        visited.problems.clear()


async def test_a_key_with_the_wrong_role_gets_an_explanation(
    broker_with_keys: Running, browser: Browser
) -> None:
    store = broker_with_keys.server.service.store
    submitter = await make_key(store, "submitter", "submitter")
    await add_task(broker_with_keys.client, "mine")
    async with visit(browser, broker_with_keys.url) as visited:
        await sign_in(visited.page, submitter)
        alert = visited.page.get_by_role("alert").filter(has_text="role")
        await expect(alert).to_contain_text("operator")
        visited.problems.clear()


async def test_a_replaced_key_returns_the_user_to_the_sign_in_form(
    broker_with_keys: Running, browser: Browser
) -> None:
    store: Store = broker_with_keys.server.service.store
    key = await make_key(store, "ops", "operator")
    async with visit(browser, broker_with_keys.url) as visited:
        await sign_in(visited.page, key)
        await expect(visited.page.locator(".state.live")).to_be_visible()
        await make_key(store, "ops", "operator", replace=True)
        await expect(visited.page.get_by_label("Key")).to_be_visible()
        visited.problems.clear()


async def test_the_page_reconnects_after_a_restart_of_the_broker(database: str, browser: Browser) -> None:
    port = free_port()
    settings = Settings(database_url=database)
    async with running_broker(settings, port) as first:
        await add_tool(first.client, "before")
        context = visit(browser, first.url)
        visited = await context.__aenter__()
        await expect(visited.page.locator(".tile")).to_contain_text("before")
    await expect(visited.page.locator(".state")).to_have_text("Not connected")
    async with running_broker(settings, port) as second:
        await add_tool(second.client, "meanwhile")
        await expect(visited.page.locator(".tile").filter(has_text="meanwhile")).to_be_visible()
        await expect(visited.page.locator(".state")).to_have_text("Connected")
        visited.problems.clear()
        await context.__aexit__(None, None, None)


async def test_thousands_of_tasks_are_counted(database: str, browser: Browser) -> None:
    async with (
        running_broker(Settings(database_url=database)) as broker,
        visit(browser, broker.url) as visited,
    ):
        await expect(visited.page.locator(".state.live")).to_be_visible()
        for batch in range(3):
            await add_tasks(broker.client, *(f"t-{batch}-{n}" for n in range(1_000)), needs={"can": "count"})
        rows = visited.page.get_by_role("row").filter(has_text='"count"')
        await expect(rows).to_contain_text("3,000")


async def test_hundreds_of_tools_are_shown_on_request(database: str, browser: Browser) -> None:
    async with (
        running_broker(Settings(database_url=database)) as broker,
        visit(browser, broker.url) as visited,
    ):
        page = visited.page
        for number in range(210):
            await add_tool(broker.client, f"tool-{number:03}")
        await page.get_by_label("Find a tool").fill("tool-209")
        await expect(page.locator(".tile")).to_have_count(1)
        await page.get_by_label("Find a tool").fill("tool-")
        await expect(page.locator(".tile")).to_have_count(200)
        await page.get_by_role("button", name="Show all 210 tools").click()
        await expect(page.locator(".tile")).to_have_count(210)
