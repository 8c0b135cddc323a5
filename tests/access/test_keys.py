"""Creating, revoking and replacing keys of running brokers, and access without keys."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from broker.access.keyring import hashed, new_key
from broker.cli.serve import SHORTEST_ADMIN_KEY
from broker.client import Assigner, AsyncBroker, AsyncJob, Job, ProblemError, Tool
from broker.errors import Unavailable
from broker.server.http_server import create_server, is_loopback
from broker.settings import Settings, SettingsError
from broker.store import Store, keys
from tests.access.test_without_keys import HOSTILE
from tests.conftest import Serve
from tests.support.api import add_tool, assert_problem, bearer, make_key, recorded_statements, start_long_poll
from tests.support.cli import CommandResult, run
from tests.support.processes import serving, wait_for_exit, wait_until_ready


async def wait_for_status(
    client: httpx.AsyncClient, status: int, key: str = "", path: str = "/v1/tools"
) -> None:
    """Wait until requests with a key get this status, for eight seconds at most."""
    async with asyncio.timeout(8):
        while (await client.get(path, headers=bearer(key) if key else {})).status_code != status:
            await asyncio.sleep(0.1)


async def register_tool(client: httpx.AsyncClient, key: str) -> str:
    """Register a tool with a key, and return its token."""
    response = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    token: str = response.json()["token"]
    return token


async def test_revoked_key_is_refused_within_seconds_in_every_process(serve: Serve, store: Store) -> None:
    key = await make_key(store, "mine", "operator")
    first, second = await serve(), await serve()
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools", headers=bearer(key))).status_code == 200
    assert await store.run(keys.revoke, "mine")
    for broker in (first, second):
        await wait_for_status(broker.client, 401, key)
    # After a key has existed, requests without a key stay refused.
    assert_problem(await first.client.get("/v1/tools"), 401, "unauthenticated")


async def test_created_key_is_valid_at_once(serve: Serve, store: Store) -> None:
    old = await make_key(store, "old", "operator")
    broker = await serve()
    for number in range(5):
        assert (await broker.client.get("/v1/tools", headers=bearer(old))).status_code == 200
        key = await make_key(store, f"new-{number}", "operator")
        assert (await broker.client.get("/v1/tools", headers=bearer(key))).status_code == 200


async def test_first_key_restricts_a_running_service(serve: Serve, store: Store) -> None:
    broker = await serve()
    assert (await broker.client.get("/v1/tools")).status_code == 200
    # While no keys exist, any key is accepted.
    assert (await broker.client.get("/v1/tools", headers=bearer("any"))).status_code == 200
    await make_key(store, "first", "admin")
    await wait_for_status(broker.client, 401)


async def test_requests_share_the_queries_for_keys(serve: Serve, store: Store) -> None:
    key = await make_key(store, "tools", "tool")
    broker = await serve()
    token = (
        await broker.client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    ).json()["token"]
    with recorded_statements(broker) as seen:
        for each in (key, token):
            for _ in range(50):
                response = await broker.client.post("/v1/tools/t/heartbeat", headers=bearer(each))
                assert response.status_code == 200, response.text
    lookups = [each for each in seen if "from keys" in each or "registered_by, token_hash" in each]
    # One query for the keys and one for the tool. Each runs again if this takes longer than two seconds.
    assert len(lookups) <= 4 < 50 < len(seen)


async def test_long_poll_with_a_revoked_key_returns_no_data(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    key, admin = await make_key(store, "mine", "submitter"), await make_key(store, "admin", "admin")
    broker = await serve()
    client = broker.client
    await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(key))
    long_poll = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60", headers=bearer(key))
    assert await store.run(keys.revoke, "mine")
    await wait_for_status(client, 401, key, "/v1/tasks/a")
    assert not long_poll.done()
    assert (await client.delete("/v1/tasks/a", headers=bearer(admin))).status_code == 204
    assert_problem(await long_poll, 401, "unauthenticated")


async def test_registering_again_voids_the_token_at_once_and_soon_in_other_processes(
    serve: Serve, store: Store
) -> None:
    key = await make_key(store, "tools", "tool")
    first, second = await serve(), await serve()

    old = await register_tool(first.client, key)
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools/t", headers=bearer(old))).status_code == 200
    long_poll = await start_long_poll(first, "GET", "/v1/tools/t/work?wait=60", headers=bearer(old))
    new = await register_tool(first.client, key)
    assert_problem(await first.client.get("/v1/tools/t", headers=bearer(old)), 401, "unauthenticated")
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools/t", headers=bearer(new))).status_code == 200
    await wait_for_status(second.client, 401, old, "/v1/tools/t")
    assert (await first.client.delete("/v1/tools/t", headers=bearer(key))).status_code == 204
    assert_problem(await long_poll, 401, "unauthenticated")
    assert_problem(await first.client.get("/v1/tools/t", headers=bearer(new)), 401, "unauthenticated")


async def test_token_is_valid_as_long_as_the_key_that_registered_its_tool(serve: Serve, store: Store) -> None:
    key = await make_key(store, "tools", "tool")
    client = (await serve()).client
    token = await register_tool(client, key)
    # The tool continues without interruption, because it belongs to the name of the key.
    new = await make_key(store, "tools", "tool", replace=True)
    await wait_for_status(client, 401, key)
    for each in (new, token):
        assert (await client.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    assert await store.run(keys.revoke, "tools")
    await wait_for_status(client, 401, new)
    assert_problem(await client.get("/v1/tools/t", headers=bearer(token)), 401, "unauthenticated")


async def test_key_takes_over_a_tool_that_was_registered_without_keys(serve: Serve, store: Store) -> None:
    broker = await serve()
    client = broker.client
    token = (await add_tool(client))["token"]
    await client.post("/v1/tasks", json={"id": "a", "needs": 1})
    tool, submitter = await make_key(store, "tools", "tool"), await make_key(store, "mine", "submitter")
    await wait_for_status(client, 401)
    # The tool continues with its token, and its next program with a key. Then no other key can take it over.
    assert (await client.get("/v1/tools/t", headers=bearer(token))).status_code == 200
    assert_problem(await client.get("/v1/tools/t", headers=bearer(tool)), 403, "forbidden")
    again = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(tool))
    assert again.status_code == 200
    assert (await client.get("/v1/tools/t", headers=bearer(tool))).status_code == 200
    other = await make_key(store, "others", "tool")
    taken = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(other))
    assert_problem(taken, 403, "forbidden")
    # A task that was submitted without a key belongs to no submitter.
    assert_problem(await client.get("/v1/tasks/a", headers=bearer(submitter)), 403, "forbidden")


async def test_only_one_of_many_keys_registers_a_tool_at_the_same_time(serve: Serve, store: Store) -> None:
    secrets = [await make_key(store, f"key-{number}", "tool") for number in range(6)]
    first, second = await serve(), await serve()
    responses = await asyncio.gather(
        *(
            (first, second)[number % 2].client.post(
                "/v1/tools", json={"id": "t", "skills": number}, headers=bearer(key)
            )
            for number, key in enumerate(secrets)
        )
    )
    assert sorted(response.status_code for response in responses) == [201, 403, 403, 403, 403, 403]
    [winner] = [number for number, response in enumerate(responses) if response.status_code == 201]
    tool = (await first.client.get("/v1/tools/t", headers=bearer(secrets[winner]))).json()
    assert tool["skills"] == winner


async def test_admin_key_of_the_settings_has_full_access_from_the_start(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("the-key-of-the-file-with-the-key\n")
    for settings, key in (
        ({"admin_key": "the-key-of-the-settings"}, "the-key-of-the-settings"),
        ({"admin_key_file": file}, "the-key-of-the-file-with-the-key"),
    ):
        client = (await serve(**settings)).client
        assert_problem(await client.get("/v1/tools"), 401, "unauthenticated")
        assert_problem(await client.get("/v1/tools", headers=bearer(key[:-1])), 401, "unauthenticated")
        assert (await client.get("/metrics", headers=bearer(key))).status_code == 200
        token = (await client.post("/v1/tools", json={"skills": 1}, headers=bearer(key))).json()["token"]
        assert token.startswith("bt_")


@pytest.mark.parametrize("key", ["", "two words", "grün", "line\nline", "\x00"])
def test_error_about_an_invalid_admin_key_does_not_show_it(key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings(admin_key=key).load_admin_key()
    assert "BROKER_ADMIN_KEY" in str(refused.value)
    assert not key or key not in str(refused.value)


def test_admin_key_may_be_set_in_one_place_only(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not both"):
        Settings(admin_key="a", admin_key_file=tmp_path / "b").load_admin_key()
    with pytest.raises(SettingsError, match="BROKER_ADMIN_KEY_FILE"):
        Settings(admin_key_file=tmp_path / "missing").load_admin_key()


async def test_web_pages_of_other_origins_can_use_a_key(serve: Serve) -> None:
    client = (await serve(admin_key="a-key")).client
    for headers in HOSTILE:
        assert (await client.get("/v1/tools", headers=headers | bearer("a-key"))).status_code == 200


def test_service_on_a_public_address_is_never_open() -> None:
    settings = Settings(database_url="postgresql://nobody@127.0.0.1/none")
    for host, is_open in (("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.10", True)):
        assert is_loopback(host) is is_open
        assert create_server(settings, host=host).service.keyring.is_open
    for host in ("0.0.0.0", "::", "192.0.2.7", "laboratory.example", "", "::ffff:192.0.2.7"):
        assert not is_loopback(host)
        assert not create_server(settings, host=host).service.keyring.is_open


async def test_keys_stay_valid_for_half_a_minute_while_the_database_is_unreachable(
    serve: Serve, store: Store
) -> None:
    key = await make_key(store, "mine", "operator")
    broker = await serve()
    client, keyring = broker.client, broker.server.service.keyring
    assert (await keyring.caller(key)).key == "mine"

    async def fails(*_: Any, **__: Any) -> None:
        raise Unavailable

    broker.server.service.store.read = fails  # type: ignore[method-assign]
    keyring._read_at -= 10
    assert (await client.get("/metrics", headers=bearer(key))).status_code == 200
    # An unknown key may have been created since. It gets 503, not 401.
    assert_problem(await client.get("/metrics", headers=bearer(new_key())), 503, "unavailable")
    keyring._read_at -= 30
    assert_problem(await client.get("/metrics", headers=bearer(key)), 503, "unavailable")


async def test_database_has_only_the_hashes_of_keys_and_tokens(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    key = await make_key(store, "mine", "tool")
    broker = await serve()
    response = await broker.client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    token = response.json()["token"]
    stored = await sql.fetchval(
        "select string_agg(k::text, '') || string_agg(t::text, '') from keys k cross join tools t"
    )
    assert hashed(key).hex() in stored
    for secret in (key, key[3:], token, token[-43:]):
        assert secret not in stored


# The command line


async def broker_keys(*arguments: str, **environment: str) -> CommandResult:
    return await run("", "keys", *arguments, **environment)


async def create_key(*arguments: str, **environment: str) -> str:
    done = await broker_keys("create", *arguments, **environment)
    assert done.status == 0, done.err
    [key] = done.out.splitlines()
    return key


async def test_cli_creates_lists_and_revokes_keys_while_a_service_runs(
    data_dir: Path,
) -> None:
    here = {"BROKER_DATA_DIR": str(data_dir)}
    nothing = await broker_keys("list", **here)
    assert nothing.status == 1
    assert f"There is no embedded database in {data_dir} yet" in nothing.err
    # The command has not created one either.
    assert (await broker_keys("list", **here)).status == 1
    with serving(**here) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/v1/tools")).status_code == 200
            both = ("--role", "submitter", "--role", "tool", "--role", "tool", "--name", "both")
            key = await create_key(*both, **here)
            assert (await client.get("/v1/tools", headers=bearer(key))).status_code == 200
            await wait_for_status(client, 401)
            listed = await broker_keys("list", **here)
            assert listed.out.splitlines()[1].split()[:2] == ["both", "submitter,tool"]
            again = await broker_keys("create", "--role", "tool", "--name", "both", **here)
            assert (again.status, again.out) == (1, "")
            assert "--replace" in again.err
            new = await create_key("--role", "tool", "--name", "both", "--replace", **here)
            await wait_for_status(client, 401, key)
            assert (await client.get("/v1/tools", headers=bearer(new))).status_code == 200
            assert (await broker_keys("revoke", "both", **here)).status == 0
            await wait_for_status(client, 401, new)
            twice = await broker_keys("revoke", "both", **here)
            assert twice.status == 1
            assert "broker keys list" in twice.err
        process.terminate()
        assert await wait_for_exit(process, within=20) == 0
        log = process.stderr.read().decode() if process.stderr else ""
        assert "no keys exist" in log
        assert key not in log
        assert key not in listed.out + listed.err
    # The command also works while no service runs.
    named = await broker_keys("list", **here)
    assert [line.split()[0] for line in named.out.splitlines()] == ["NAME", "both", "both"]


async def test_cli_explains_why_it_creates_no_key(database: str) -> None:
    here = {"BROKER_DATABASE_URL": database}
    for arguments, message in (
        ((), "--role"),
        (("--role", "king"), "submitter"),
        (("--role", "tool", "--name", "two words"), "A name must have"),
        (("--role", "tool", "--name", ""), "A name must have"),
        (("--role", "tool", "--name", "@admin"), "A name must have"),
    ):
        done = await broker_keys("create", *arguments, **here)
        assert (done.status, done.out) == (2, "")
        assert message in done.err
    nowhere = await broker_keys("list", BROKER_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert nowhere.status == 1
    assert "does not respond" in nowhere.err
    assert "Traceback" not in nowhere.err


async def test_cli_warns_if_the_first_key_is_not_an_admin(database: str) -> None:
    here = {"BROKER_DATABASE_URL": database}
    warnings = []
    for role in ("tool", "tool", "admin"):
        done = await broker_keys("create", "--role", role, **here)
        assert done.out.startswith("bk_")
        warnings.append("create a key with the role admin directly" in " ".join(done.err.split()))
    assert warnings == [True, False, False]


async def test_service_on_a_public_address_requires_a_key_and_explains_how_to_create_one(
    database: str,
) -> None:
    with serving("--host", "0.0.0.0", BROKER_DATABASE_URL=database) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        log = process.stderr.read().decode() if process.stderr else ""
    assert "keys create --role admin --name me" in log
    assert "BROKER_DATABASE_URL" in log
    assert "0.0.0.0" in log
    assert "Traceback" not in log


async def test_service_warns_of_a_short_admin_key(database: str) -> None:
    logs: dict[str, str] = {}
    for key in ("short", "x" * SHORTEST_ADMIN_KEY):
        with serving(BROKER_DATABASE_URL=database, BROKER_ADMIN_KEY=key) as (process, url):
            await wait_until_ready(url)
            process.terminate()
            assert await wait_for_exit(process, within=20) == 0
            logs[key] = process.stderr.read().decode() if process.stderr else ""
    assert "admin key is short" in logs["short"]
    assert "admin key is short" not in logs["x" * SHORTEST_ADMIN_KEY]


# The Python client


async def test_client_does_a_whole_life_cycle_with_keys(serve: Serve, store: Store) -> None:
    secrets = {role: await make_key(store, role, role) for role in ("tool", "assigner", "submitter")}
    url = (await serve()).url
    tool = Tool("counter", {"can": "count"}, url=url, key=secrets["tool"])

    @tool.handler
    def count(job: Job) -> int:
        job.report(0.5, "half way")
        return len(job.payload)

    assigner = Assigner(url=url, key=secrets["assigner"])
    running = [asyncio.create_task(tool.work()), asyncio.create_task(assigner.assign())]
    async with AsyncBroker(url, key=secrets["submitter"]) as broker:
        handle = await broker.submit({"can": "count"}, "four")
        assert await handle.result(timeout=30) == 4
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("busy", [False, True])
async def test_program_ends_and_stops_its_work_when_another_registers_its_tool(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    key, admin = await make_key(store, "tool", "tool"), bearer(await make_key(store, "admin", "admin"))
    broker = await serve()
    old = Tool("t", {}, url=broker.url, key=key, lease_seconds=5)
    has_begun, stopped = asyncio.Event(), asyncio.Event()

    @old.handler
    async def work(_: AsyncJob) -> None:
        has_begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            stopped.set()

    program = asyncio.create_task(old.work())
    async with asyncio.timeout(30):
        if busy:
            await broker.client.post("/v1/tasks", json={"id": "a", "needs": {}}, headers=admin)
            while (await broker.client.get("/v1/tools/t", headers=admin)).status_code != 200:
                await asyncio.sleep(0.01)
            pair = {"task_id": "a", "tool_id": "t"}
            assert (await broker.client.post("/v1/work", json=pair, headers=admin)).status_code == 201
            await has_begun.wait()
        else:
            while broker.server.service.wait_limits.count < 1:
                await asyncio.sleep(0.01)
        await register_tool(broker.client, key)
        with pytest.raises(ProblemError, match="unauthenticated"):
            await program
    assert stopped.is_set() is busy
    assert "another program has registered with its id" in caplog.text
