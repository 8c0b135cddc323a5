"""`broker explain`: somebody whose task waits asks why."""

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


async def test_a_task_that_waits_is_told_why_and_what_to_do(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    await sql.execute("delete from assigner")
    await add_task(http)
    told = await run(broker.url, "explain", "a")
    assert told.status == 0
    assert told.err == ""
    assert told.out.startswith("a: available, no_assigner\nNo assigner has ever asked for tasks")
    assert "Assigner last asked  never" in told.out
    assert "  Start an assigner  broker assign\n" in told.out


async def test_the_attempts_so_far_are_told_the_newest_first(
    broker: Running, http: httpx.AsyncClient
) -> None:
    pair = await add_running_work(http, max_attempts=2, retry_backoff_seconds=0)
    await complete_work(http, pair.work, "released")
    work = (await assign(http))["id"]
    await complete_work(http, work, "failed", error="no disk\nat all", retry=False)
    told = await run(broker.url, "explain", "a")
    rows = [line.split(maxsplit=5) for line in told.out.splitlines() if line.startswith("  1  ")]
    assert [row[1] for row in rows] == ["failed", "released"]
    assert rows[0][2:4] == ["t", "not"]
    assert rows[0][5].endswith("no disk at all")


async def test_what_it_says_can_be_done_can_be_done(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "failed", retry=False)
    told = await run(broker.url, "explain", "a")
    [retry] = [line for line in told.out.splitlines() if "Have it tried again" in line]
    advice = shlex.split(retry.partition("  broker ")[2])
    assert await run(broker.url, *advice) == (0, "", "")
    assert (await get(http, "/v1/tasks/a"))["state"] == "available"


async def test_programs_read_it_as_json(broker: Running, http: httpx.AsyncClient) -> None:
    pair = await add_running_work(http)
    await complete_work(http, pair.work, "released")
    told = json.loads((await run(broker.url, "explain", "a", "--json")).out)
    attempts = told.pop("attempts")
    assert told == {"id": "a", **await get(http, "/v1/tasks/a/explain")}
    assert [(each["outcome"], each["tool_id"], each["work_id"]) for each in attempts] == [
        ("released", "t", pair.work)
    ]


async def test_what_others_say_steers_no_terminal(broker: Running, http: httpx.AsyncClient) -> None:
    await add_task(http)
    await add_tool(http)
    await http.get("/v1/candidates")
    await http.put("/v1/tasks/a/remark", json={"text": "too\x1b[31m\r\nbig \x9b31m[red]"})
    told = await run(broker.url, "explain", "a")
    assert "Assigner's remark    too\ufffd[31m big \ufffd31m[red]\n" in told.out
    assert "\x1b" not in told.out


@pytest.mark.parametrize("task", ["unknown", "../x", "a/b", "..", ""])
async def test_an_unknown_task_is_an_error_that_names_it(broker: Running, task: str) -> None:
    told = await run(broker.url, "explain", task)
    assert told == (1, "", f"Error: There is no task {task!r}, neither live nor ended.\n")


@pytest.mark.parametrize(
    "command",
    [("explain", "x"), ("cancel", "x"), ("retry", "x"), ("keys", "revoke", "x"), ("archive", "export")],
)
async def test_a_url_with_a_wrong_path_is_not_mistaken_for_an_unknown_task(
    broker: Running, command: tuple[str, ...]
) -> None:
    ended = await run(f"{broker.url}/docs", *command)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("Error: The broker has no path '/docs/v1/")
    assert f"Check its URL, {broker.url}/docs:" in ended.err


@pytest.mark.parametrize("command", ["cancel", "retry"])
async def test_an_id_with_a_slash_is_an_unknown_task(broker: Running, command: str) -> None:
    ended = await run(broker.url, command, "a/b", "no", "..")
    assert [line.partition(": ")[0] for line in ended.err.removeprefix("Error: ").splitlines()] == [
        "a/b", "no", ".."
    ]  # fmt: skip
    assert ended.err.count("There is no such task") == 3


@pytest_asyncio.fixture(loop_scope="module")
async def keys(postgres: str, template: str) -> AsyncIterator[tuple[Running, dict[str, str]]]:
    """A broker with keys for two roles, and these."""
    async with temporary_database(postgres, template) as url:
        store = Store(url)
        made = {role: await make_key(store, role, role) for role in ("submitter", "assigner")}
        await store.close()
        async with running_broker(Settings(database_url=url)) as running:
            yield running, made


async def test_who_may_not_read_the_archive_is_told_the_rest(keys: tuple[Running, dict[str, str]]) -> None:
    broker, made = keys
    broker.client.headers.update(bearer(made["submitter"]))
    await add_task(broker.client)
    for role, attempts in (("submitter", []), ("assigner", None)):
        told = await run(broker.url, "explain", "a", "--json", BROKER_KEY=made[role])
        assert told.status == 0
        assert json.loads(told.out)["attempts"] == attempts
    told = await run(broker.url, "explain", "a", BROKER_KEY=made["assigner"])
    assert "attempts" not in told.out.lower()
    assert made["assigner"] not in told.out
    refused = await run(broker.url, "explain", "a")
    assert refused.status == 1
    assert "BROKER_KEY" in refused.err
