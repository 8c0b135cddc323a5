"""The dashboard in a real browser: its views, its actions, keyboards, screen readers and phones."""

import re
from typing import Any

import asyncpg
import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from broker.schemas.limits import ASSIGNER_ABSENT_SECONDS
from tests.conftest import Running
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assign,
    complete,
    complete_work,
    expire_deadline,
    get,
    take_tool_offline,
    wait_for_state,
)
from tests.support.browser import PageVisit, needs_chromium, shared_browser, visit
from tests.support.shared import SHARED_BROKER

on_one_loop, database, broker, sql, http = SHARED_BROKER
pytestmark = [on_one_loop, needs_chromium]
browser = shared_browser

PHONE = {"width": 390, "height": 844}


def tile(page: Page, tool: str) -> Locator:
    return page.locator(".tile").filter(has=page.get_by_role("link", name=tool, exact=True))


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


async def wait_until_live(page: Page) -> None:
    await expect(page.locator(".state.live")).to_be_visible()


async def click_and_confirm(page: Page, button: str, verb: str, *, tick: str | None = None) -> None:
    """Press a button, and confirm the dialog that it opens."""
    await page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    if tick is not None:
        await dialog.get_by_label(tick).check()
    await dialog.get_by_role("button", name=verb, exact=True).click()


async def test_overview_follows_the_life_cycle_of_a_task(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    async with visit(browser, broker.url) as visited:
        page = visited.page
        await wait_until_live(page)
        await expect(page.get_by_text(re.compile("No tool has registered yet"))).to_be_visible()
        await add_tool(http, "microscope", skills={"can": "look"})
        await expect(tile(page, "microscope")).to_contain_text("idle")
        await add_task(http, "cells-1", needs={"can": "look"}, priority=7)
        await expect(row(page, '{"can": "look"}')).to_contain_text("7")
        work = (await assign(http, "cells-1", "microscope"))["id"]
        await expect(tile(page, "microscope")).to_contain_text("busy")
        await expect(tile(page, "microscope")).to_contain_text("Not started yet")
        report = {"progress": 0.25, "message": "a quarter of the cells"}
        assert (await http.post(f"/v1/work/{work}/reports", json=report)).status_code == 201
        await expect(tile(page, "microscope")).to_contain_text("a quarter of the cells")
        bar = tile(page, "microscope").get_by_role("progressbar", name="Progress of cells-1")
        await expect(bar).to_have_js_property("value", 0.25)
        in_progress = page.get_by_role("table").filter(has_text="Last message")
        await expect(in_progress).to_contain_text("a quarter of the cells")
        await complete_work(http, work, result={"cells": 12})
        await expect(tile(page, "microscope")).to_contain_text("idle")
        await expect(page.get_by_text("No work in progress.")).to_be_visible()


async def test_a_tile_shows_every_state_of_its_tool(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, browser: Browser
) -> None:
    await add_tool(http, "scanner")
    async with visit(browser, broker.url) as visited:
        page = visited.page
        await expect(tile(page, "scanner")).to_contain_text("idle")
        await http.patch("/v1/tools/scanner", json={"draining": True})
        await expect(tile(page, "scanner")).to_contain_text("draining")
        await take_tool_offline(http, sql, "scanner")
        await expect(tile(page, "scanner")).to_contain_text("offline")
        await add_tool(http, "scanner", capacity=3)
        await expect(tile(page, "scanner")).to_contain_text("0 of 3")
        assert (await http.delete("/v1/tools/scanner")).status_code == 204
        await expect(tile(page, "scanner")).to_have_count(0)


async def test_tools_can_be_filtered_by_name_skill_and_state(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    await add_tool(http, "microscope", skills={"can": "look"})
    await add_tool(http, "balance", skills={"can": "weigh"})
    await http.patch("/v1/tools/balance", json={"draining": True})
    async with visit(browser, broker.url) as visited:
        page = visited.page
        search = page.get_by_label("Find a tool by name or skill")
        await search.fill("weigh")
        await expect(page.locator(".tile")).to_have_count(1)
        await expect(tile(page, "balance")).to_be_visible()
        await search.fill("micro")
        await expect(tile(page, "microscope")).to_be_visible()
        await expect(page.locator(".tile")).to_have_count(1)
        await search.fill("")
        await page.get_by_role("button", name="draining 1").click()
        await expect(page.locator(".tile")).to_have_count(1)
        await expect(tile(page, "balance")).to_be_visible()


async def test_waiting_tasks_are_listed_oldest_first_with_the_reason(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    await add_task(http, "patient", needs={"can": "sing"})
    await add_task(http, "later", not_before="2100-01-01T00:00:00Z")
    await http.get("/v1/candidates")
    async with visit(browser, broker.url, "/#/waiting") as visited:
        page = visited.page
        await expect(row(page, "patient")).to_contain_text("no tool available")
        await expect(row(page, "later")).to_contain_text("scheduled for later")
        rows = page.get_by_role("table").first.locator("tbody tr")
        await expect(rows.first).to_contain_text("patient")
        await http.put("/v1/tasks/patient/remark", json={"text": "Nobody here can sing: run `lab tune`."})
        await expect(row(page, "patient")).to_contain_text("Nobody here can sing: run lab tune.")
        await expect(row(page, "patient").locator("code", has_text="lab tune")).to_be_visible()
        await expect(row(page, "patient")).to_contain_text("refused by the assigner")


async def test_a_missing_assigner_is_announced_on_every_view(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, browser: Browser
) -> None:
    await http.get("/v1/candidates")
    absent = f"now() - interval '{ASSIGNER_ABSENT_SECONDS + 1} s'"
    await sql.execute(f"update assigner set seen_at = {absent}")
    await add_task(http)
    async with visit(browser, broker.url, "/#/history") as visited:
        alarm = visited.page.get_by_role("alert").filter(has_text="No assigner has asked for tasks for 1 min")
        await expect(alarm).to_be_visible()


async def test_overtaken_tasks_and_idle_tools_are_listed(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, browser: Browser
) -> None:
    await add_task(http, "overtaken", needs={"can": "dance"})
    await sql.execute("update tasks set created_at = now() - interval '1 hour'")
    for number in range(12):
        pair = await add_assigned_work(http, f"chosen-{number}", "t")
        await complete_work(http, pair.work)
    await add_tool(http, "lonely", skills={"can": "yodel"})
    await sql.execute("update tools set registered_at = now() - interval '2 hours' where id = 'lonely'")
    async with visit(browser, broker.url, "/#/waiting") as visited:
        await expect(row(visited.page, "dance").filter(has_text="newer tasks")).to_contain_text("12")
        await expect(row(visited.page, "yodel")).to_contain_text("2 h")


async def test_history_shows_a_failure_and_the_record_shows_every_report(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    pair = await add_assigned_work(http, "blurred", "microscope", max_attempts=1)
    for share, message in ((0.1, "focusing"), (0.2, "the lens is dirty")):
        report = {"progress": share, "message": message}
        await http.post(f"/v1/work/{pair.work}/reports", json=report)
    await complete_work(http, pair.work, "failed", error="No focus.\nTraceback: lens.py line 12")
    async with visit(browser, broker.url, "/#/history") as visited:
        page = visited.page
        failure = page.get_by_role("row").filter(has_text="blurred").filter(has_text="the lens is dirty")
        await expect(failure).to_contain_text("No focus.")
        await expect(failure).to_contain_text("microscope")
        await expect(failure).to_contain_text("failed")
        await page.goto(f"{broker.url}/#/record/{pair.work}")
        main = page.get_by_role("main")
        for text in ("focusing", "the lens is dirty", "lens.py line 12", "microscope", "blurred"):
            await expect(main).to_contain_text(text)


async def test_the_timeline_shows_an_attempt_as_soon_as_it_ends(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    pair = await add_running_work(http, "slide-1", "microscope")
    async with visit(browser, broker.url, "/#/history") as visited:
        await expect(visited.page.locator("canvas").first).to_be_visible()
        await complete_work(http, pair.work)
        table = visited.page.locator("details").filter(has_text="as a table")
        await table.locator("summary").click()
        await expect(table.get_by_role("row").filter(has_text="slide-1")).to_contain_text("succeeded")


async def test_numbers_keep_all_their_digits(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    body = '{"id": "exact", "needs": {}, "payload": {"n": 123456789012345678901234567890, "x": 1.10}}'
    response = await http.post("/v1/tasks", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 201
    async with visit(browser, broker.url, "/#/task/exact") as visited:
        await expect(visited.page.get_by_label("Payload")).to_contain_text("123456789012345678901234567890")
        await expect(visited.page.get_by_label("Payload")).to_contain_text("1.10")


async def test_html_in_texts_of_clients_is_shown_as_text(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    bad = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    pair = await add_running_work(http, "odd", "t", needs={"can": bad})
    await http.post(f"/v1/work/{pair.work}/reports", json={"message": bad})
    async with visit(browser, broker.url) as visited:
        await expect(tile(visited.page, "t")).to_contain_text(bad)
        await visited.page.goto(f"{broker.url}/#/task/odd")
        await expect(visited.page.get_by_label("Needs")).to_contain_text(bad)
        assert await visited.page.locator("main img, main script").count() == 0


async def test_cancelling_a_task_needs_a_confirmation(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    await add_task(http, "wrong")
    async with visit(browser, broker.url, "/#/task/wrong") as visited:
        page = visited.page
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Go back").click()
        assert (await get(http, "/v1/tasks/wrong"))["state"] == "available"
        await click_and_confirm(page, "Cancel", "Cancel task")
        await expect(page.get_by_role("main").locator(".badge").first).to_have_text("cancelled")
        await expect(page.get_by_role("status")).to_contain_text("wrong is cancelled")
        assert (await get(http, "/v1/tasks/wrong"))["state"] == "cancelled"


async def test_work_can_be_requeued(broker: Running, http: httpx.AsyncClient, browser: Browser) -> None:
    pair = await add_running_work(http, "stuck", "slow")
    async with visit(browser, broker.url) as visited:
        await click_and_confirm(visited.page, "Requeue task stuck", "Requeue task")
        await expect(tile(visited.page, "slow")).to_contain_text("Stop requested")
    assert (await get(http, f"/v1/work/{pair.work}"))["cancel_requested"]
    await complete_work(http, pair.work, "failed")
    assert (await get(http, "/v1/tasks/stuck"))["state"] == "available"


async def test_a_failed_task_can_be_retried(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    pair = await add_assigned_work(http, "once", "t", max_attempts=1)
    await complete_work(http, pair.work, "failed")
    async with visit(browser, broker.url, "/#/task/once") as visited:
        await click_and_confirm(visited.page, "Retry", "Retry task")
        await expect(visited.page.get_by_role("main").locator(".badge").first).to_have_text("available")
    assert (await get(http, "/v1/tasks/once"))["state"] == "available"


async def test_a_tool_can_be_drained_resumed_and_deleted(
    broker: Running, http: httpx.AsyncClient, browser: Browser
) -> None:
    await add_running_work(http, "long", "press")
    async with visit(browser, broker.url, "/#/tool/press") as visited:
        page = visited.page
        await click_and_confirm(page, "Drain", "Drain tool")
        await expect(page.get_by_role("main").locator(".badge").first).to_have_text("draining")
        await click_and_confirm(page, "Stop draining", "Stop draining")
        await expect(page.get_by_role("main").locator(".badge").first).to_have_text("idle")
        await click_and_confirm(page, "Delete", "Delete tool")
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("alert")).to_contain_text("unfinished work")
        visited.problems.clear()  # the browser reports the refused request, too
        await dialog.get_by_label("Delete the tool even if it has work").check()
        await dialog.get_by_role("button", name="Delete tool").click()
        await expect(page.get_by_text("Tool not found")).to_be_visible()
        visited.problems.clear()
    assert (await http.get("/v1/tools/press")).status_code == 404


async def test_a_late_result_can_be_accepted(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, browser: Browser
) -> None:
    pair = await add_running_work(http, "tardy", "t", max_attempts=1, timeout_seconds=60)
    await expire_deadline(sql, pair.work)
    await wait_for_state(http, "/v1/tasks/tardy", "failed")
    assert (await complete(http, pair.work, "succeeded", result=42)).status_code == 409
    async with visit(browser, broker.url, f"/#/record/{pair.work}") as visited:
        await visited.page.get_by_role("button", name=re.compile("late result")).click()
        await visited.page.get_by_role("dialog").get_by_role("button", name="Accept result").click()
        await expect(visited.page.get_by_role("main").locator(".badge").first).to_have_text("succeeded")
    assert (await get(http, "/v1/tasks/tardy"))["result"] == 42


VIEWS = ["overview", "waiting", "history", "tool/microscope", "task/cells-1", "record/{work}"]


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_view_is_accessible(
    broker: Running, http: httpx.AsyncClient, browser: Browser, theme: Any
) -> None:
    work = await prepare_laboratory(http)
    async with visit(browser, broker.url, color_scheme=theme) as visited:
        for view in VIEWS:
            await show(visited, view.format(work=work))
            assert await visited.accessibility_problems() == [], view


async def test_every_view_fits_on_a_phone(broker: Running, http: httpx.AsyncClient, browser: Browser) -> None:
    work = await prepare_laboratory(http)
    async with visit(browser, broker.url, viewport=PHONE) as visited:
        for view in VIEWS:
            await show(visited, view.format(work=work))
            width = await visited.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], view


async def test_actions_work_by_keyboard(broker: Running, http: httpx.AsyncClient, browser: Browser) -> None:
    await add_task(http, "wrong")
    async with visit(browser, broker.url, "/#/task/wrong") as visited:
        page = visited.page
        button = page.get_by_role("button", name="Cancel", exact=True)
        await expect(button).to_be_visible()
        for _ in range(20):
            await page.keyboard.press("Tab")
            if await button.evaluate("each => each === document.activeElement"):
                break
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert (await get(http, "/v1/tasks/wrong"))["state"] == "available"


async def prepare_laboratory(http: httpx.AsyncClient) -> str:
    """Create tools and tasks in several states, and return the id of a failed work item."""
    failed = await add_assigned_work(http, "cells-1", "microscope", max_attempts=1)
    await http.post(f"/v1/work/{failed.work}/reports", json={"progress": 0.5, "message": "half of it"})
    await complete_work(http, failed.work, "failed", error="out of focus")
    running = await add_running_work(http, "cells-2", "microscope")
    await http.post(
        f"/v1/work/{running.work}/reports", json={"progress": 0.3, "message": "a long message " * 9}
    )
    await add_tool(http, "a-tool-with-a-name-that-is-quite-long-and-has-no-room-on-a-line")
    await add_task(http, "waiting", needs={"analysis": "segment", "of": ["nuclei", "membranes"] * 9})
    return failed.work


async def show(visited: PageVisit, view: str) -> None:
    """Go to a view, and wait until it shows its data."""
    page = visited.page
    await page.goto(f"{visited.url}/#/{view}")
    await wait_until_live(page)
    await expect(page.get_by_text("Loading…")).to_have_count(0)
    await expect(page.get_by_role("main").locator("h1, h2").first).to_be_attached()
