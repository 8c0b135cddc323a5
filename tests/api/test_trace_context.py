"""The trace context of a submission reaches the tool that does the task, even if tracing is off."""

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


async def start_work(http: httpx.AsyncClient, task: str = "a", tool: str = "t") -> tuple[str, dict[str, str]]:
    """Assign a task and start the work. Return its id and the trace context in the response."""
    work = (await assign(http, task, tool))["id"]
    response = await http.post(f"/v1/work/{work}/start")
    assert response.status_code == 200, response.text
    return work, trace_context_of(response)


def trace_context_of(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in CONTEXT if name in response.headers}


# Valid trace contexts


async def test_every_response_about_work_contains_the_trace_context_of_the_submission(
    http: httpx.AsyncClient,
) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT)
    work, at_start = await start_work(http)
    assert at_start == CONTEXT
    reported = await http.post(f"/v1/work/{work}/reports", json={"progress": 0.5})
    again = await http.post(f"/v1/work/{work}/start")
    read = await http.get(f"/v1/work/{work}")
    assert [trace_context_of(response) for response in (reported, again, read)] == [CONTEXT] * 3
    assert (reported.status_code, read.json()["reports"][0]["progress"]) == (201, 0.5)


async def test_the_response_to_the_first_report_contains_the_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers={"traceparent": PARENT})
    work = (await assign(http))["id"]
    reported = await http.post(f"/v1/work/{work}/reports", json={})
    assert trace_context_of(reported) == {"traceparent": PARENT}


async def test_requests_outside_the_fast_path_keep_the_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    # The fast path handles a Content-Type without parameters. Litestar handles the others.
    headers = {"content-type": "application/json; charset=utf-8"}
    body = b'{"id": "a", "needs": {}}'
    assert (await http.post("/v1/tasks", content=body, headers=CONTEXT | headers)).status_code == 201
    work = (await assign(http))["id"]
    responses = [
        await http.post(f"/v1/work/{work}/{action}", content=b"{}", headers=headers)
        for action in ("start", "reports")
    ]
    assert [trace_context_of(response) for response in responses] == [CONTEXT] * 2


async def test_all_tasks_of_a_batch_have_the_same_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=2)
    items = [{"id": id_, "needs": {}} for id_ in ("a", "b")]
    response = await http.post("/v1/tasks/batch", json={"items": items}, headers=CONTEXT)
    assert response.status_code == 200
    assert [(await start_work(http, id_))[1] for id_ in ("a", "b")] == [CONTEXT] * 2


async def test_each_task_keeps_its_own_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http, capacity=3)
    await submit(http, "a", headers=CONTEXT)
    await submit(http, "b")
    await submit(http, "c", headers={"traceparent": OTHER})
    contexts = [(await start_work(http, id_))[1] for id_ in "abc"]
    assert contexts == [CONTEXT, {}, {"traceparent": OTHER}]


async def test_a_repeated_submission_keeps_the_first_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT)
    await submit(http, headers={"traceparent": OTHER})
    assert (await start_work(http))[1] == CONTEXT


async def test_further_attempts_keep_the_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    await submit(http, headers=CONTEXT, max_attempts=2)
    work, _ = await start_work(http)
    assert (await complete(http, work, "failed")).status_code == 200
    work, at_start = await start_work(http)
    assert at_start == CONTEXT
    # The task fails after its last attempt, and an operator retries it.
    assert (await complete(http, work, "failed")).status_code == 200
    assert (await http.post("/v1/tasks/a/retry")).json()["state"] == "available"
    assert (await start_work(http))[1] == CONTEXT


async def test_the_next_tool_after_lost_work_gets_the_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http, "t")
    await add_tool(http, "u")
    await submit(http, headers=CONTEXT)
    await start_work(http)
    assert (await http.delete("/v1/tools/t?force=true")).status_code == 204
    assert (await start_work(http, tool="u"))[1] == CONTEXT


async def test_tasks_and_records_do_not_show_the_trace_context(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    plain = await add_task(http, "b")
    assert (await submit(http, headers=CONTEXT)).keys() == plain.keys()
    work, _ = await start_work(http)
    ended = await complete(http, work)
    assert PARENT not in ended.text
    assert trace_context_of(ended) == trace_context_of(await http.get(f"/v1/work/{work}")) == {}


# Invalid trace contexts


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
async def test_an_invalid_trace_context_is_ignored(
    http: httpx.AsyncClient, sql: asyncpg.Connection, headers: object
) -> None:
    await add_tool(http)
    await submit(http, headers=headers)
    assert await sql.fetchval("select trace_context from tasks") is None
    assert (await start_work(http))[1] == {}
