"""Pages of large items: each is limited in size, and together they are complete. Exports are complete too."""

import base64
import json
import os
from typing import Any

import asyncpg
import httpx
import pytest

from broker.api import archive as archive_api
from broker.errors import Unavailable
from broker.store import archive
from broker.store.pages import MOST_BYTES
from tests.conftest import Running
from tests.support.api import (
    add_task,
    add_tasks,
    add_tool,
    assert_problem,
    assign,
    complete_work,
    get,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

# PostgreSQL cannot compress this text. Three of them fill a page.
LARGE = base64.b64encode(os.urandom(2_400_000)).decode()
MANY = 7


async def get_ids_of_pages(http: httpx.AsyncClient, path: str, **query: Any) -> list[list[Any]]:
    """Return the ids on each page."""
    pages: list[list[Any]] = []
    while True:
        page = await get(http, path, limit=100, **query)
        pages.append([item.get("id") or item["work_id"] for item in page["items"]])
        if (next_ := page["next"]) is None:
            return pages
        query["after"] = next_


async def test_pages_of_lists_are_limited_in_size_and_complete(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=MANY)
    names = [f"task-{number}" for number in range(MANY)]
    works = []
    for name in names:
        await add_task(http, name, payload=LARGE)
        works.append((await assign(http, name))["id"])
    assert await get_ids_of_pages(http, "/v1/tasks") == [names[:3], names[3:6], names[6:]]
    assert await get_ids_of_pages(http, "/v1/work") == [works[:3], works[3:6], works[6:]]
    for number in range(4):
        report = {"message": str(number), "data": LARGE}
        assert (await http.post(f"/v1/work/{works[0]}/reports", json=report)).status_code == 201
    reports = await get_ids_of_pages(http, f"/v1/work/{works[0]}/reports")
    assert [len(page) for page in reports] == [3, 1]
    for work in works[1:]:
        await complete_work(http, work)
    newest_first = works[:0:-1]
    assert await get_ids_of_pages(http, "/v1/archive") == [newest_first[:3], newest_first[3:6]]


async def test_pages_of_candidates_are_limited_in_size_and_complete(http: httpx.AsyncClient) -> None:
    async def read(cursor: str | None) -> tuple[list[list[str]], str]:
        pages: list[list[str]] = []
        while True:
            page = await get(http, "/v1/candidates", **({"cursor": cursor} if cursor else {}))
            pages.append([task["id"] for task in page["tasks"]])
            cursor = page["cursor"]
            if not page["more"]:
                return pages, cursor

    names = [f"task-{number}" for number in range(MANY)]
    for name in names:
        await add_task(http, name, payload=LARGE)
    pages, cursor = await read(None)
    assert pages == [names[:3], names[3:6], names[6:]]
    for name in names:
        await add_task(http, f"new-{name}", payload=LARGE)
    pages, cursor = await read(cursor)
    assert all(len(page) <= 3 for page in pages)
    assert {f"new-{name}" for name in names} == {name for page in pages for name in page}
    assert (await read(cursor))[0] == [[]]


# PostgreSQL stores 64 kB of these 5.6 MB.
COMPRESSED = f"[{','.join(['1' * 100] * 55_000)}]"


async def post(http: httpx.AsyncClient, path: str, body: str) -> Any:
    """Post JSON text unchanged. Python's encoder would write the numbers differently."""
    response = await http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.is_success, response.text
    return response.json()


async def count_items_of_pages(http: httpx.AsyncClient, path: str, items: str = "items") -> list[int]:
    """Return the number of items on each page, and check that the size of each response is limited."""
    counts = []
    query = {}
    while True:
        response = await http.get(path, params=query)
        assert len(response.content) < MOST_BYTES + 2 * 5_700_000
        page = response.json()
        counts.append(len(page[items]))
        if page.get("cursor"):
            query = {"cursor": page["cursor"]}
            if not page["more"]:
                return counts
        elif page["next"] is None:
            return counts
        else:
            query = {"after": page["next"]}


async def test_pages_are_limited_by_the_size_of_the_response_not_of_the_stored_rows(
    http: httpx.AsyncClient,
) -> None:
    await add_tool(http, capacity=4)
    for number in range(4):
        await post(http, "/v1/tasks", f'{{"id": "task-{number}", "needs": {{}}, "payload": {COMPRESSED}}}')
    assert await count_items_of_pages(http, "/v1/tasks") == [2, 2]
    assert await count_items_of_pages(http, "/v1/candidates", "tasks") == [2, 2]
    works = [(await assign(http, f"task-{number}"))["id"] for number in range(4)]
    assert await count_items_of_pages(http, "/v1/work") == [2, 2]
    for _ in range(4):
        await post(http, f"/v1/work/{works[0]}/reports", f'{{"data": {COMPRESSED}}}')
    assert await count_items_of_pages(http, f"/v1/work/{works[0]}/reports") == [2, 2]
    for work in works[1:]:
        await post(http, f"/v1/work/{work}/complete", f'{{"outcome": "succeeded", "result": {COMPRESSED}}}')
    await post(http, f"/v1/work/{works[0]}/complete", '{"outcome": "released"}')
    assert await count_items_of_pages(http, f"/v1/work/{works[0]}/reports") == [2, 2]
    assert (await http.delete(f"/v1/archive/{works[0]}")).status_code == 204
    # A record contains the payload and the result.
    assert await count_items_of_pages(http, "/v1/archive") == [1] * 3


async def test_text_that_looks_like_exponents_stays_text(http: httpx.AsyncClient) -> None:
    text = "1.5e99," * 400_000
    assert (await add_task(http, payload=[text, {text: 1}]))["payload"] == [text, {text: 1}]


async def test_the_result_of_a_failed_task_counts_towards_the_page_size(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=6)
    for number in range(3):
        await add_task(http, f"task-{number}", max_attempts=1)
        work = await assign(http, f"task-{number}")
        body = f'{{"outcome": "failed", "result": {COMPRESSED}}}'
        await post(http, f"/v1/work/{work['id']}/complete", body)
    assert await count_items_of_pages(http, "/v1/tasks") == [2, 1]
    for number in range(3):
        assert (await http.post(f"/v1/tasks/task-{number}/retry")).json()["result"] is None
    assert await count_items_of_pages(http, "/v1/tasks") == [3]


async def test_pages_of_tools_are_limited_in_size(http: httpx.AsyncClient) -> None:
    skills = f"[{','.join(['1e99'] * 13_000)}]"  # 1.3 MB in a response
    for number in range(9):
        await post(http, "/v1/tools", f'{{"id": "tool-{number}", "skills": {skills}}}')
    assert await count_items_of_pages(http, "/v1/tools") == [7, 2]
    assert await count_items_of_pages(http, "/v1/candidates", "tools") == [7, 2]
    response = await http.patch("/v1/tools/tool-0", json={"skills": "few"})
    assert response.json()["skills"] == "few"
    assert await count_items_of_pages(http, "/v1/tools") == [8, 1]


async def test_the_size_of_rows_without_a_stored_size_is_estimated(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tool(http, capacity=2)
    for name in ("a", "b", "c", "d"):
        await add_task(http, name, payload=LARGE)
    for name in ("c", "d"):
        await complete_work(http, (await assign(http, name))["id"], result="small")
    for table in ("tasks", "tools", "work_archive"):
        await sql.execute(f"update {table} set bytes = null")
    assert await get_ids_of_pages(http, "/v1/tasks") == [["a"], ["b"]]
    assert [len(page) for page in await get_ids_of_pages(http, "/v1/archive")] == [1, 1]
    for name in ("a", "b"):
        await complete_work(http, (await assign(http, name))["id"])
    assert [len(page) for page in await get_ids_of_pages(http, "/v1/archive")] == [1, 1, 1, 1]


async def test_small_rows_without_a_stored_size_fill_a_page(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await add_tasks(http, *(f"task-{number}" for number in range(500)))
    await sql.execute("update tasks set bytes = null")
    assert len((await get(http, "/v1/candidates"))["tasks"]) == 500


async def test_stored_sizes_equal_those_of_the_response(
    http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    payload = {"text": "ü\n" * 3_000, "numbers": [1.5, None, True] * 500}
    await add_tool(http, skills=payload)
    await add_task(http, payload=payload, needs=payload)
    # The size as httpx sends the value, and as PostgreSQL prints it from jsonb.
    sent = len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    printed = len(json.dumps(payload, ensure_ascii=False).encode())
    assert await sql.fetchval("select bytes from tasks") == sent + printed
    assert await sql.fetchval("select bytes from tools") == printed
    await complete_work(http, (await assign(http))["id"], result=payload)
    assert await sql.fetchval("select bytes from work_archive") == 2 * sent + 2 * printed


async def test_a_record_with_line_breaks_is_one_line_of_an_export(
    http: httpx.AsyncClient,
) -> None:
    value = {"a": [1, "two\nlines\r\n"], "b": {}}
    text = json.dumps(value, indent=2).replace("\n", "\r\n")
    await add_tool(http)
    await post(http, "/v1/tasks", f'{{"id": "a",\n"needs": {text},\n"payload": {text}}}')
    work = await assign(http)
    await post(http, f"/v1/work/{work['id']}/reports", f'{{"data": {text}}}')
    await post(http, f"/v1/work/{work['id']}/complete", f'{{"outcome": "succeeded", "result": {text}}}')
    [line] = (await http.get("/v1/archive/export")).text.splitlines()
    record = json.loads(line)
    task, [report] = record["task"], record["reports"]
    assert [task["needs"], task["payload"], report["data"], record["result"]] == [value] * 4


async def test_an_export_contains_the_same_records_as_the_list(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_api, "_PORTION", 3)
    assert (await http.get("/v1/archive/export")).text == ""
    await add_tool(http, capacity=100)
    await add_tool(http, "other", capacity=100)
    for number in range(10):
        await add_task(http, f"task-{number}", payload=1.10)
        work = await assign(http, f"task-{number}", "t" if number % 2 else "other")
        await complete_work(http, work["id"], "failed" if number % 3 else "succeeded", retry=False)
    for query in (
        {},
        {"tool_id": "t"},
        {"outcome": "failed", "tool_id": "other"},
        {"since": "2999-01-01T00:00:00Z"},
    ):
        export = await http.get("/v1/archive/export", params=query)
        assert export.headers["content-type"] == "application/x-ndjson"
        listed = (await get(http, "/v1/archive", limit=1000, **query))["items"]
        assert [json.loads(line) for line in export.text.splitlines()] == listed
        assert not export.text or export.text.endswith("\n")


@pytest.mark.parametrize("query", ["outcome=lovely", "since=yesterday", "limit=3", "tool_id=%00"])
async def test_an_export_with_an_invalid_filter_is_refused(http: httpx.AsyncClient, query: str) -> None:
    assert_problem(await http.get(f"/v1/archive/export?{query}"), 400, "validation_failed")


async def test_an_interrupted_export_ends_with_a_connection_error(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_api, "_PORTION", 1)
    await add_tool(http, capacity=100)
    for number in range(3):
        await add_task(http, f"task-{number}")
        await complete_work(http, (await assign(http, f"task-{number}"))["id"])
    original = archive.page
    remaining = 0

    def fail_after_some_pages(*args: Any, **kwargs: Any) -> Any:
        nonlocal remaining
        if not remaining:
            raise Unavailable
        remaining -= 1
        return original(*args, **kwargs)

    monkeypatch.setattr(archive, "page", fail_after_some_pages)
    assert_problem(await http.get("/v1/archive/export"), 503, "unavailable")
    remaining = 2
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get("/v1/archive/export")
    remaining = 3
    assert len((await http.get("/v1/archive/export")).text.splitlines()) == 3


async def test_deleting_the_last_record_of_a_task_deletes_the_task(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await add_task(http)
    first = (await assign(http))["id"]
    await complete_work(http, first, "released")
    last = (await assign(http))["id"]
    await complete_work(http, last)
    path = f"/v1/archive/{last}"
    assert (await http.delete(path)).status_code == 204
    assert_problem(await http.delete(path), 404, "work_not_found")
    assert_problem(await http.get(path), 404, "work_not_found")
    assert_problem(await http.get("/v1/tasks/a"), 404, "task_not_found")
    assert [item["work_id"] for item in (await get(http, "/v1/archive"))["items"]] == [first]
    # The id is free again. Deleting the record of an earlier attempt does not affect the task.
    await add_task(http)
    assert (await http.delete(f"/v1/archive/{first}")).status_code == 204
    assert (await get(http, "/v1/tasks/a"))["state"] == "available"
    assert_problem(await http.delete("/v1/archive/nonsense"), 404, "work_not_found")
