"""`broker explain`: somebody whose task waits asks why."""

import json
import shlex

import httpx
import pytest

from broker.store import Store
from tests.cli_helpers import run
from tests.conftest import Running, Serve
from tests.helpers import add_task, add_tool, assign, bearer, completed, get, make_key, started


async def test_a_task_that_waits_is_told_why_and_what_to_do(broker: Running) -> None:
    await add_task(broker.client)
    told = await run(broker.url, "explain", "a")
    assert told.status == 0
    assert told.err == ""
    assert told.out.startswith("a: available, no_assigner\nNo assigner has ever asked for tasks")
    assert "Assigner last asked  never" in told.out
    assert "  Start an assigner  broker assign\n" in told.out


async def test_the_attempts_so_far_are_told_the_newest_first(broker: Running) -> None:
    pair = await started(broker.client, max_attempts=2, retry_backoff_seconds=0)
    await completed(broker.client, pair.work, "released")
    work = (await assign(broker.client))["id"]
    await completed(broker.client, work, "failed", error="no disk\nat all", retry=False)
    told = await run(broker.url, "explain", "a")
    rows = [line.split(maxsplit=5) for line in told.out.splitlines() if line.startswith("  1  ")]
    assert [row[1] for row in rows] == ["failed", "released"]
    assert rows[0][2:4] == ["t", "not"]
    assert rows[0][5].endswith("no disk at all")


async def test_what_it_says_can_be_done_can_be_done(broker: Running) -> None:
    pair = await started(broker.client)
    await completed(broker.client, pair.work, "failed", retry=False)
    told = await run(broker.url, "explain", "a")
    [retry] = [line.partition("  curl -X ")[2] for line in told.out.splitlines() if "Have it tried" in line]
    method, url = shlex.split(retry)
    assert (await broker.client.request(method, url)).status_code == 200
    assert (await get(broker.client, "/v1/tasks/a"))["state"] == "available"


async def test_programs_read_it_as_json(broker: Running) -> None:
    pair = await started(broker.client)
    await completed(broker.client, pair.work, "released")
    told = json.loads((await run(broker.url, "explain", "a", "--json")).out)
    attempts = told.pop("attempts")
    assert told == {"id": "a", **await get(broker.client, "/v1/tasks/a/explain")}
    assert [(each["outcome"], each["tool_id"], each["work_id"]) for each in attempts] == [
        ("released", "t", pair.work)
    ]


async def test_what_others_say_steers_no_terminal(broker: Running) -> None:
    await add_task(broker.client)
    await add_tool(broker.client)
    await broker.client.get("/v1/candidates")
    await broker.client.put("/v1/tasks/a/remark", json={"text": "too\x1b[31m\r\nbig \x9b31m[red]"})
    told = await run(broker.url, "explain", "a")
    assert "Assigner's remark    too\ufffd[31m big \ufffd31m[red]\n" in told.out
    assert "\x1b" not in told.out


@pytest.mark.parametrize("task", ["unknown", "no id", "../x", ""])
async def test_an_unknown_task_is_an_error_that_names_it(broker: Running, task: str) -> None:
    told = await run(broker.url, "explain", task)
    assert told == (1, "", f"Error: There is no task {task!r}, neither live nor ended.\n")


async def test_who_may_not_read_the_archive_is_told_the_rest(serve: Serve, store: Store) -> None:
    keys = {role: await make_key(store, role, role) for role in ("submitter", "assigner")}
    broker = await serve()
    http: httpx.AsyncClient = broker.client
    http.headers.update(bearer(keys["submitter"]))
    await add_task(http)
    for role, attempts in (("submitter", []), ("assigner", None)):
        told = await run(broker.url, "explain", "a", "--json", BROKER_KEY=keys[role])
        assert told.status == 0
        assert json.loads(told.out)["attempts"] == attempts
    told = await run(broker.url, "explain", "a", BROKER_KEY=keys["assigner"])
    assert "attempts" not in told.out.lower()
    # The key itself is not shown.
    assert '-H "Authorization: Bearer $BROKER_KEY"' in told.out
    refused = await run(broker.url, "explain", "a")
    assert refused.status == 1
    assert "BROKER_KEY" in refused.err
