"""The log: each line is JSON, names its subject, and can be found by the id in the response."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import Serve
from tests.support.api import add_assigned_work, add_running_work, add_task, add_tool, complete
from tests.support.processes import serving, wait_until_ready


def lines(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """Stop a service, and return the lines of its log."""
    process.terminate()
    assert process.stderr is not None
    return [json.loads(line) for line in process.stderr]


def about(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]


async def test_the_response_has_the_request_id_of_the_request(serve: Serve) -> None:
    http = (await serve()).client
    for path, body in (
        ("/v1/tasks", {"needs": {}}),
        ("/v1/tasks", {"needs": {}, "bad": 1}),
        ("/nowhere", {}),
    ):
        response = await http.post(path, json=body, headers={"X-Request-ID": "from-the-proxy:1"})
        assert response.headers["X-Request-ID"] == "from-the-proxy:1", path
        assert "X-Request-ID" not in (await http.post(path, json=body)).headers


@pytest.mark.parametrize("name", ["a b", "x" * 129, '"}', "é"])
async def test_a_request_id_that_does_not_fit_into_a_log_is_replaced(serve: Serve, name: str) -> None:
    http = (await serve()).client
    response = await http.get("/health/live", headers={b"X-Request-ID": name.encode()})
    assert len(response.headers["X-Request-ID"]) == 16


async def test_the_access_log_has_a_line_for_each_request(database: str) -> None:
    with serving(BROKER_DATABASE_URL=database, BROKER_ACCESS_LOG="true") as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, headers={"X-Request-ID": "mine"}) as http:
            pair = await add_running_work(http)
            await complete(http, pair.work)
            await http.get("/v1/tasks/none")
        log = await asyncio.to_thread(lines, process)
    ours = [line for line in about(log, "request handled") if line["request_id"] == "mine"]
    seen = [(line["method"], line["path"], line["status"]) for line in ours]
    assert ("POST", "/v1/tasks", 201) in seen
    assert ("POST", f"/v1/work/{pair.work}/start", 200) in seen
    assert ("GET", "/v1/tasks/none", 404) in seen
    assert all(0 <= line["milliseconds"] < 60_000 for line in ours)
    assert {line["work_id"] for line in ours if "work_id" in line} == {pair.work}
    assert "none" in {line.get("task_id") for line in ours}
    # Requests without an id have got one.
    assert all(line["request_id"] for line in about(log, "request handled"))


async def test_the_default_log_has_only_endings_that_no_client_requested(
    database: str, sql: asyncpg.Connection
) -> None:
    with serving(BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as http:
            done = await add_running_work(http, "done")
            await complete(http, done.work)
            lost = await add_assigned_work(http, "lost")
            await http.delete("/v1/tools/t?force=true")
        log = await asyncio.to_thread(lines, process)
    assert not about(log, "request handled")
    [line] = about(log, "work ended")
    assert (line["outcome"], line["work_id"], line["task_id"]) == ("lost", lost.work, "lost")


async def test_an_internal_error_can_be_found_by_the_request_id_of_the_response(
    serve: Serve, sql: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    http = (await serve()).client
    await add_tool(http)
    await add_task(http)
    # A check constraint refuses a row that the service accepts.
    await sql.execute("alter table work add constraint never check (false)")
    response = await http.post("/v1/work", json={"task_id": "a", "tool_id": "t"})
    assert response.status_code == 500
    assert response.headers["X-Request-ID"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("id_", "escaped"), [("a\x1b[31mb", r"a\u001b[31mb"), ("é\u009b31mb", r"é\u009b31mb"), ("a\nb", r"a\nb")]
)
def test_control_characters_of_an_id_do_not_reach_a_terminal(id_: str, escaped: str) -> None:
    output = on_a_terminal(f"structlog.get_logger('broker.x').info('it ended', task_id={id_!r})")
    assert escaped in output
    assert id_ not in output


def test_printable_characters_reach_a_terminal_unchanged() -> None:
    assert "größe-1" in on_a_terminal("structlog.get_logger('broker.x').info('it ended', task_id='größe-1')")


def on_a_terminal(call: str) -> str:
    """Return the output of a call of the log on a terminal."""
    reader, writer = pty.openpty()
    program = f"import structlog; from broker.telemetry import logs; logs.configure(); {call}"
    with os.fdopen(reader, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", program], stderr=writer, check=True)
        output = screen.read(4096)
        os.close(writer)
    return output.decode()
