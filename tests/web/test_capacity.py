"""The page that computes what a load needs: it is right, and says what to do."""

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.conftest import Running
from tests.support import browser as looking
from tests.support.browser import a_look, needs_chromium
from tests.support.shared import shared_broker, shared_database

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_chromium]
browser = looking.shared_browser
database = shared_database
broker = shared_broker

# Round figures, so that what comes out can be seen to be right.
COSTS = {
    "serviceMsPerTask": 1,
    "databaseMsPerTask": 2,
    "serviceMsInBatches": 0.1,
    "databaseMsInBatches": 0.2,
    "serviceMsPerReport": 0.5,
    "databaseMsPerReport": 0.25,
    "idlePercentPer10k": 1,
    "kibPerTool": 16,
    "mibPerProcess": 100,
    "bytesPerRecord": 1000,
    "commitsThatNotify": 1000,
}


async def fill(page: Page, **values: float) -> None:
    for name, value in values.items():
        await page.locator(f"input[name={name}]").fill(str(value))


async def figure(page: Page, what: str) -> str:
    row = page.get_by_role("row", name=what)
    return await row.locator(".figure").inner_text()


async def opened(page: Page, **asked: Any) -> None:
    await page.locator("summary").click()
    await fill(page, **COSTS)
    await fill(page, **asked)


async def test_it_adds_up(broker: Running, browser: Browser) -> None:
    async with a_look(browser, broker.url, "/capacity") as looks:
        page = looks.page
        await opened(
            page,
            tools=10_000,
            tasksPerSecond=100,
            reportsPerTask=2,
            bytesPerTask=9000,
            days=10,
            databaseCores=4,
        )
        # 100 ms for tasks and 100 ms for reports in each second, and what waits.
        assert await figure(page, "CPU of the service") == "0.21 cores"
        assert await figure(page, "CPU of PostgreSQL") == "0.25 cores"
        assert await figure(page, "Brokers") == "1"
        assert await figure(page, "Processes") == "1"
        assert await figure(page, "Memory of the service") == "256 MiB"
        assert await figure(page, "The archive, a day") == "86.4 GB"
        assert await figure(page, "The archive, kept") == "864 GB"
        await expect(page.get_by_text("One process is enough")).to_be_visible()
        # Batches cost a tenth.
        await fill(page, batched=1)
        assert await figure(page, "CPU of the service") == "0.12 cores"


async def test_past_one_postgresql_it_says_how_many(broker: Running, browser: Browser) -> None:
    async with a_look(browser, broker.url, "/capacity") as looks:
        page = looks.page
        await opened(page, tools=0, tasksPerSecond=10_000, reportsPerTask=0, databaseCores=8)
        assert await figure(page, "CPU of PostgreSQL") == "20 cores"
        # 20 cores, each busy to 70 %, and 8 for each.
        assert await figure(page, "Brokers") == "4"
        assert await figure(page, "Processes, each") == "4"
        # 7,500 calls a second for each, and 700 commits.
        assert await figure(page, "Calls that share a commit") == "10.7"
        await expect(page.get_by_text("run 4 brokers side by side")).to_be_visible()


async def test_what_cannot_be_computed_with_is_told(broker: Running, browser: Browser) -> None:
    async with a_look(browser, broker.url, "/capacity") as looks:
        page = looks.page
        before = await figure(page, "CPU of PostgreSQL")
        await fill(page, batched=7, tasksPerSecond=1e308)
        await page.locator("input[name=tools]").fill("")
        assert await figure(page, "CPU of PostgreSQL") == before
        refused = page.get_by_text("The figures are without this entry: ")
        await expect(refused).to_have_count(3)
        await expect(refused.first).to_contain_text("Of them in batches, 0 to 1.")
        await page.locator("summary").click()
        await fill(page, commitsThatNotify=0)
        await expect(refused).to_have_count(4)
        await fill(page, batched=1, tasksPerSecond=20, tools=1, commitsThatNotify=1)
        await expect(refused).to_have_count(0)


async def test_more_processes_than_one_machine_takes_are_for_several(
    broker: Running, browser: Browser
) -> None:
    async with a_look(browser, broker.url, "/capacity") as looks:
        await opened(looks.page, tasksPerSecond=10, reportsPerTask=0, databaseCores=1024)
        await expect(looks.page.get_by_text("One process is enough")).to_be_visible()
        await expect(looks.page.locator("code", has_text="broker serve").first).to_be_visible()
        await fill(looks.page, tasksPerSecond=100_000)
        await expect(looks.page.get_by_text("on several machines, behind a proxy")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_read_it(broker: Running, browser: Browser, scheme: Any) -> None:
    async with a_look(browser, broker.url, "/capacity", color_scheme=scheme) as looks:
        await expect(looks.page.get_by_role("heading", name="What it needs")).to_be_visible()
        assert await looks.findings() == []
