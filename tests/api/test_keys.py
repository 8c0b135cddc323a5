"""Keys over HTTP: made, listed, used and revoked."""

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
from tests.access.test_keys import registered, until_answered
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
    """A broker whose admin key is in its settings, and a client that sends it."""
    running = await serve(admin_key=ADMIN)
    running.client.headers.update(bearer(ADMIN))
    return running


@pytest.fixture
def http(broker: Running) -> httpx.AsyncClient:
    """The client."""
    return broker.client


async def made(http: httpx.AsyncClient, name: str, *roles: str, **fields: Any) -> Json:
    response = await http.post("/v1/keys", json={"name": name, "roles": roles, **fields})
    assert response.status_code == 201, response.text
    found: Json = response.json()
    return found


async def listed(http: httpx.AsyncClient) -> list[Json]:
    items: list[Json] = (await get(http, "/v1/keys"))["items"]
    return items


async def test_a_key_is_shown_once_and_works_at_once(http: httpx.AsyncClient) -> None:
    new = await made(http, "lab", "tool", "submitter", "tool")
    assert new.keys() == {"name", "roles", "created_at", "key"}
    assert (new["name"], new["roles"]) == ("lab", ["tool", "submitter"])
    assert (await http.get("/v1/tools", headers=bearer(new["key"]))).status_code == 200
    [item] = await listed(http)
    assert item.keys() == {"name", "roles", "created_at", "last_used_at"}
    assert (item["roles"], item["created_at"]) == (new["roles"], new["created_at"])
    assert new["key"] not in (await http.get("/v1/keys")).text


async def test_a_name_in_use_is_refused_unless_its_key_is_replaced(http: httpx.AsyncClient) -> None:
    old = await made(http, "lab", "tool")
    token = await registered(http, old["key"])
    refused = await http.post("/v1/keys", json={"name": "lab", "roles": ["tool"]})
    assert "replace" in assert_problem(refused, 409, "key_exists")["detail"]
    new = await made(http, "lab", "tool", replace=True)
    assert_problem(await http.get("/v1/tools", headers=bearer(old["key"])), 401, "unauthenticated")
    for each in (new["key"], token):
        assert (await http.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    assert [item["created_at"] for item in await listed(http)] == [new["created_at"]]
    assert (await made(http, "new", "tool", replace=True))["name"] == "new"


async def test_a_revoked_key_is_refused_within_seconds_in_every_process(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    other = await serve(admin_key=ADMIN)
    new = await made(http, "lab", "tool")
    token = await registered(http, new["key"])
    for client in (http, other.client):
        for each in (new["key"], token):
            assert (await client.get("/v1/tools/t", headers=bearer(each))).status_code == 200
    revoked = await http.delete("/v1/keys/lab")
    assert (revoked.status_code, revoked.content) == (204, b"")
    for each in (new["key"], token):
        assert_problem(await http.get("/v1/tools/t", headers=bearer(each)), 401, "unauthenticated")
        await until_answered(other.client, 401, each, "/v1/tools/t")
    assert await listed(http) == []
    assert_problem(await http.delete("/v1/keys/lab"), 404, "key_not_found")


@pytest.mark.parametrize("name", ["nobody", "@admin", "two%20words", "x" * 129])
async def test_there_is_no_key_of_an_unknown_name(http: httpx.AsyncClient, name: str) -> None:
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
        pytest.param({"name": "lab", "roles": ["tool"] * 101}, "roles", id="more roles than there are"),
        ({"name": "two words", "roles": ["tool"]}, "name"),
        ({"name": "@admin", "roles": ["tool"]}, "name"),
        ({"name": "", "roles": ["tool"]}, "name"),
        ({"name": "lab", "roles": ["tool"], "replace": None}, "replace"),
        ({"name": "lab", "roles": ["tool"], "key": "mine"}, "key"),
    ],
    ids=str,
)
async def test_what_is_no_key_is_refused_by_its_field(
    http: httpx.AsyncClient, body: Json, field: str
) -> None:
    problem = assert_problem(await http.post("/v1/keys", json=body), 400, "validation_failed")
    assert [error["field"].partition("[")[0] for error in problem["errors"]] == [field]
    assert await listed(http) == []


async def test_keys_are_listed_page_by_page_in_the_order_of_their_names(http: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await made(http, name, "tool")
    found = await get_pages(http, "/v1/keys", limit=1)
    assert [item["name"] for item in flatten(found)] == ["a", "b", "c"]
    assert len(found) == 3
    assert_problem(await http.get("/v1/keys?after=!"), 400, "validation_failed")


@pytest.mark.parametrize("replace", [False, True])
async def test_of_many_that_make_a_key_of_one_name_at_once_one_is_in_use(
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
    given = [response.json()["key"] for response in responses if response.status_code == 201]
    good = [(await http.get("/v1/tools", headers=bearer(key))).status_code == 200 for key in given]
    assert sum(good) == 1


async def test_the_last_use_of_a_key_is_recorded_and_not_for_each_request(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    key = (await made(http, "used", "tool"))["key"]
    await made(http, "unused", "tool")

    async def last_use() -> Any:
        return await sql.fetchval("select last_used_at from keys where name = 'used'")

    assert await last_use() is None
    with recorded_statements(broker) as seen:
        for _ in range(20):
            assert (await http.get("/v1/tools", headers=bearer(key))).status_code == 200
        await wait_until(last_use)
    assert len([each for each in seen if "last_used_at = now()" in each]) <= 2
    by_name = {item["name"]: item["last_used_at"] for item in await listed(http)}
    assert by_name["unused"] is None
    assert by_name["used"] is not None


# The first key


async def test_the_first_key_can_be_made_from_this_machine_and_closes_the_door(serve: Serve) -> None:
    first, second = await serve(), await serve()
    http = first.client
    assert await listed(http) == []
    key = bearer((await made(http, "me", "admin"))["key"])
    # At once where it was made, soon elsewhere.
    for path in ("/v1/keys", "/v1/tools"):
        assert_problem(await http.get(path), 401, "unauthenticated")
    assert_problem(
        await http.post("/v1/keys", json={"name": "x", "roles": ["admin"]}), 401, "unauthenticated"
    )
    await until_answered(second.client, 401)
    for client in (http, second.client):
        assert (await client.get("/v1/keys", headers=key)).status_code == 200
    # Revoked, it leaves the door closed.
    assert (await http.delete("/v1/keys/me", headers=key)).status_code == 204
    assert_problem(await http.get("/v1/keys"), 401, "unauthenticated")


async def test_a_tool_goes_on_with_its_token_when_the_first_key_is_made(serve: Serve) -> None:
    http = (await serve()).client
    token = bearer((await add_tool(http))["token"])
    pair = await add_assigned_work(http, tool="other")
    await made(http, "me", "admin")
    assert (await http.post("/v1/tools/t/heartbeat", headers=token)).status_code == 200
    assert_problem(await http.post(f"/v1/work/{pair.work}/start", headers=token), 403, "forbidden")


async def test_only_admins_may_make_see_and_revoke_keys(http: httpx.AsyncClient, store: Store) -> None:
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


async def test_keys_are_made_listed_and_revoked_by_the_broker_that_a_url_names(
    serve: Serve, tmp_path: Path
) -> None:
    broker = await serve()
    folder = {"BROKER_DATA_DIR": str(tmp_path / "data")}
    nothing = await broker_keys(broker.url, "list", **folder)
    assert (nothing.status, nothing.out) == (0, "")
    assert f"There are no keys at {broker.url}" in nothing.err
    assert await broker_keys(broker.url, "list", "--url", "", **folder) == nothing
    first = await broker_keys(broker.url, "create", "--role", "admin", "--name", "me", **folder)
    assert first.status == 0, first.err
    assert f"Key me (admin) is made at {broker.url}" in first.err
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
        assert f"There is no key {name!r} in use; `broker keys list`" in unknown.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [("create", "--role", "tool"), ("list",), ("revoke", "me")], ids=str)
async def test_a_key_that_may_make_no_keys_is_refused_and_told_which_may(
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
def test_without_a_broker_and_a_database_no_key_is_made_and_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("broker.cli.keys._PATIENCE_SECONDS", 0.1)
    nowhere = dict.fromkeys(name for name in os.environ if name.startswith("BROKER_"))
    here = nowhere | {"BROKER_DATA_DIR": str(tmp_path / "data")}
    refused = CliRunner().invoke(main, ["keys", *arguments], env=here)
    assert (refused.exit_code, refused.stdout) == (1, "")
    [line] = refused.stderr.splitlines()
    for what in (str(tmp_path), "BROKER_URL", "BROKER_DATA_DIR", "BROKER_DATABASE_URL"):
        assert what in line
    nobody = CliRunner().invoke(main, ["keys", *arguments], env=here | {"BROKER_URL": "http://127.0.0.1:1"})
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert "No broker answers at http://127.0.0.1:1" in nobody.stderr
    assert names_in(tmp_path) == []
