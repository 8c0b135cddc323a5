"""The trace that a task was submitted in goes to the tool that does it, whether or not the broker traces."""

import asyncpg
import httpx
import pytest

from tests.support.api import Json, add_task, add_tool, assign, complete
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
STATE = "lab=beam-4,congo=t61rcWkgMzE"
CONTEXT = {"traceparent": PARENT, "tracestate": STATE}


async def submit(http: httpx.AsyncClient, id_: str = "a", headers: object = None, **fields: object) -> Json:
    body = {"id": id_, "needs": {}, "retry_backoff_seconds": 0, **fields}
    response = await http.post("/v1/tasks", json=body, headers=headers)  # type: ignore[arg-type]
    assert response.status_code in (200, 201), response.text
    return response.json()


async def started(http: httpx.AsyncClient, task: str = "a", tool: str = "t") -> tuple[str, dict[str, str]]:
    """The work that the task makes on the tool, and what its start says of the trace."""
    work = (await assign(http, task, tool))["id"]
    response = await http.post(f"/v1/work/{work}/start")
    assert response.status_code == 200, response.text
    return work, told(response)


def told(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in CONTEXT if name in response.headers}


# What goes through


async def test_the_tool_is_told_what_the_submitter_said_in_every_answer_about_its_work(
    http: httpx.AsyncClient,
) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT)
    work, at_start = await started(http)
    assert at_start == CONTEXT
    reported = await http.post(f"/v1/work/{work}/reports", json={"progress": 0.5})
    again = await http.post(f"/v1/work/{work}/start")
    seen = await http.get(f"/v1/work/{work}")
    assert [told(response) for response in (reported, again, seen)] == [CONTEXT] * 3
    assert (reported.status_code, seen.json()["reports"][0]["progress"]) == (201, 0.5)


async def test_the_first_report_starts_the_work_and_says_it_too(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers={"traceparent": PARENT})
    work = (await assign(http))["id"]
    reported = await http.post(f"/v1/work/{work}/reports", json={})
    assert told(reported) == {"traceparent": PARENT}


async def test_the_long_way_hands_it_on_like_the_short_one(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    # A plain type goes the short way; one with a parameter is read by Litestar.
    long = {"content-type": "application/json; charset=utf-8"}
    body = b'{"id": "a", "needs": {}}'
    assert (await http.post("/v1/tasks", content=body, headers=CONTEXT | long)).status_code == 201
    work = (await assign(http))["id"]
    responses = [
        await http.post(f"/v1/work/{work}/{call}", content=b"{}", headers=long)
        for call in ("start", "reports")
    ]
    assert [told(response) for response in responses] == [CONTEXT] * 2


async def test_all_tasks_of_a_batch_are_submitted_in_the_same_trace(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=2)
    items = [{"id": id_, "needs": {}} for id_ in ("a", "b")]
    response = await http.post("/v1/tasks/batch", json={"items": items}, headers=CONTEXT)
    assert response.status_code == 200
    assert [(await started(http, id_))[1] for id_ in ("a", "b")] == [CONTEXT] * 2


async def test_each_of_many_submitted_at_once_has_its_own(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=3)
    await submit(http, "a", headers=CONTEXT)
    await submit(http, "b")
    await submit(http, "c", headers={"traceparent": OTHER})
    seen = [(await started(http, id_))[1] for id_ in "abc"]
    assert seen == [CONTEXT, {}, {"traceparent": OTHER}]


async def test_a_task_sent_again_stays_in_the_trace_of_the_first_time(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT)
    await submit(http, headers={"traceparent": OTHER})
    assert (await started(http))[1] == CONTEXT


async def test_the_next_attempt_is_in_the_same_trace(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT, max_attempts=2)
    work, _ = await started(http)
    assert (await complete(http, work, "failed")).status_code == 200
    work, at_start = await started(http)
    assert at_start == CONTEXT
    # Failed for good, and retried by hand.
    assert (await complete(http, work, "failed")).status_code == 200
    assert (await http.post("/v1/tasks/a/retry")).json()["state"] == "available"
    assert (await started(http))[1] == CONTEXT


async def test_lost_work_takes_it_to_the_next_tool(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t")
    await add_tool(http, "u")
    await submit(http, headers=CONTEXT)
    await started(http)
    assert (await http.delete("/v1/tools/t?force=true")).status_code == 204
    assert (await started(http, tool="u"))[1] == CONTEXT


async def test_neither_tasks_nor_records_show_it(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    plain = await add_task(http, "b")
    assert (await submit(http, headers=CONTEXT)).keys() == plain.keys()
    work, _ = await started(http)
    ended = await complete(http, work)
    assert PARENT not in ended.text
    assert told(ended) == told(await http.get(f"/v1/work/{work}")) == {}


# What is no trace context


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"tracestate": STATE},
        {"traceparent": ""},
        {"traceparent": "garbled"},
        {"traceparent": PARENT.upper()},
        {"traceparent": PARENT + "-more"},
        {"traceparent": "ff" + PARENT[2:]},
        {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"},
        {"traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01"},
        {"traceparent": "é".encode()},
        [("traceparent", PARENT), ("traceparent", PARENT)],
    ],
    ids=str,
)
async def test_what_is_garbled_is_ignored_and_the_task_is_taken(
    http: httpx.AsyncClient, sql: asyncpg.Connection, headers: object
) -> None:
    await add_tool(http)
    await submit(http, headers=headers)
    assert await sql.fetchval("select trace_context from tasks") is None
    assert (await started(http))[1] == {}
