"""Measure the cost of the dashboard: `python -m tests.support.dashboard_load` takes about three minutes.

With 2,000 tools and 100,000 tasks, it measures the CPU time of the browser at 200 events a second, the delay
until the page shows an event, and the load of 50 idle dashboards on the service.
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
_VIEWS = ("overview", "waiting", "history")
_OF_BROWSER = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")

console = Console(soft_wrap=True)


def main() -> None:
    """Measure and print the results."""
    with tempfile.TemporaryDirectory(prefix="broker-load-") as folder:
        Path(folder).chmod(0o755)
        with serving(BROKER_DATA_DIR=f"{folder}/data", BROKER_LOG_LEVEL="error") as (process, url):
            asyncio.run(_measure(url, psutil.Process(process.pid)))


async def _measure(url: str, server: psutil.Process) -> None:
    await wait_until_ready(url, within=60)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        with console.status("Registering tools, submitting tasks …"):
            works = await _prepare(http)
        async with _open_page(url) as page:
            for view in _VIEWS:
                await page.goto(f"{url}/#/{view}")
                await expect(page.get_by_text("Loading…")).to_have_count(0)
                with console.status(f"Watching {view!r} …"):
                    quiet = await _measure_page(page, asyncio.sleep(SECONDS))
                    busy = await _measure_page(page, _send_reports(http, works))
                _print_cost(view, "nothing happens", quiet)
                _print_cost(view, f"{EVENTS_PER_SECOND} events a second", busy)
            await page.goto(f"{url}/#/overview")
            with console.status("Waiting until the page shows the reports …"):
                delays = await _measure_delay(page, http, works[0])
            console.print(
                f"The page shows a report after {statistics.median(delays):.0f} ms (median),"
                f" the slowest of {len(delays)} after {max(delays):.0f} ms"
            )
        with console.status(f"{DASHBOARDS} dashboards wait …"):
            await _measure_idle(url, server)


async def _prepare(http: httpx.AsyncClient) -> Sequence[str]:
    """Create tools and tasks, and start some work. Return the ids of the work."""
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
    results = await _post(http, "/v1/work/batch", {"items": pairs})
    works = [pair["work_id"] for pair in results["items"]]
    for first in range(0, AT_WORK, 50):
        await asyncio.gather(*(_report(http, work, 0.0) for work in works[first : first + 50]))
    return works


async def _send_reports(http: httpx.AsyncClient, works: Sequence[str]) -> None:
    """Send `EVENTS_PER_SECOND` reports a second, evenly spaced."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    work_ids = itertools.cycle(works)
    async with asyncio.TaskGroup() as group:
        for number in range(EVENTS_PER_SECOND * SECONDS):
            due = began + number / EVENTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(_report(http, next(work_ids), number % 100 / 100))


async def _measure_delay(page: Page, http: httpx.AsyncClient, work: str) -> list[float]:
    """Return, for some reports, the milliseconds between the response and their display on the page."""
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
    response = await http.post(path, json=body)
    response.raise_for_status()
    return response.json()


@asynccontextmanager
async def _open_page(url: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await page.goto(url)
        await expect(page.locator(".tile").first).to_be_visible()
        yield page
        await browser.close()


async def _measure_page(page: Page, load: Any) -> dict[str, float]:
    """Return the CPU time of the page's main thread meanwhile, in milliseconds a second."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    loop = asyncio.get_running_loop()

    async def read() -> dict[str, float]:
        reply = await session.send("Performance.getMetrics")
        return {each["name"]: each["value"] for each in reply["metrics"] if each["name"] in _OF_BROWSER}

    before, began = await read(), loop.time()
    await load
    after, took = await read(), loop.time() - began
    await session.detach()
    return {name: 1000 * (after[name] - before[name]) / took for name in _OF_BROWSER}


async def _measure_idle(url: str, server: psutil.Process) -> None:
    """Keep the event streams and requests of 50 dashboards open while nothing happens, and print the load."""
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

        dashboards = [asyncio.create_task(dashboard(number)) for number in range(DASHBOARDS)]
        await asyncio.sleep(3)
        processes = [server, *server.children(recursive=True)]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        await asyncio.sleep(IDLE_SECONDS)
        after = [sum(process.cpu_times()[:2]) for process in processes if process.is_running()]
        for each in dashboards:
            each.cancel()
    service = 100 * (after[0] - before[0]) / IDLE_SECONDS
    postgres = 100 * (sum(after[1:]) - sum(before[1:])) / IDLE_SECONDS
    console.print(
        f"{DASHBOARDS} idle dashboards: the service uses {service:.1f} % of a core,"
        f" PostgreSQL {postgres:.1f} %"
    )


def _print_cost(view: str, what: str, cost: dict[str, float]) -> None:
    script, layout, style, task = (cost[name] for name in _OF_BROWSER)
    console.print(
        f"{view}, {what}: {script:.0f} ms of scripting a second"
        f" ({layout + style:.0f} ms of layout and style, {task:.0f} ms in all)"
    )


if __name__ == "__main__":
    main()
