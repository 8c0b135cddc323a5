"""What the dashboard costs: `python -m tests.support.dashboard_load` measures it in some three minutes.

With 2,000 tools and 100,000 tasks: what a page that shows them costs its browser while 200 things happen in a
second, how soon it shows them, and what fifty dashboards cost the service while nothing does.
"""

import asyncio
import itertools
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.async_api import Page, async_playwright, expect
from rich.console import Console

from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.processes import serving, wait_until_ready

TOOLS, AT_WORK, TASKS = 2_000, 1_000, 100_000
EVENTS_PER_SECOND = 200
SECONDS = 20
DASHBOARDS = 50
REPORTS = 50
IDLE_SECONDS = 40

_BATCH = 1_000
_VIEWS = ("now", "why", "then")
_OF_BROWSER = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")

console = Console(soft_wrap=True)


def main() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory(prefix="broker-load-") as folder:
        Path(folder).chmod(0o755)
        with serving(BROKER_DATA_DIR=f"{folder}/data", BROKER_LOG_LEVEL="error") as (process, url):
            asyncio.run(_measure(url, psutil.Process(process.pid)))


async def _measure(url: str, server: psutil.Process) -> None:
    await wait_until_ready(url, within=60)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        with console.status("Registering tools, submitting tasks …"):
            works = await _prepare(http)
        async with _a_page(url) as page:
            for view in _VIEWS:
                await page.goto(f"{url}/#/{view}")
                await expect(page.get_by_text("Reading…")).to_have_count(0)
                with console.status(f"Watching {view!r} …"):
                    quiet = await _cost_of(page, asyncio.sleep(SECONDS))
                    busy = await _cost_of(page, _happen(http, works))
                _tell(view, "nothing happens", quiet)
                _tell(view, f"{EVENTS_PER_SECOND} events a second", busy)
            await page.goto(f"{url}/#/now")
            with console.status("Waiting for reports to be seen …"):
                seen = await _until_seen(page, http, works[0])
            console.print(
                f"A report is seen after {statistics.median(seen):.0f} ms, the slowest of {len(seen)} after"
                f" {max(seen):.0f} ms"
            )
        with console.status(f"{DASHBOARDS} dashboards look on …"):
            await _idle(url, server)


async def _prepare(http: httpx.AsyncClient) -> Sequence[str]:
    """Make tools and tasks, and start some work; its ids."""
    for first in range(0, TOOLS, 50):
        tools = [{"id": f"tool-{n:04}", "skills": {"kind": n % 30}} for n in range(first, first + 50)]
        await asyncio.gather(*(_post(http, "/v1/tools", tool | {"lease_seconds": 86_400}) for tool in tools))
    for first in range(0, TASKS, _BATCH):
        items = [
            {"id": f"task-{n:06}", "needs": {"kind": n % 50}, "priority": n % 3}
            for n in range(first, first + _BATCH)
        ]
        await _post(http, "/v1/tasks/batch", {"items": items})
    pairs = [{"task_id": f"task-{n:06}", "tool_id": f"tool-{n:04}"} for n in range(AT_WORK)]
    made = await _post(http, "/v1/work/batch", {"items": pairs})
    works = [pair["work_id"] for pair in made["items"]]
    for first in range(0, AT_WORK, 50):
        await asyncio.gather(*(_report(http, work, 0.0) for work in works[first : first + 50]))
    return works


async def _happen(http: httpx.AsyncClient, works: Sequence[str]) -> None:
    """Have so many reports come in a second, evenly."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    turn = itertools.cycle(works)
    async with asyncio.TaskGroup() as group:
        for number in range(EVENTS_PER_SECOND * SECONDS):
            due = began + number / EVENTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(_report(http, next(turn), number % 100 / 100))


async def _until_seen(page: Page, http: httpx.AsyncClient, work: str) -> list[float]:
    """For each of some reports, how long after its answer the page shows it, in milliseconds."""
    loop = asyncio.get_running_loop()
    took = []
    for number in range(REPORTS):
        message = f"report number {number}"
        await _post(http, f"/v1/work/{work}/reports", {"message": message})
        began = loop.time()
        await expect(page.locator(".tile").filter(has_text=message)).to_be_visible()
        took.append(1000 * (loop.time() - began))
    return took


async def _report(http: httpx.AsyncClient, work: str, progress: float) -> None:
    await _post(http, f"/v1/work/{work}/reports", {"progress": progress, "message": f"at {progress:.0%}"})


async def _post(http: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await http.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


@asynccontextmanager
async def _a_page(url: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await page.goto(url)
        await expect(page.locator(".tile").first).to_be_visible()
        yield page
        await browser.close()


async def _cost_of(page: Page, happening: Any) -> dict[str, float]:
    """What the page's own thread does meanwhile, in milliseconds a second."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    loop = asyncio.get_running_loop()

    async def read() -> dict[str, float]:
        found = await session.send("Performance.getMetrics")
        return {each["name"]: each["value"] for each in found["metrics"] if each["name"] in _OF_BROWSER}

    before, began = await read(), loop.time()
    await happening
    after, took = await read(), loop.time() - began
    await session.detach()
    return {name: 1000 * (after[name] - before[name]) / took for name in _OF_BROWSER}


async def _idle(url: str, server: psutil.Process) -> None:
    """Hold as many streams as dashboards have, and read what they read, while nothing happens."""
    async with AsyncExitStack() as open_:
        http = await open_.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None))
        )
        for _ in range(DASHBOARDS):
            await open_.enter_async_context(http.stream("GET", "/v1/events"))

        async def dashboard(number: int) -> None:
            await asyncio.sleep(30 * number / DASHBOARDS)
            while True:
                (await http.get("/v1/stats")).raise_for_status()
                await asyncio.sleep(30)

        looking = [asyncio.create_task(dashboard(number)) for number in range(DASHBOARDS)]
        await asyncio.sleep(3)
        processes = [server, *server.children(recursive=True)]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        await asyncio.sleep(IDLE_SECONDS)
        after = [sum(process.cpu_times()[:2]) for process in processes if process.is_running()]
        for each in looking:
            each.cancel()
    service = 100 * (after[0] - before[0]) / IDLE_SECONDS
    postgres = 100 * (sum(after[1:]) - sum(before[1:])) / IDLE_SECONDS
    console.print(
        f"{DASHBOARDS} dashboards, nothing happens: the service takes {service:.1f} % of a core,"
        f" PostgreSQL {postgres:.1f} %"
    )


def _tell(view: str, what: str, cost: dict[str, float]) -> None:
    script, layout, style, task = (cost[name] for name in _OF_BROWSER)
    console.print(
        f"{view}, {what}: {script:.0f} ms of scripting a second"
        f" ({layout + style:.0f} ms of layout and style, {task:.0f} ms in all)"
    )


if __name__ == "__main__":
    main()
