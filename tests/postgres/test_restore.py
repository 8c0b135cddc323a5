"""The effects of a restore on the users of a broker that was backed up during work."""

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
    """A service that was restored from a backup, with the knowledge of its users from before.

    Args:
        http: A client of the service, with a key of an admin.
        folder: The folder with the backup, `broker.dump`, and the data, `here`.
        keys: The keys by their names. `later` was created after the backup.
        tokens: The tokens of the tools. That of `later` was also created after the backup.
        known: Ids, cursors and records from before the backup.
    """

    http: httpx.AsyncClient
    folder: Path
    keys: dict[str, str]
    tokens: dict[str, str]
    known: dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def restored() -> AsyncIterator[Restored]:
    with temporary_folder() as folder:
        source = {"BROKER_DATA_DIR": str(folder / "there")}
        with EmbeddedPostgres(folder / "there") as postgres:
            await migration.migrate(postgres.url())
            async with open_store(postgres.url()) as store:
                keys = {role: await make_key(store, role, role) for role in ROLES}
                keys["revoked"] = await make_key(store, "revoked", "operator")
        with serving(**source) as (process, url):
            await wait_until_ready(url)
            async with client_of(url, keys["admin"]) as http:
                tokens, known = await create_state(http, keys)
                load = asyncio.create_task(put_load(http))
                result = await run("", "backup", str(folder / "broker.dump"), **source)
                assert result.status == 0, result.err
                load.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await load
                async with open_store(str(EmbeddedPostgres.url_of_running(folder / "there"))) as store:
                    keys["later"] = await make_key(store, "later", "operator")
                    assert await store.run(revoke, "revoked")
                tokens["later"] = (await add_tool(http, "later"))["token"]
                await change_state(http, known)
            process.terminate()
            await asyncio.to_thread(process.wait, 30)
        here = {"BROKER_DATA_DIR": str(folder / "here")}
        result = await run("", "restore", str(folder / "broker.dump"), **here)
        assert result.status == 0, result.err
        await let_time_pass(folder / "here")
        with serving(**here) as (_, url):
            await wait_until_ready(url)
            async with client_of(url, keys["admin"]) as http:
                yield Restored(http, folder, keys, tokens, known)


def client_of(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=30)


async def create_state(
    http: httpx.AsyncClient, keys: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Create a task in each state before the backup."""
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


async def put_load(http: httpx.AsyncClient) -> None:
    """Submit and complete tasks until cancelled."""
    for number in range(100_000):
        task = f"load-{number}"
        await add_task(http, task)
        work = (await assign(http, task))["id"]
        if number % 2:
            await complete_work(http, work)


async def change_state(http: httpx.AsyncClient, known: dict[str, Any]) -> None:
    """Change tasks after the backup."""
    await complete_work(http, known["running"], result="before")
    assert (await http.post(f"/v1/work/{known['assigned']}/start")).status_code == 200
    await add_task(http, "later")
    known["record"] = await get(http, f"/v1/archive/{known['ended']}")


async def let_time_pass(data_dir: Path) -> None:
    """Move all leases a day into the past, and give the silent tool a short lease."""
    with EmbeddedPostgres(data_dir) as postgres:
        connection = await asyncpg.connect(libpq_url(postgres.url()))
        for statement in (
            "update tool_leases set expires_at = expires_at - interval '1 day'",
            "update tool_leases set lease_seconds = 1 where tool_id = 'silent'",
            "update work set deadline_at = deadline_at - interval '1 day'",
        ):
            await connection.execute(statement)
        await connection.close()


async def test_restored_broker_has_all_committed_tasks(restored: Restored) -> None:
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


async def test_backup_during_load_is_consistent(restored: Restored) -> None:
    """Tasks are submitted one by one, so only the last ones may be missing."""
    listed = flatten(await get_pages(restored.http, "/v1/tasks")) + [
        {"id": record["task_id"]} for record in flatten(await get_pages(restored.http, "/v1/archive"))
    ]
    load_ids = {id_ for id_ in ids(listed) if id_.startswith("load-")}
    assert load_ids == {f"load-{number}" for number in range(len(load_ids))}


async def test_old_cursor_is_expired_and_a_new_one_does_not_repeat_tasks(restored: Restored) -> None:
    key = bearer(restored.keys["assigner"])
    for cursor in restored.known["cursors"]:
        response = await restored.http.get(
            "/v1/candidates", params={"cursor": cursor, "wait": 30}, headers=key
        )
        assert_problem(response, 410, "cursor_expired")
    tasks: list[Json] = []
    page: Json = {"more": True, "cursor": None}
    while page["more"]:
        query = {"cursor": page["cursor"]} if page["cursor"] else {}
        page = await get(restored.http, "/v1/candidates", **query)
        tasks += page["tasks"]
    assert "waits" in ids(tasks)
    await add_task(restored.http, "new", priority=-5)
    page = await get(restored.http, "/v1/candidates", cursor=page["cursor"])
    assert "new" in ids(page["tasks"])
    assert "waits" not in ids(page["tasks"])


async def test_list_continues_at_a_page_from_before_the_backup(restored: Restored) -> None:
    rest = flatten(await get_pages(restored.http, "/v1/tasks", after=restored.known["after"]))
    all_tasks = flatten(await get_pages(restored.http, "/v1/tasks"))
    assert 0 < len(rest) < len(all_tasks)


async def test_keys_and_tokens_from_before_the_backup_work_and_later_ones_do_not(
    restored: Restored,
) -> None:
    async def status(key: str, path: str = "/v1/tools/t") -> int:
        return (await restored.http.get(path, headers=bearer(key))).status_code

    for name in ("tool", "assigner", "operator", "admin"):
        assert await status(restored.keys[name]) == 200
    assert await status(restored.keys["submitter"], "/v1/tasks/waits") == 403, (
        "this task belongs to the admin"
    )
    assert await status(restored.tokens["t"]) == 200
    # This key was revoked after the backup.
    assert await status(restored.keys["revoked"]) == 200
    assert await status(restored.keys["later"]) == 401
    assert await status(restored.tokens["later"], "/v1/tools/later") == 401


async def test_task_submitted_after_the_backup_can_be_submitted_again(restored: Restored) -> None:
    for task, status in (("later", 201), ("later", 200), ("ended", 200), ("waits", 200)):
        response = await restored.http.post("/v1/tasks", json={"id": task, "needs": {}})
        assert response.status_code == status


async def test_work_that_ended_after_the_backup_can_end_again(restored: Restored) -> None:
    work, token = restored.known["running"], bearer(restored.tokens["t"])
    assert (await get(restored.http, f"/v1/work/{work}"))["state"] == "running"
    response = await restored.http.post(
        f"/v1/work/{work}/complete", json={"outcome": "succeeded", "result": "again"}, headers=token
    )
    assert response.status_code == 200
    assert (await get(restored.http, "/v1/tasks/running"))["result"] == "again"


async def test_expired_leases_are_renewed_after_a_restore(restored: Restored) -> None:
    tool = await get(restored.http, "/v1/tools/t")
    assert tool["state"] != "offline"
    token = bearer(restored.tokens["t"])
    assert (await restored.http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    response = await restored.http.post(f"/v1/work/{restored.known['assigned']}/start", headers=token)
    assert (response.status_code, response.json()["state"]) == (200, "running")


async def test_tool_that_stays_silent_after_a_restore_loses_its_work(restored: Restored) -> None:
    await wait_for_state(restored.http, "/v1/tools/silent", "offline")
    task = await wait_for_state(restored.http, "/v1/tasks/orphan", "available")
    assert task["attempt"] == 1
    late = await complete(restored.http, restored.known["orphan"])
    assert_problem(late, 409, "work_ended")


async def test_subscriber_from_before_the_backup_gets_resync(restored: Restored) -> None:
    async with subscribe(restored.http, after=restored.known["event"]) as watcher:
        assert (await watcher.next()).name == "resync"


async def test_restore_refuses_the_database_of_a_running_service(restored: Restored) -> None:
    here = {"BROKER_DATA_DIR": str(restored.folder / "here")}
    result = await run("", "restore", str(restored.folder / "broker.dump"), **here)
    assert result.status == 1
    assert "is in use, and a restore needs an empty database. Set BROKER_DATA_DIR to a folder" in result.err


async def test_restarted_tool_loses_work_from_before_the_restore(restored: Restored) -> None:
    token = bearer(restored.tokens["t"])
    assert (await restored.http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    assert (await get(restored.http, "/v1/tasks/running-2"))["state"] == "running"
    response = await restored.http.post(
        "/v1/tools", json={"id": "t", "skills": {}}, headers=bearer(restored.keys["tool"])
    )
    assert response.status_code == 200
    assert (await get(restored.http, "/v1/tasks/running-2"))["state"] == "available"
    [record] = (await get(restored.http, "/v1/archive", task_id="running-2"))["items"]
    assert record["outcome"] == "lost"
