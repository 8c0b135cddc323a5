"""`broker explain`: the reason why a task waits, its attempts, and the next steps."""

import json
import shlex
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
import pytest_asyncio

from broker.settings import Settings
from broker.store import Store
from tests.conftest import Running, running_broker, temporary_database
from tests.support.api import (
    add_running_work,
    add_task,
    add_tool,
    assign,
    bearer,
    complete_work,
    get,
    make_key,
)
from tests.support.cli import run
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER


async def test_explain_says_why_a_task_waits_and_what_to_do(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    await add_task(http)
    result = await run(broker.url, "explain", "a")
    assert result.status == 0
    assert result.err == ""
    assert result.out.startswith("a: available, no_assigner\nNo assigner has ever asked for tasks")
    assert "Last assigner request     never" in result.out
    assert "  Start an assigner  broker assign\n" in result.out


async def test_explain_lists_ended_attempts_newest_first(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http, max_attempts=2, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "released")
    work = (await assign(http))["id"]
    await complete_work(http, work, "failed", error="no disk\nat all", retry=False)
    result = await run(broker.url, "explain", "a")
    rows = [line.split(maxsplit=5) for line in result.out.splitlines() if line.startswith("  1  ")]
    assert [row[1] for row in rows] == ["failed", "released"]
    assert rows[0][2:4] == ["t", "not"]
    assert rows[0][5].endswith("no disk at all")


async def test_suggested_command_works(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "failed", retry=False)
    result = await run(broker.url, "explain", "a")
    [retry] = [line for line in result.out.splitlines() if "Retry the task" in line]
    advice = shlex.split(retry.partition("  broker ")[2])
    assert await run(broker.url, *advice) == (0, "", "")
    assert (await get(http, "/v1/tasks/a"))["state"] == "available"


async def test_explain_prints_json_for_programs(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "released")
    result = json.loads((await run(broker.url, "explain", "a", "--json")).out)
    attempts = result.pop("attempts")
    assert result == {"id": "a", **await get(http, "/v1/tasks/a/explain")}
    assert [(attempt["outcome"], attempt["tool_id"], attempt["work_id"]) for attempt in attempts] == [
        ("released", "t", pair.work)
    ]


async def test_explain_removes_control_characters_from_a_remark(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_task(http)
    await add_tool(http)
    await http.get("/v1/candidates")
    await http.put("/v1/tasks/a/remark", json={"text": "too\x1b[31m\r\nbig \x9b31m[red]"})
    result = await run(broker.url, "explain", "a")
    assert "Assigner's remark         too\ufffd[31m big \ufffd31m[red]\n" in result.out
    assert "\x1b" not in result.out


@pytest.mark.parametrize("task", ["unknown", "../x", "a/b", "..", ""])
async def test_error_about_an_unknown_task_names_it(broker: Running, task: str) -> None:
    result = await run(broker.url, "explain", task)
    message = f"No task has the id {task!r}, and the archive has no record of it. Check the id."
    assert result == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize(
    "command",
    [("explain", "x"), ("cancel", "x"), ("retry", "x"), ("keys", "revoke", "x"), ("archive", "export")],
)
async def test_error_about_a_wrong_path_in_the_url_names_the_url(
    broker: Running, command: tuple[str, ...]
) -> None:
    ended = await run(f"{broker.url}/docs", *command)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("Error: The broker has no path '/docs/v1/")
    assert f"Check its URL, {broker.url}/docs:" in ended.err


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_id_with_a_slash_is_an_unknown_task(broker: Running, command: str) -> None:
    ended = await run(broker.url, command, "a/b", "no", "..")
    assert [line.partition(": ")[0] for line in ended.err.removeprefix("Error: ").splitlines()] == [
        "a/b", "no", ".."
    ]  # fmt: skip
    assert ended.err.count("No task has this id") == 3


@pytest_asyncio.fixture(loop_scope="module")
async def keys(postgres: str, template: str) -> AsyncIterator[tuple[Running, dict[str, str]]]:
    """Run a broker with keys for two roles, and yield it with the keys."""
    async with temporary_database(postgres, template) as url:
        store = Store(url)
        made = {role: await make_key(store, role, role) for role in ("submitter", "assigner")}
        await store.close()
        async with running_broker(Settings(database_url=url)) as running:
            yield running, made


async def test_explain_works_without_access_to_the_archive(keys: tuple[Running, dict[str, str]]) -> None:
    broker, made = keys
    broker.client.headers.update(bearer(made["submitter"]))
    await add_task(broker.client)
    for role, attempts in (("submitter", []), ("assigner", None)):
        result = await run(broker.url, "explain", "a", "--json", BROKER_KEY=made[role])
        assert result.status == 0
        assert json.loads(result.out)["attempts"] == attempts
    result = await run(broker.url, "explain", "a", BROKER_KEY=made["assigner"])
    assert "attempts" not in result.out.lower()
    assert made["assigner"] not in result.out
    refused = await run(broker.url, "explain", "a")
    assert refused.status == 1
    assert "BROKER_KEY" in refused.err
