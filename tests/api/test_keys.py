"""Create, list, use and revoke keys over HTTP and with `broker keys`."""

import asyncio
import os
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.store import Store, keys
from tests.access.test_keys import register_tool, wait_for_status
from tests.conftest import Running, Serve
from tests.support import cli
from tests.support.api import (
    Json,
    add_assigned_work,
    add_tool,
    assert_problem,
    bearer,
    flatten,
    get,
    get_pages,
    make_key,
    recorded_statements,
)
from tests.support.processes import names_in
from tests.support.waiting import wait_until

ADMIN = "an-admin-key-of-the-settings"


@pytest.fixture
async def broker(serve: Serve) -> Running:
    """Start a broker with an admin key in its settings. Its client sends that key."""
    running = await serve(admin_key=ADMIN)
    running.client.headers.update(bearer(ADMIN))
    return running


@pytest.fixture
def http(broker: Running) -> httpx.AsyncClient:
    """Return the client of the broker."""
    return broker.client


async def create_key(http: httpx.AsyncClient, name: str, *roles: str, **fields: Any) -> Json:
    response = await http.post("/v1/keys", json={"name": name, "roles": roles, **fields})
    assert response.status_code == 201, response.text
    key: Json = response.json()
    return key


async def list_keys(http: httpx.AsyncClient) -> list[Json]:
    items: list[Json] = (await get(http, "/v1/keys"))["items"]
    return items


async def test_a_key_is_shown_once_and_works_at_once(http: httpx.AsyncClient) -> None:
    new = await create_key(http, "lab", "tool", "submitter", "tool")
    assert new.keys() == {"name", "roles", "created_at", "key"}
    assert (new["name"], new["roles"]) == ("lab", ["tool", "submitter"])
    assert (await http.get("/v1/tools", headers=bearer(new["key"]))).status_code == 200
    [item] = await list_keys(http)
    assert item.keys() == {"name", "roles", "created_at", "last_used_at"}
    assert (item["roles"], item["created_at"]) == (new["roles"], new["created_at"])
    assert new["key"] not in (await http.get("/v1/keys")).text


async def test_a_name_in_use_is_refused_unless_its_key_is_replaced(http: httpx.AsyncClient) -> None:
    old = await create_key(http, "lab", "tool")
    token = await register_tool(http, old["key"])
    refused = await http.post("/v1/keys", json={"name": "lab", "roles": ["tool"]})
    assert "replace" in assert_problem(refused, 409, "key_exists")["detail"]
    new = await create_key(http, "lab", "tool", replace=True)
    assert_problem(await http.get("/v1/tools", headers=bearer(old["key"])), 401, "unauthenticated")
    for each in (new["key"], token):
        assert (await http.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    assert [item["created_at"] for item in await list_keys(http)] == [new["created_at"]]
    assert (await create_key(http, "new", "tool", replace=True))["name"] == "new"


async def test_a_revoked_key_is_refused_within_seconds_in_every_process(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    other = await serve(admin_key=ADMIN)
    new = await create_key(http, "lab", "tool")
    token = await register_tool(http, new["key"])
    for client in (http, other.client):
        for each in (new["key"], token):
            assert (await client.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    revoked = await http.delete("/v1/keys/lab")
    assert (revoked.status_code, revoked.content) == (204, b"")
    for each in (new["key"], token):
        assert_problem(await http.get("/v1/tools/t", headers=bearer(each)), 401, "unauthenticated")
        await wait_for_status(other.client, 401, each, "/v1/tools/t")
    assert await list_keys(http) == []
    assert_problem(await http.delete("/v1/keys/lab"), 404, "key_not_found")


@pytest.mark.parametrize("name", ["nobody", "@admin", "two%20words", "x" * 129])
async def test_revoking_an_unknown_key_is_not_found(http: httpx.AsyncClient, name: str) -> None:
    assert_problem(await http.delete(f"/v1/keys/{name}"), 404, "key_not_found")
    assert (await http.get("/v1/keys")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"roles": ["tool"]}, "name"),
        ({"name": "lab"}, "roles"),
        ({"name": "lab", "roles": []}, "roles"),
        ({"name": "lab", "roles": "tool"}, "roles"),
        ({"name": "lab", "roles": None}, "roles"),
        ({"name": "lab", "roles": ["king"]}, "roles"),
        ({"name": "lab", "roles": [1]}, "roles"),
        pytest.param({"name": "lab", "roles": ["tool"] * 101}, "roles", id="101 roles"),
        ({"name": "two words", "roles": ["tool"]}, "name"),
        ({"name": "@admin", "roles": ["tool"]}, "name"),
        ({"name": "", "roles": ["tool"]}, "name"),
        ({"name": "lab", "roles": ["tool"], "replace": None}, "replace"),
        ({"name": "lab", "roles": ["tool"], "key": "mine"}, "key"),
    ],
    ids=str,
)
async def test_an_invalid_new_key_is_refused_with_the_name_of_the_field(
    http: httpx.AsyncClient, body: Json, field: str
) -> None:
    problem = assert_problem(await http.post("/v1/keys", json=body), 400, "validation_failed")
    assert [error["field"].partition("[")[0] for error in problem["errors"]] == [field]
    assert await list_keys(http) == []


async def test_keys_are_listed_by_name_with_paging(http: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await create_key(http, name, "tool")
    pages = await get_pages(http, "/v1/keys", limit=1)
    assert [item["name"] for item in flatten(pages)] == ["a", "b", "c"]
    assert len(pages) == 3
    assert_problem(await http.get("/v1/keys?after=!"), 400, "validation_failed")


@pytest.mark.parametrize("replace", [False, True])
async def test_concurrent_creation_of_a_key_leaves_one_valid_key(
    serve: Serve, http: httpx.AsyncClient, replace: bool
) -> None:
    other = await serve(admin_key=ADMIN)
    other.client.headers.update(bearer(ADMIN))
    body = {"name": "lab", "roles": ["tool"], "replace": replace}
    responses = await asyncio.gather(
        *((http, other.client)[number % 2].post("/v1/keys", json=body) for number in range(16))
    )
    expected = [201] * 16 if replace else [201, *[409] * 15]
    assert sorted(response.status_code for response in responses) == expected
    created = [response.json()["key"] for response in responses if response.status_code == 201]
    good = [(await http.get("/v1/tools", headers=bearer(key))).status_code == 200 for key in created]
    assert sum(good) == 1


async def test_the_last_use_of_a_key_is_recorded_less_often_than_each_request(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    key = (await create_key(http, "used", "tool"))["key"]
    await create_key(http, "unused", "tool")

    async def last_use() -> Any:
        return await sql.fetchval("select last_used_at from keys where name = 'used'")

    assert await last_use() is None
    with recorded_statements(broker) as statements:
        for _ in range(20):
            assert (await http.get("/v1/tools", headers=bearer(key))).status_code == 200
        await wait_until(last_use)
    assert len([each for each in statements if "last_used_at = now()" in each]) <= 2
    by_name = {item["name"]: item["last_used_at"] for item in await list_keys(http)}
    assert by_name["unused"] is None
    assert by_name["used"] is not None


# The first key


async def test_the_first_key_can_be_created_locally_and_ends_open_access(serve: Serve) -> None:
    first, second = await serve(), await serve()
    http = first.client
    assert await list_keys(http) == []
    key = bearer((await create_key(http, "me", "admin"))["key"])
    # Requests now need a key: at once in the process that created it, and soon in the other process.
    for path in ("/v1/keys", "/v1/tools"):
        assert_problem(await http.get(path), 401, "unauthenticated")
    assert_problem(
        await http.post("/v1/keys", json={"name": "x", "roles": ["admin"]}), 401, "unauthenticated"
    )
    await wait_for_status(second.client, 401)
    for client in (http, second.client):
        assert (await client.get("/v1/keys", headers=key)).status_code == 200
    # After its revocation, requests still need a key.
    assert (await http.delete("/v1/keys/me", headers=key)).status_code == 204
    assert_problem(await http.get("/v1/keys"), 401, "unauthenticated")


async def test_a_tool_token_stays_valid_when_the_first_key_is_created(serve: Serve) -> None:
    http = (await serve()).client
    token = bearer((await add_tool(http))["token"])
    pair = await add_assigned_work(http, tool="other")
    await create_key(http, "me", "admin")
    assert (await http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    assert_problem(await http.post(f"/v1/work/{pair.work}/start", headers=token), 403, "forbidden")


async def test_only_admins_may_create_list_and_revoke_keys(http: httpx.AsyncClient, store: Store) -> None:
    for role in ("submitter", "tool", "assigner", "operator"):
        key = bearer(await make_key(store, role, role))
        body = {"name": "mine", "roles": ["admin"]}
        assert_problem(await http.post("/v1/keys", json=body, headers=key), 403, "forbidden")
        assert_problem(await http.get("/v1/keys", headers=key), 403, "forbidden")
        assert_problem(await http.delete("/v1/keys/tool", headers=key), 403, "forbidden")
    assert (
        await http.get("/v1/keys", headers=bearer(await make_key(store, "a", "admin")))
    ).status_code == 200


# The command line


async def broker_keys(url: str, *arguments: str, **environment: str) -> cli.CommandResult:
    return await cli.run(url, "keys", *arguments, **environment)


async def test_broker_keys_creates_lists_and_revokes_keys_of_the_broker_at_a_url(
    serve: Serve, tmp_path: Path
) -> None:
    broker = await serve()
    folder = {"BROKER_DATA_DIR": str(tmp_path / "data")}
    empty = await broker_keys(broker.url, "list", **folder)
    assert (empty.status, empty.out) == (0, "")
    assert f"There are no keys at {broker.url}" in empty.err
    assert await broker_keys(broker.url, "list", "--url", "", **folder) == empty
    first = await broker_keys(broker.url, "create", "--role", "admin", "--name", "me", **folder)
    assert first.status == 0, first.err
    assert f"Created key me (admin) at {broker.url}" in first.err
    admin = first.out.strip()
    assert_problem(await broker.client.get("/v1/keys"), 401, "unauthenticated")
    as_admin = folder | {"BROKER_KEY": admin}
    both = ("--role", "tool", "--role", "submitter", "--role", "tool", "--name", "both")
    key = (await broker_keys(broker.url, "create", *both, **as_admin)).out.strip()
    assert (await broker.client.get("/v1/tools", headers=bearer(key))).status_code == 200
    again = await broker_keys(broker.url, "create", *both, **as_admin)
    assert (again.status, again.out) == (1, "")
    assert "--replace" in again.err
    new = (await broker_keys(broker.url, "create", *both, "--replace", **as_admin)).out.strip()
    assert_problem(await broker.client.get("/v1/tools", headers=bearer(key)), 401, "unauthenticated")
    assert (await broker.client.get("/v1/tools", headers=bearer(new))).status_code == 200
    listed = await broker_keys(broker.url, "list", **as_admin)
    assert [line.split()[:2] for line in listed.out.splitlines()] == [
        ["NAME", "ROLES"],
        ["both", "tool,submitter"],
        ["me", "admin"],
    ]
    assert (await broker_keys("", "revoke", "both", "--url", broker.url, **as_admin)).status == 0
    assert_problem(await broker.client.get("/v1/tools", headers=bearer(new)), 401, "unauthenticated")
    for name in ("both", "a/b", ".."):
        unknown = await broker_keys(broker.url, "revoke", name, **as_admin)
        assert unknown.status == 1
        assert f"No key has the name {name!r}, or it is already revoked." in unknown.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [("create", "--role", "tool"), ("list",), ("revoke", "me")], ids=str)
async def test_broker_keys_without_an_admin_key_names_the_required_role(
    serve: Serve, store: Store, arguments: tuple[str, ...]
) -> None:
    operator = await make_key(store, "lab", "operator")
    broker = await serve()
    for key in ("", "bk_unknown", operator):
        refused = await broker_keys(broker.url, *arguments, BROKER_KEY=key)
        assert (refused.status, refused.out) == (1, "")
        assert "BROKER_KEY to a key with the role admin" in refused.err
    assert [key.name for key in await store.read(keys.read_all)] == ["lab"]


@pytest.mark.parametrize("arguments", [("create", "--role", "tool"), ("list",), ("revoke", "me")], ids=str)
def test_broker_keys_without_a_broker_and_a_database_prints_one_line_of_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("broker.cli.keys._PATIENCE_SECONDS", 0.1)
    unset = dict.fromkeys(name for name in os.environ if name.startswith("BROKER_"))
    environment = unset | {"BROKER_DATA_DIR": str(tmp_path / "data")}
    refused = CliRunner().invoke(main, ["keys", *arguments], env=environment)
    assert (refused.exit_code, refused.stdout) == (1, "")
    [line] = refused.stderr.splitlines()
    for name in (str(tmp_path), "BROKER_URL", "BROKER_DATA_DIR", "BROKER_DATABASE_URL"):
        assert name in line
    unreachable = CliRunner().invoke(
        main, ["keys", *arguments], env=environment | {"BROKER_URL": "http://127.0.0.1:1"}
    )
    assert (unreachable.exit_code, unreachable.stdout) == (1, "")
    assert "No broker responds at http://127.0.0.1:1" in unreachable.stderr
    assert names_in(tmp_path) == []
