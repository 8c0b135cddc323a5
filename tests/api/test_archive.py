"""The archive: records of ended work, and of tasks that ended without work."""

from datetime import datetime, timedelta
from urllib.parse import quote

import httpx

from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assert_problem,
    assign,
    complete_work,
    flatten,
    get,
    get_pages,
    ids,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

UNKNOWN = "01920000-0000-7000-8000-000000000000"


async def add_ended_work(
    http: httpx.AsyncClient, task: str, tool: str = "t", outcome: str = "succeeded"
) -> str:
    """Add work, complete it, and return its id."""
    pair = await add_assigned_work(http, task, tool)
    await complete_work(http, pair.work, outcome)
    return pair.work


async def test_a_record_contains_the_task_the_tool_the_work_and_its_reports(http: httpx.AsyncClient) -> None:
    await add_tool(http, skills={"s": 1})
    await add_task(http, needs={"n": 1}, payload="p", priority=4)
    work = await assign(http)
    await http.post(f"/v1/work/{work['id']}/start")
    await http.post(f"/v1/work/{work['id']}/reports", json={"progress": 0.5, "message": "m", "data": [1]})
    live = await get(http, f"/v1/work/{work['id']}")
    archived = await complete_work(http, work["id"], result={"r": 1}, error="a warning")
    record = await get(http, f"/v1/archive/{work['id']}")
    assert record == archived
    assert (record["task"]["id"], record["task"]["needs"], record["task"]["payload"]) == ("a", {"n": 1}, "p")
    assert (record["task"]["priority"], record["tool"]["id"], record["tool"]["skills"]) == (4, "t", {"s": 1})
    assert record["reports"] == live["reports"]
    assert (record["assigned_at"], record["started_at"]) == (live["assigned_at"], live["started_at"])
    assert (record["outcome"], record["result"], record["error"]) == ("succeeded", {"r": 1}, "a warning")
    assert record["late"] is None
    assert record["started_at"] <= record["ended_at"]


async def test_a_record_has_the_earlier_skills_of_its_tool_and_no_token(http: httpx.AsyncClient) -> None:
    work = await add_ended_work(http, "a")
    await http.patch("/v1/tools/t", json={"skills": "changed"})
    record = await get(http, f"/v1/archive/{work}")
    assert record["tool"]["skills"] == {}
    assert "token" not in record["tool"]


async def test_the_list_of_an_empty_archive_is_empty(http: httpx.AsyncClient) -> None:
    assert await get(http, "/v1/archive") == {"items": [], "next": None}


async def test_a_listed_record_equals_the_single_record(http: httpx.AsyncClient) -> None:
    work = await add_ended_work(http, "a")
    assert (await get(http, "/v1/archive"))["items"] == [await get(http, f"/v1/archive/{work}")]


async def test_records_are_listed_newest_first(http: httpx.AsyncClient) -> None:
    works = [await add_ended_work(http, f"x{n}") for n in range(5)]
    records = (await get(http, "/v1/archive"))["items"]
    assert ids(records, "work_id") == works[::-1]
    assert [r["ended_at"] for r in records] == sorted((r["ended_at"] for r in records), reverse=True)


async def test_paging_lists_each_record_once(http: httpx.AsyncClient) -> None:
    works = [await add_ended_work(http, f"x{n}") for n in range(7)]
    pages = await get_pages(http, "/v1/archive", limit=3)
    assert [len(page) for page in pages if page] == [3, 3, 1]
    assert ids(flatten(pages), "work_id") == works[::-1]


async def test_paging_lists_records_with_the_same_time_once(http: httpx.AsyncClient) -> None:
    works = [(await add_assigned_work(http, f"x{n}")).work for n in range(9)]
    items = [{"work_id": work, "outcome": "succeeded"} for work in works]
    await http.post("/v1/work/complete", json={"items": items})
    records = flatten(await get_pages(http, "/v1/archive", limit=2))
    assert sorted(ids(records, "work_id")) == sorted(works)


async def test_new_records_do_not_affect_paging(http: httpx.AsyncClient) -> None:
    works = [await add_ended_work(http, f"x{n}") for n in range(6)]
    first = await get(http, "/v1/archive", limit=2)
    await add_ended_work(http, "new")
    rest = flatten(await get_pages(http, "/v1/archive", limit=2, after=first["next"]))
    assert ids(first["items"] + rest, "work_id") == works[::-1]


async def test_records_are_filtered_by_task_tool_and_outcome(http: httpx.AsyncClient) -> None:
    works = {
        "a": await add_ended_work(http, "a", "t"),
        "b": await add_ended_work(http, "b", "t", "failed"),
        "c": await add_ended_work(http, "c", "u", "released"),
    }
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "cba"), ({"tool_id": "t"}, "ba"), ({"task_id": "c"}, "c"), ({"outcome": "failed"}, "b"),
        ({"tool_id": "t", "outcome": "succeeded"}, "a"), ({"outcome": "timed_out"}, ""),
        ({"task_id": "nobody"}, ""),
        ({"outcome": "lost"}, ""), ({"outcome": "cancelled"}, ""), ({"tool_id": "u", "task_id": "a"}, ""),
    ]  # fmt: skip
    for query, expected in cases:
        records = ids((await get(http, "/v1/archive", **query))["items"], "work_id")
        assert records == [works[name] for name in expected], query


async def test_every_attempt_of_a_task_has_its_record(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "released")
    again = (await assign(http))["id"]
    await complete_work(http, again)
    records = (await get(http, "/v1/archive", task_id="a"))["items"]
    assert [(r["work_id"], r["outcome"]) for r in records] == [(again, "succeeded"), (pair.work, "released")]


async def test_records_are_filtered_by_the_time_of_their_end(http: httpx.AsyncClient) -> None:
    works = [await add_ended_work(http, f"x{n}") for n in range(3)]
    times = [(await get(http, f"/v1/archive/{work}"))["ended_at"] for work in works]
    records = (await get(http, "/v1/archive", since=times[1]))["items"]
    assert ids(records, "work_id") == [works[2], works[1]]
    just_after = (datetime.fromisoformat(times[1]) + timedelta(microseconds=1)).isoformat()
    records = (await get(http, "/v1/archive", until=just_after))["items"]
    assert ids(records, "work_id") == [works[1], works[0]]
    records = (await get(http, "/v1/archive", since=times[1], until=just_after))["items"]
    assert ids(records, "work_id") == [works[1]]


async def test_since_and_until_accept_any_offset(http: httpx.AsyncClient) -> None:
    await add_ended_work(http, "a")
    for since, count in (("2001-01-01T00:00:00-11:30", 1), ("2999-01-01T00:00:00+14:00", 0)):
        assert len((await get(http, f"/v1/archive?since={quote(since)}"))["items"]) == count
        assert len((await get(http, f"/v1/archive?until={quote(since)}"))["items"]) == 1 - count


async def test_filters_apply_to_all_pages(http: httpx.AsyncClient) -> None:
    works = [await add_ended_work(http, f"x{n}", f"t{n % 2}") for n in range(8)]
    records = flatten(await get_pages(http, "/v1/archive", tool_id="t1", outcome="succeeded", limit=3))
    assert ids(records, "work_id") == works[::-1][::2]


async def test_an_unknown_record_is_not_found(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get(f"/v1/archive/{UNKNOWN}"), 404, "work_not_found")


async def test_current_work_is_not_in_the_archive(http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    assert_problem(await http.get(f"/v1/archive/{pair.work}"), 404, "work_not_found")
    assert (await get(http, "/v1/archive"))["items"] == []
