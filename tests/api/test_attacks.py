"""Attempts to bypass the access rules and the limits. All of them fail."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from msgspec import Raw
from sqlalchemy import text

from broker.access.keyring import hashed
from broker.api import archive as archive_api
from broker.client import Connection
from broker.errors import BadRequest
from broker.schemas.tasks import NewTask
from broker.schemas.tools import NewTool
from broker.schemas.work import NewReport
from broker.settings import Settings, SettingsError
from broker.store import Store, keys, reports, submission, tools
from tests.access.test_keys import register_tool, wait_for_status
from tests.conftest import Running, Serve
from tests.support import steps
from tests.support.api import (
    add_task,
    add_tool,
    assert_problem,
    assign,
    bearer,
    complete_work,
    make_key,
)
from tests.support.waiting import wait_until


class HeldBody:
    """A request whose headers have been sent, and whose body has not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        self._reader, self._writer, self._body = reader, writer, body

    async def send_body(self) -> int:
        """Send the body, and return the status of the response."""
        self._writer.write(self._body)
        return int((await self._reader.readline()).split()[1])


@asynccontextmanager
async def send_headers(
    broker: Running, method: str, path: str, key: str, body: object
) -> AsyncIterator[HeldBody]:
    url, content = httpx.URL(broker.url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode())
    await writer.drain()
    # When the broker responds on another connection, it has already read these headers.
    assert (await broker.client.get("/health/live")).status_code == 200
    yield HeldBody(reader, writer, content)
    writer.close()


# Tools and tasks that do not exist yet, or no longer


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/v1/tools/t", {"skills": "evil", "draining": True}),
        ("POST", "/v1/tools/t/heartbeat", {}),
        ("POST", "/v1/tasks/a/retry", {}),
    ],
)
async def test_a_request_sent_before_a_tool_or_task_exists_cannot_change_another_owners(
    serve: Serve, store: Store, method: str, path: str, body: object
) -> None:
    their_key, our_key = [await make_key(store, name, "tool", "submitter") for name in ("theirs", "ours")]
    broker = await serve()
    async with send_headers(broker, method, path, their_key, body) as request:
        await register_tool(broker.client, our_key)
        new = {"id": "a", "needs": 1}
        assert (await broker.client.post("/v1/tasks", json=new, headers=bearer(our_key))).status_code == 201
        assert await request.send_body() == 404
    assert (await broker.client.get("/v1/tools/t", headers=bearer(our_key))).json()["skills"] == 1


async def test_the_former_owner_of_a_tool_id_has_no_access_to_the_new_tool(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    their_key, our_key = await make_key(store, "theirs", "tool"), await make_key(store, "ours", "tool")
    admin = bearer(await make_key(store, "admin", "admin"))
    broker = await serve()
    client, service = broker.client, broker.server.service

    async def presence_is_written() -> bool:
        return not service.presence._asked and not service.store.in_use()

    async def assigned(task: str) -> str:
        await client.post("/v1/tasks", json={"id": task, "needs": 1}, headers=admin)
        pair = {"task_id": task, "tool_id": "t"}
        work_id: str = (await client.post("/v1/work", json=pair, headers=admin)).json()["id"]
        return work_id

    old_token = await register_tool(client, their_key)
    old = await assigned("old")
    ending = {"outcome": "succeeded", "next_wait_seconds": 1}
    assert (
        await client.post(f"/v1/work/{old}/complete", json=ending, headers=bearer(their_key))
    ).status_code == 200
    assert (await client.delete("/v1/tools/t", headers=bearer(their_key))).status_code == 204
    new_token = await register_tool(client, our_key)
    await assigned("new")
    await wait_until(presence_is_written)
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")

    again = await client.post(f"/v1/work/{old}/complete", json=ending, headers=bearer(their_key))
    assert (again.status_code, again.json()["next"]) == (200, [])
    assert_problem(await client.post(f"/v1/work/{old}/start", headers=bearer(their_key)), 409, "work_ended")
    items = {"items": [{"work_id": old, "outcome": "succeeded"}]}
    await client.post("/v1/work/complete", json=items, headers=bearer(their_key))
    await wait_until(presence_is_written)
    assert await sql.fetchval("select offline from tools") is True
    # The new tool's token gives no access to the work of the old tool.
    assert_problem(await client.get(f"/v1/work/{old}", headers=bearer(new_token)), 403, "forbidden")
    assert_problem(await client.get("/v1/tools/t", headers=bearer(old_token)), 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/tools"])
async def test_a_delayed_body_is_refused_after_its_key_was_revoked(
    serve: Serve, store: Store, path: str
) -> None:
    key = await make_key(store, "mine", "submitter", "tool")
    broker = await serve()
    body = {"id": "x", "needs": 1} if path == "/v1/tasks" else {"id": "x", "skills": 1}
    async with send_headers(broker, "POST", path, key, body) as request:
        assert await store.run(keys.revoke, "mine")
        await wait_for_status(broker.client, 401, key)
        await asyncio.sleep(2)  # longer than any cache of keys
        assert await request.send_body() == 401


async def test_an_export_ends_when_its_key_is_revoked(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_api, "_PORTION", 1)
    admin = await make_key(store, "admin", "admin")
    broker = await serve()
    async with httpx.AsyncClient(base_url=broker.url, headers=bearer(admin)) as client:
        await add_tool(client, capacity=10)
        for number in range(3):
            await add_task(client, f"{number}")
            await complete_work(client, (await assign(client, f"{number}"))["id"])
        original = archive_api.archive.page

        def revoke_first(*args: object, **kwargs: object) -> object:
            keyring = broker.server.service.keyring
            keyring._keys, keyring._read_at = {}, keyring._read_at + 1000
            return original(*args, **kwargs)

        monkeypatch.setattr(archive_api.archive, "page", revoke_first)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/v1/archive/export")


# Tokens and keys


async def test_tokens_of_a_revoked_key_stay_void_if_its_name_is_used_again(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    key = await make_key(store, "tools", "tool")
    broker = await serve()
    token = await register_tool(broker.client, key)
    waiting = asyncio.create_task(broker.client.get("/v1/tools/t/work?wait=60", headers=bearer(token)))
    await steps.wait_for_long_polls(broker, 1)
    assert await store.run(keys.revoke, "tools")
    # The long poll ends at once, not after its 60 seconds.
    async with asyncio.timeout(5):
        assert_problem(await waiting, 401, "unauthenticated")
    for role in ("submitter", "tool"):
        await make_key(store, "tools", role, replace=True)
        assert_problem(await broker.client.get("/v1/tools/t", headers=bearer(token)), 401, "unauthenticated")

    async def is_offline() -> bool:
        return bool(await sql.fetchval("select offline from tools"))

    await wait_until(is_offline)


async def test_replacing_a_tool_key_by_one_without_that_role_voids_its_tokens(
    serve: Serve, store: Store
) -> None:
    key = await make_key(store, "mine", "tool")
    client = (await serve()).client
    token = await register_tool(client, key)
    await make_key(store, "mine", "submitter", replace=True)
    await wait_for_status(client, 401, token, "/v1/tools/t")


@pytest.mark.parametrize(
    "bearer_text",
    [
        b"bt_\xe9\xe9",
        b"bt_",
        b"bt__",
        b"bt_" + b"A" * 200,
        b"bt_dA=_" + b"A" * 43,
        b"bt_dA" + b"A" * 43,
        b"\xff",
    ],
)
async def test_a_malformed_token_is_unauthenticated(serve: Serve, bearer_text: bytes) -> None:
    client = (await serve(admin_key="an-admin-key")).client
    refused = await client.get("/v1/tools", headers=[(b"Authorization", b"Bearer " + bearer_text)])
    assert_problem(refused, 401, "unauthenticated")


async def test_an_admin_key_may_look_like_a_token(serve: Serve) -> None:
    client = (await serve(admin_key="bt_mine")).client
    assert (await client.get("/v1/tools", headers=bearer("bt_mine"))).status_code == 200


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "postgresql://u@[::1/x", "nonsense"])
def test_the_error_for_an_invalid_database_url_hides_the_url(url: str) -> None:
    with pytest.raises(SettingsError, match="BROKER_DATABASE_URL must look like postgresql://"):
        Settings(database_url=url)


async def test_the_client_accepts_a_key_with_a_line_end_and_hides_an_invalid_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BROKER_KEY", "bk_secret\r\n")
    async with Connection("http://127.0.0.1:1") as connection:
        assert connection._http.headers["Authorization"] == "Bearer bk_secret"
    for wrong in ("bk_sec ret", "bk_\x00secret", "bk_sécret"):
        with pytest.raises(ValueError, match="BROKER_KEY") as refused:
            Connection("http://127.0.0.1:1", key=wrong)
        assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="http://"):
        Connection("127.0.0.1:8000")


# Simultaneous requests


async def test_a_refused_submission_does_not_affect_others_in_the_same_batch(store: Store) -> None:
    new = NewTask(needs=Raw(b"1"), id="a")
    await store.many(submission.submit, [submission.TaskSubmission(new, "owner", any_owner=False)])
    results = await steps.run_many(
        store,
        submission.submit,
        [
            submission.TaskSubmission(new, "owner", any_owner=False),
            submission.TaskSubmission(new, "other", any_owner=False),
            submission.TaskSubmission(new, "@admin", any_owner=True),
            submission.TaskSubmission(new, "other", any_owner=False),
        ],
    )
    assert [task is not None for task, _ in results] == [True, False, True, False]


async def test_the_first_registration_in_a_batch_owns_the_tool(store: Store, sql: asyncpg.Connection) -> None:
    def registration(by: str, *, any_owner: bool = False) -> tools.Registration:
        return tools.Registration(NewTool(skills=Raw(b"1"), id="t"), hashed(by), by, any_owner=any_owner)

    results = await steps.run_many(
        store,
        tools.register,
        [registration("first"), registration("@admin", any_owner=True), registration("second")],
    )
    assert [tool is not None for tool, _ in results] == [True, True, False]
    assert await sql.fetchval("select registered_by from tools") == "first"


# Large requests, and requests with many errors


async def test_the_reports_of_a_work_item_can_always_be_archived(
    store: Store, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_work = await steps.add_running_work(store)
    await sql.execute("update work set report_bytes = $1", reports._MOST_REPORT_BYTES - 300)
    large, small = Raw(b'"' + b"x" * 200 + b'"'), Raw(b"1")
    first = NewReport(id=steps.UUID(int=1), data=small)
    results = await store.many(
        reports.write, [reports.ReportOf(new_work.id, each) for each in (first, NewReport(data=large), first)]
    )
    assert [report.is_stored for report in results if report] == [True, False, True]
    assert await sql.fetchval("select count(*) from work_reports") == 1
    ended = await steps.complete(store, new_work.id)
    assert ended.record is not None
    assert len(steps.reports_of(ended.record)) == 1


async def test_a_report_above_the_size_limit_of_its_work_item_is_refused(
    broker: Running, sql: asyncpg.Connection
) -> None:
    await add_tool(broker.client)
    await add_task(broker.client)
    new_work = (await assign(broker.client))["id"]
    await sql.execute("update work set report_bytes = $1", reports._MOST_REPORT_BYTES)
    refused = await broker.client.post(f"/v1/work/{new_work}/reports", json={"data": "x"})
    assert_problem(refused, 413, "payload_too_large")


def test_checking_a_long_text_needs_little_memory() -> None:
    script = """
import resource
from broker.http.json_limits import json_problem
from broker.settings import Settings
text = b'"' + b"0e123" * 3_000_000 + b'"'
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert json_problem(text, Settings(), matched=False) is None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024  # KiB


async def test_a_response_lists_a_limited_number_of_errors(broker: Running) -> None:
    for body, maximum in (
        ({"items": [{}] * 200_000}, 1),
        ({"items": [{}] * 9_000}, 1_000),
        ({"needs": 1} | {f"x{number}": 1 for number in range(50_000)}, 1_000),
    ):
        path = "/v1/tasks/batch" if "items" in body else "/v1/tasks"
        problem = assert_problem(await broker.client.post(path, json=body), 400, "validation_failed")
        assert 1 <= len(problem["errors"]) <= maximum


async def test_a_content_length_of_5000_digits_is_refused(broker: Running) -> None:
    url = httpx.URL(broker.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: {'0' * 5000}2\r\n\r\n{{}}"
    writer.write(head.encode())
    assert int((await reader.readline()).split()[1]) in (400, 413)
    writer.close()


async def test_a_database_error_does_not_contain_the_parameters(store: Store) -> None:
    statement = text("select 1 / (length(:secret) - 6)")
    with pytest.raises(BadRequest) as raised:
        await store.run(lambda connection: connection.execute(statement, {"secret": "secret"}))
    assert "division by zero" in str(raised.value.__cause__)
    assert "'secret'" not in str(raised.value.__cause__)
