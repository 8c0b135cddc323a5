"""Keys over time: made, revoked, replaced, with brokers that run meanwhile; and what is open without one."""

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


async def until_answered(
    client: httpx.AsyncClient, status: int, key: str = "", path: str = "/v1/tools"
) -> None:
    """Return when a call with this key is answered so; within seconds, as is promised."""
    async with asyncio.timeout(8):
        while (await client.get(path, headers=bearer(key) if key else {})).status_code != status:
            await asyncio.sleep(0.1)


async def registered(client: httpx.AsyncClient, key: str) -> str:
    """The token of a tool that is registered with this key."""
    answer = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    token: str = answer.json()["token"]
    return token


async def test_a_revoked_key_is_good_for_nothing_within_seconds_in_every_process(
    serve: Serve, store: Store
) -> None:
    key = await make_key(store, "mine", "operator")
    first, second = await serve(), await serve()
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools", headers=bearer(key))).status_code == 200
    assert await store.run(keys.revoke, "mine")
    for broker in (first, second):
        await until_answered(broker.client, 401, key)
    # That there was one keeps everybody out who has none.
    assert_problem(await first.client.get("/v1/tools"), 401, "unauthenticated")


async def test_a_key_that_was_made_just_now_is_good_at_once(serve: Serve, store: Store) -> None:
    old = await make_key(store, "old", "operator")
    broker = await serve()
    for number in range(5):
        assert (await broker.client.get("/v1/tools", headers=bearer(old))).status_code == 200
        key = await make_key(store, f"new-{number}", "operator")
        assert (await broker.client.get("/v1/tools", headers=bearer(key))).status_code == 200


async def test_the_first_key_closes_a_service_that_runs(serve: Serve, store: Store) -> None:
    broker = await serve()
    assert (await broker.client.get("/v1/tools")).status_code == 200
    # A key is no hindrance while none is needed.
    assert (await broker.client.get("/v1/tools", headers=bearer("any"))).status_code == 200
    await make_key(store, "first", "admin")
    await until_answered(broker.client, 401)


async def test_a_request_costs_no_look_at_the_keys_of_its_own(serve: Serve, store: Store) -> None:
    key = await make_key(store, "tools", "tool")
    broker = await serve()
    token = (
        await broker.client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    ).json()["token"]
    with recorded_statements(broker) as seen:
        for each in (key, token):
            for _ in range(50):
                answer = await broker.client.post("/v1/tools/t/heartbeat", headers=bearer(each))
                assert answer.status_code == 200, answer.text
    looks = [each for each in seen if "from keys" in each or "registered_by, token_hash" in each]
    # One of the keys and one of the tool, and each once more should this take longer than two seconds.
    assert len(looks) <= 4 < 50 < len(seen)


async def test_who_waits_with_a_key_that_is_revoked_is_told_nothing(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    key, admin = await make_key(store, "mine", "submitter"), await make_key(store, "admin", "admin")
    broker = await serve()
    client = broker.client
    await client.post("/v1/tasks", json={"id": "a", "needs": 1}, headers=bearer(key))
    parked = await start_long_poll(broker, "GET", "/v1/tasks/a?wait=60", headers=bearer(key))
    assert await store.run(keys.revoke, "mine")
    await until_answered(client, 401, key, "/v1/tasks/a")
    assert not parked.done()
    assert (await client.delete("/v1/tasks/a", headers=bearer(admin))).status_code == 204
    assert_problem(await parked, 401, "unauthenticated")


async def test_registering_anew_voids_the_token_at_once_and_soon_in_other_processes(
    serve: Serve, store: Store
) -> None:
    key = await make_key(store, "tools", "tool")
    first, second = await serve(), await serve()

    old = await registered(first.client, key)
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools/t", headers=bearer(old))).status_code == 200
    parked = await start_long_poll(first, "GET", "/v1/tools/t/work?wait=60", headers=bearer(old))
    new = await registered(first.client, key)
    assert_problem(await first.client.get("/v1/tools/t", headers=bearer(old)), 401, "unauthenticated")
    for broker in (first, second):
        assert (await broker.client.get("/v1/tools/t", headers=bearer(new))).status_code == 200
    await until_answered(second.client, 401, old, "/v1/tools/t")
    assert (await first.client.delete("/v1/tools/t", headers=bearer(key))).status_code == 204
    assert_problem(await parked, 401, "unauthenticated")
    assert_problem(await first.client.get("/v1/tools/t", headers=bearer(new)), 401, "unauthenticated")


async def test_a_token_is_good_while_the_key_that_registered_its_tool_is(serve: Serve, store: Store) -> None:
    key = await make_key(store, "tools", "tool")
    client = (await serve()).client
    token = await registered(client, key)
    # Replaced, it goes on without a gap: what is the key's is its name's.
    new = await make_key(store, "tools", "tool", replace=True)
    await until_answered(client, 401, key)
    for each in (new, token):
        assert (await client.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    assert await store.run(keys.revoke, "tools")
    await until_answered(client, 401, new)
    assert_problem(await client.get("/v1/tools/t", headers=bearer(token)), 401, "unauthenticated")


async def test_what_was_registered_while_there_were_no_keys_is_taken_over(serve: Serve, store: Store) -> None:
    broker = await serve()
    client = broker.client
    token = (await add_tool(client))["token"]
    await client.post("/v1/tasks", json={"id": "a", "needs": 1})
    tool, submitter = await make_key(store, "tools", "tool"), await make_key(store, "mine", "submitter")
    await until_answered(client, 401)
    # It goes on with its token, and its next program with a key; another key's it is not any more then.
    assert (await client.get("/v1/tools/t", headers=bearer(token))).status_code == 200
    assert_problem(await client.get("/v1/tools/t", headers=bearer(tool)), 403, "forbidden")
    again = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(tool))
    assert again.status_code == 200
    assert (await client.get("/v1/tools/t", headers=bearer(tool))).status_code == 200
    other = await make_key(store, "others", "tool")
    taken = await client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(other))
    assert_problem(taken, 403, "forbidden")
    # Nobody's task is not somebody's.
    assert_problem(await client.get("/v1/tasks/a", headers=bearer(submitter)), 403, "forbidden")


async def test_of_many_keys_that_register_one_tool_at_once_one_has_it(serve: Serve, store: Store) -> None:
    made = [await make_key(store, f"key-{number}", "tool") for number in range(6)]
    first, second = await serve(), await serve()
    answers = await asyncio.gather(
        *(
            (first, second)[number % 2].client.post(
                "/v1/tools", json={"id": "t", "skills": number}, headers=bearer(key)
            )
            for number, key in enumerate(made)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403, 403, 403]
    [winner] = [number for number, answer in enumerate(answers) if answer.status_code == 201]
    kept = (await first.client.get("/v1/tools/t", headers=bearer(made[winner]))).json()
    assert kept["skills"] == winner


async def test_the_admin_key_of_the_settings_may_do_everything_from_the_start(
    serve: Serve, tmp_path: Path
) -> None:
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
def test_an_admin_key_that_cannot_be_sent_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings(admin_key=key).load_admin_key()
    assert "BROKER_ADMIN_KEY" in str(refused.value)
    assert not key or key not in str(refused.value)


def test_an_admin_key_comes_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not both"):
        Settings(admin_key="a", admin_key_file=tmp_path / "b").load_admin_key()
    with pytest.raises(SettingsError, match="BROKER_ADMIN_KEY_FILE"):
        Settings(admin_key_file=tmp_path / "missing").load_admin_key()


async def test_pages_from_elsewhere_may_ask_with_a_key(serve: Serve) -> None:
    client = (await serve(admin_key="a-key")).client
    for headers in HOSTILE:
        assert (await client.get("/v1/tools", headers=headers | bearer("a-key"))).status_code == 200


def test_at_an_address_that_others_reach_nothing_is_open() -> None:
    settings = Settings(database_url="postgresql://nobody@127.0.0.1/none")
    for host, is_open in (("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.10", True)):
        assert is_loopback(host) is is_open
        assert create_server(settings, host=host).service.keyring.is_open
    for host in ("0.0.0.0", "::", "192.0.2.7", "laboratory.example", "", "::ffff:192.0.2.7"):
        assert not is_loopback(host)
        assert not create_server(settings, host=host).service.keyring.is_open


async def test_while_the_database_is_away_the_keys_stay_known_for_half_a_minute(
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
    # One that may be new is not told that it is wrong.
    assert_problem(await client.get("/metrics", headers=bearer(new_key())), 503, "unavailable")
    keyring._read_at -= 30
    assert_problem(await client.get("/metrics", headers=bearer(key)), 503, "unavailable")


async def test_a_key_is_nowhere_but_with_who_has_it(
    serve: Serve, store: Store, sql: asyncpg.Connection
) -> None:
    key = await make_key(store, "mine", "tool")
    broker = await serve()
    answer = await broker.client.post("/v1/tools", json={"id": "t", "skills": 1}, headers=bearer(key))
    token = answer.json()["token"]
    kept = await sql.fetchval(
        "select string_agg(k::text, '') || string_agg(t::text, '') from keys k cross join tools t"
    )
    assert hashed(key).hex() in kept
    for secret in (key, key[3:], token, token[-43:]):
        assert secret not in kept


# The command line


async def broker_keys(*arguments: str, **environment: str) -> CommandResult:
    return await run("", "keys", *arguments, **environment)


async def made(*arguments: str, **environment: str) -> str:
    done = await broker_keys("create", *arguments, **environment)
    assert done.status == 0, done.err
    [key] = done.out.splitlines()
    return key


async def test_keys_are_made_listed_and_revoked_while_a_service_runs_on_the_embedded_database(
    data_dir: Path,
) -> None:
    here = {"BROKER_DATA_DIR": str(data_dir)}
    nothing = await broker_keys("list", **here)
    assert nothing.status == 1
    assert f"There is no embedded database in {data_dir} yet" in nothing.err
    # Nor was one made: then it would be there for the second time.
    assert (await broker_keys("list", **here)).status == 1
    with serving(**here) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            assert (await client.get("/v1/tools")).status_code == 200
            both = ("--role", "submitter", "--role", "tool", "--role", "tool", "--name", "both")
            key = await made(*both, **here)
            assert (await client.get("/v1/tools", headers=bearer(key))).status_code == 200
            await until_answered(client, 401)
            listed = await broker_keys("list", **here)
            assert listed.out.splitlines()[1].split()[:2] == ["both", "submitter,tool"]
            again = await broker_keys("create", "--role", "tool", "--name", "both", **here)
            assert (again.status, again.out) == (1, "")
            assert "--replace" in again.err
            new = await made("--role", "tool", "--name", "both", "--replace", **here)
            await until_answered(client, 401, key)
            assert (await client.get("/v1/tools", headers=bearer(new))).status_code == 200
            assert (await broker_keys("revoke", "both", **here)).status == 0
            await until_answered(client, 401, new)
            twice = await broker_keys("revoke", "both", **here)
            assert twice.status == 1
            assert "broker keys list" in twice.err
        process.terminate()
        assert await wait_for_exit(process, within=20) == 0
        said = process.stderr.read().decode() if process.stderr else ""
        assert "no keys exist" in said
        assert key not in said
        assert key not in listed.out + listed.err
    # And while none runs.
    named = await broker_keys("list", **here)
    assert [line.split()[0] for line in named.out.splitlines()] == ["NAME", "both", "both"]


async def test_what_makes_no_key_is_said(database: str) -> None:
    here = {"BROKER_DATABASE_URL": database}
    for arguments, told in (
        ((), "--role"),
        (("--role", "king"), "submitter"),
        (("--role", "tool", "--name", "two words"), "A name has"),
        (("--role", "tool", "--name", ""), "A name has"),
        (("--role", "tool", "--name", "@admin"), "A name has"),
    ):
        done = await broker_keys("create", *arguments, **here)
        assert (done.status, done.out) == (2, "")
        assert told in done.err
    nowhere = await broker_keys("list", BROKER_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert nowhere.status == 1
    assert "does not answer" in nowhere.err
    assert "Traceback" not in nowhere.err


async def test_a_first_key_that_can_make_no_other_is_warned_of(database: str) -> None:
    here = {"BROKER_DATABASE_URL": database}
    warned = []
    for role in ("tool", "tool", "admin"):
        done = await broker_keys("create", "--role", role, **here)
        assert done.out.startswith("bk_")
        warned.append("make a second one, with the role admin" in " ".join(done.err.split()))
    assert warned == [True, False, False]


async def test_a_service_for_others_needs_a_key_and_says_how_to_make_one(database: str) -> None:
    with serving("--host", "0.0.0.0", BROKER_DATABASE_URL=database) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        said = process.stderr.read().decode() if process.stderr else ""
    assert "keys create --role admin --name me" in said
    assert "BROKER_DATABASE_URL" in said
    assert "0.0.0.0" in said
    assert "Traceback" not in said


async def test_a_short_admin_key_is_warned_of(database: str) -> None:
    said: dict[str, str] = {}
    for key in ("short", "x" * SHORTEST_ADMIN_KEY):
        with serving(BROKER_DATABASE_URL=database, BROKER_ADMIN_KEY=key) as (process, url):
            await wait_until_ready(url)
            process.terminate()
            assert await wait_for_exit(process, within=20) == 0
            said[key] = process.stderr.read().decode() if process.stderr else ""
    assert "the admin key is short" in said["short"]
    assert "the admin key is short" not in said["x" * SHORTEST_ADMIN_KEY]


# The Python client


async def test_with_keys_the_client_does_a_whole_life_cycle(serve: Serve, store: Store) -> None:
    made = {role: await make_key(store, role, role) for role in ("tool", "assigner", "submitter")}
    url = (await serve()).url
    tool = Tool("counter", {"can": "count"}, url=url, key=made["tool"])

    @tool.handler
    def count(job: Job) -> int:
        job.report(0.5, "half way")
        return len(job.payload)

    assigner = Assigner(url=url, key=made["assigner"])
    running = [asyncio.create_task(tool.work()), asyncio.create_task(assigner.assign())]
    async with AsyncBroker(url, key=made["submitter"]) as broker:
        handle = await broker.submit({"can": "count"}, "four")
        assert await handle.result(timeout=30) == 4
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("busy", [False, True])
async def test_a_program_whose_place_another_took_ends_and_lets_go_of_its_work(
    serve: Serve, store: Store, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    key, admin = await make_key(store, "tool", "tool"), bearer(await make_key(store, "admin", "admin"))
    broker = await serve()
    old = Tool("t", {}, url=broker.url, key=key, lease_seconds=5)
    begun, stopped = asyncio.Event(), asyncio.Event()

    @old.handler
    async def work(_: AsyncJob) -> None:
        begun.set()
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
            await begun.wait()
        else:
            while broker.server.service.wait_limits.count < 1:
                await asyncio.sleep(0.01)
        await registered(broker.client, key)
        with pytest.raises(ProblemError, match="unauthenticated"):
            await program
    assert stopped.is_set() is busy
    assert "another program has registered with its id" in caplog.text
