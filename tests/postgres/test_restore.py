"""What a restore means to those who use the broker: a service that was backed up at work begins anew."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
import pytest_asyncio

from broker.postgres.cluster import EmbeddedPostgres
from broker.schemas.keys import ROLES
from broker.store import migration
from broker.store.address import libpq_url
from broker.store.keys import revoke
from tests.conftest import temporary_folder
from tests.support.api import (
    Json,
    add_task,
    add_tool,
    assert_problem,
    assign,
    bearer,
    complete,
    complete_work,
    flatten,
    get,
    get_pages,
    ids,
    make_key,
    wait_for_state,
)
from tests.support.cli import run
from tests.support.processes import serving, wait_until_ready
from tests.support.steps import open_store
from tests.support.subscribers import subscribe

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Restored(NamedTuple):
    """A service that has begun from a backup, and what its users know from before.

    Args:
        http: The service, with an admin's key.
        folder: Where the backup is, `broker.dump`, and the data, `here`.
        keys: The keys, by their names; `later` was made after the backup.
        tokens: The tools' own; the one of `later` was made after the backup, too.
        known: What was answered before.
    """

    http: httpx.AsyncClient
    folder: Path
    keys: dict[str, str]
    tokens: dict[str, str]
    known: dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def restored() -> AsyncIterator[Restored]:
    with temporary_folder() as folder:
        there = {"BROKER_DATA_DIR": str(folder / "there")}
        with EmbeddedPostgres(folder / "there") as postgres:
            await migration.migrate(postgres.url())
            async with open_store(postgres.url()) as store:
                keys = {role: await make_key(store, role, role) for role in ROLES}
                keys["revoked"] = await make_key(store, "revoked", "operator")
        with serving(**there) as (process, url):
            await wait_until_ready(url)
            async with a_client(url, keys["admin"]) as http:
                tokens, known = await lived(http, keys)
                load = asyncio.create_task(submits_and_ends(http))
                told = await run("", "backup", str(folder / "broker.dump"), **there)
                assert told.status == 0, told.err
                load.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await load
                async with open_store(str(EmbeddedPostgres.url_of_running(folder / "there"))) as store:
                    keys["later"] = await make_key(store, "later", "operator")
                    assert await store.run(revoke, "revoked")
                tokens["later"] = (await add_tool(http, "later"))["token"]
                await lived_on(http, known)
            process.terminate()
            await asyncio.to_thread(process.wait, 30)
        here = {"BROKER_DATA_DIR": str(folder / "here")}
        told = await run("", "restore", str(folder / "broker.dump"), **here)
        assert told.status == 0, told.err
        await time_passes(folder / "here")
        with serving(**here) as (_, url):
            await wait_until_ready(url)
            async with a_client(url, keys["admin"]) as http:
                yield Restored(http, folder, keys, tokens, known)


def a_client(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=30)


async def lived(http: httpx.AsyncClient, keys: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Before the backup: a task in each state."""
    http.headers["Authorization"] = f"Bearer {keys['tool']}"
    tokens = {
        "t": (await add_tool(http, "t", capacity=100, lease_seconds=60))["token"],
        "silent": (await add_tool(http, "silent", lease_seconds=5))["token"],
    }
    http.headers["Authorization"] = f"Bearer {keys['admin']}"
    for task in ("waits", "assigned", "running", "running-2", "orphan", "failed", "ended"):
        await add_task(http, task)
    await add_task(http, "scheduled", not_before="2100-01-01T00:00:00Z")
    known: dict[str, Any] = {}
    for task in ("assigned", "running", "running-2", "failed", "ended"):
        known[task] = (await assign(http, task))["id"]
    known["orphan"] = (await assign(http, "orphan", "silent"))["id"]
    for task in ("running", "running-2", "orphan"):
        assert (await http.post(f"/v1/work/{known[task]}/start")).status_code == 200
    await complete_work(http, known["failed"], "failed", retry=False)
    await complete_work(http, known["ended"], result=17)
    known["cursors"] = [(await get(http, "/v1/candidates", limit=limit))["cursor"] for limit in (1, 1000)]
    known["after"] = (await get(http, "/v1/tasks", limit=1))["next"]
    async with subscribe(http) as watcher:
        known["event"] = watcher.position
    return tokens, known


async def submits_and_ends(http: httpx.AsyncClient) -> None:
    """A small load."""
    for number in range(100_000):
        task = f"load-{number}"
        await add_task(http, task)
        work = (await assign(http, task))["id"]
        if number % 2:
            await complete_work(http, work)


async def lived_on(http: httpx.AsyncClient, known: dict[str, Any]) -> None:
    """After the backup."""
    await complete_work(http, known["running"], result="of before")
    assert (await http.post(f"/v1/work/{known['assigned']}/start")).status_code == 200
    await add_task(http, "later")
    known["record"] = await get(http, f"/v1/archive/{known['ended']}")


async def time_passes(data_dir: Path) -> None:
    """A day between the backup and its restore; and the tool that will not be heard has a short lease."""
    with EmbeddedPostgres(data_dir) as postgres:
        connection = await asyncpg.connect(libpq_url(postgres.url()))
        for statement in (
            "update tool_leases set expires_at = expires_at - interval '1 day'",
            "update tool_leases set lease_seconds = 1 where tool_id = 'silent'",
            "update work set deadline_at = deadline_at - interval '1 day'",
        ):
            await connection.execute(statement)
        await connection.close()


async def test_nothing_of_what_was_committed_is_missing(restored: Restored) -> None:
    states = {task: (await get(restored.http, f"/v1/tasks/{task}"))["state"] for task in STATES}
    assert states == STATES
    assert await get(restored.http, f"/v1/archive/{restored.known['ended']}") == restored.known["record"]


STATES = {
    "waits": "available",
    "assigned": "assigned",
    "running-2": "running",
    "failed": "failed",
    "scheduled": "scheduled",
    "ended": "succeeded",
}


async def test_what_a_load_had_done_is_there_to_the_same_moment(restored: Restored) -> None:
    """Tasks come one after the other, so those that are missing are the last ones."""
    listed = flatten(await get_pages(restored.http, "/v1/tasks")) + [
        {"id": record["task_id"]} for record in flatten(await get_pages(restored.http, "/v1/archive"))
    ]
    found = {id_ for id_ in ids(listed) if id_.startswith("load-")}
    assert found == {f"load-{number}" for number in range(len(found))}


async def test_a_cursor_of_before_is_expired_and_a_new_one_does_not_spin(restored: Restored) -> None:
    key = bearer(restored.keys["assigner"])
    for cursor in restored.known["cursors"]:
        answer = await restored.http.get("/v1/candidates", params={"cursor": cursor, "wait": 30}, headers=key)
        assert_problem(answer, 410, "cursor_expired")
    told: list[Json] = []
    found: Json = {"more": True, "cursor": None}
    while found["more"]:
        query = {"cursor": found["cursor"]} if found["cursor"] else {}
        found = await get(restored.http, "/v1/candidates", **query)
        told += found["tasks"]
    assert "waits" in ids(told)
    await add_task(restored.http, "new", priority=-5)
    found = await get(restored.http, "/v1/candidates", cursor=found["cursor"])
    assert "new" in ids(found["tasks"])
    assert "waits" not in ids(found["tasks"])


async def test_a_list_goes_on_where_it_was(restored: Restored) -> None:
    rest = flatten(await get_pages(restored.http, "/v1/tasks", after=restored.known["after"]))
    everything = flatten(await get_pages(restored.http, "/v1/tasks"))
    assert 0 < len(rest) < len(everything)


async def test_keys_and_tokens_of_the_backups_time_are_good_and_later_ones_are_not(
    restored: Restored,
) -> None:
    async def status(key: str, path: str = "/v1/tools/t") -> int:
        return (await restored.http.get(path, headers=bearer(key))).status_code

    for name in ("tool", "assigner", "operator", "admin"):
        assert await status(restored.keys[name]) == 200
    assert await status(restored.keys["submitter"], "/v1/tasks/waits") == 403, "admin's task, by its name"
    assert await status(restored.tokens["t"]) == 200
    # It was revoked after the backup, and the backup does not know.
    assert await status(restored.keys["revoked"]) == 200
    assert await status(restored.keys["later"]) == 401
    assert await status(restored.tokens["later"], "/v1/tools/later") == 401


async def test_a_task_that_was_submitted_after_the_backup_can_be_submitted_again(restored: Restored) -> None:
    for task, status in (("later", 201), ("later", 200), ("ended", 200), ("waits", 200)):
        answer = await restored.http.post("/v1/tasks", json={"id": task, "needs": {}})
        assert answer.status_code == status


async def test_work_that_ended_after_the_backup_can_end_again(restored: Restored) -> None:
    work, token = restored.known["running"], bearer(restored.tokens["t"])
    assert (await get(restored.http, f"/v1/work/{work}"))["state"] == "running"
    answer = await restored.http.post(
        f"/v1/work/{work}/complete", json={"outcome": "succeeded", "result": "again"}, headers=token
    )
    assert answer.status_code == 200
    assert (await get(restored.http, "/v1/tasks/running"))["result"] == "again"


async def test_leases_that_ran_out_long_ago_begin_anew_so_that_tools_are_heard(restored: Restored) -> None:
    found = await get(restored.http, "/v1/tools/t")
    assert found["state"] != "offline"
    token = bearer(restored.tokens["t"])
    assert (await restored.http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    answer = await restored.http.post(f"/v1/work/{restored.known['assigned']}/start", headers=token)
    assert (answer.status_code, answer.json()["state"]) == (200, "running")


async def test_a_tool_that_is_not_heard_of_again_loses_its_work_to_others(restored: Restored) -> None:
    await wait_for_state(restored.http, "/v1/tools/silent", "offline")
    found = await wait_for_state(restored.http, "/v1/tasks/orphan", "available")
    assert found["attempt"] == 1
    late = await complete(restored.http, restored.known["orphan"])
    assert_problem(late, 409, "work_ended")


async def test_who_watched_before_is_told_to_read_everything_anew(restored: Restored) -> None:
    async with subscribe(restored.http, after=restored.known["event"]) as watcher:
        assert (await watcher.next()).name == "resync"


async def test_nothing_is_read_into_the_database_of_a_service_that_runs(restored: Restored) -> None:
    here = {"BROKER_DATA_DIR": str(restored.folder / "here")}
    told = await run("", "restore", str(restored.folder / "broker.dump"), **here)
    assert told.status == 1
    assert "is in use, and a restore never touches data. Set BROKER_DATA_DIR to a folder that is" in told.err


async def test_a_tool_that_is_started_again_gives_back_what_it_had_already_done(restored: Restored) -> None:
    token = bearer(restored.tokens["t"])
    assert (await restored.http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    assert (await get(restored.http, "/v1/tasks/running-2"))["state"] == "running"
    answer = await restored.http.post(
        "/v1/tools", json={"id": "t", "skills": {}}, headers=bearer(restored.keys["tool"])
    )
    assert answer.status_code == 200
    assert (await get(restored.http, "/v1/tasks/running-2"))["state"] == "available"
    [record] = (await get(restored.http, "/v1/archive", task_id="running-2"))["items"]
    assert record["outcome"] == "lost"
