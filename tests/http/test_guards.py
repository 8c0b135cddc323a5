"""Who may do what: every call by everyone, about their own things and about others'."""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, get_args
from uuid import UUID

import asyncpg
import httpx
import pytest
import pytest_asyncio
from litestar.routes import HTTPRoute

from broker.access.keyring import new_key
from broker.http.guards import Allow, anyone
from broker.schemas.keys import ROLES, Role
from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support.api import Json, assert_problem, bearer, make_key
from tests.support.shared import delete_rows, shared_database, shared_sql
from tests.support.steps import open_store
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
database = shared_database
sql = shared_sql

ADMIN_KEY = "an-admin-key-of-the-settings"

# The contract, call by call: who may make it. `own`: about their own things only.
TABLE = """
POST   /v1/tools                        tool:own
GET    /v1/tools                        tool:list assigner operator
GET    /v1/tools/{tool}                 tool:own token:own assigner operator
PATCH  /v1/tools/{tool}                 tool:own token:own operator
DELETE /v1/tools/{tool}?force=true      tool:own token:own operator
POST   /v1/tools/{tool}/heartbeat       tool:own token:own
GET    /v1/tools/{tool}/work            tool:own token:own assigner operator
POST   /v1/tasks                        submitter:own
POST   /v1/tasks/batch                  submitter:own
GET    /v1/tasks                        submitter:list assigner operator
GET    /v1/tasks/{task}                 submitter:own assigner operator
GET    /v1/tasks/{task}/explain         submitter:own assigner operator
DELETE /v1/tasks/{task}                 submitter:own operator
POST   /v1/tasks/{task}/retry           submitter:own operator
PUT    /v1/tasks/{task}/remark          assigner
POST   /v1/tasks/remarks                assigner
GET    /v1/candidates                   assigner operator
POST   /v1/work                         assigner
POST   /v1/work/batch                   assigner
GET    /v1/work                         tool:list token:list assigner operator
GET    /v1/work/{work}                  tool:own token:own assigner operator
POST   /v1/work/{work}/start            tool:own token:own
POST   /v1/work/{work}/reports          tool:own token:own
GET    /v1/work/{work}/reports          tool:own token:own assigner operator
POST   /v1/work/{work}/complete         tool:own token:own
POST   /v1/work/complete                tool:list token:list
POST   /v1/work/{work}/cancel           operator
GET    /v1/archive                      submitter:list operator
GET    /v1/archive/{record}             submitter:own operator
DELETE /v1/archive/{record}
GET    /v1/archive/export               submitter:list operator
POST   /v1/archive/{record}/accept      operator
GET    /v1/overview/tools               operator
GET    /v1/overview/queue               operator
GET    /v1/overview/waiting             operator
GET    /v1/overview/timeline            operator
GET    /v1/overview/history             operator
GET    /v1/overview/failures            operator
GET    /v1/events                       operator
GET    /v1/stats                        operator
GET    /metrics                         operator
POST   /v1/keys
GET    /v1/keys
DELETE /v1/keys/{key}
"""
CALLS = [(line.split()[0], line.split()[1], line.split()[2:]) for line in TABLE.strip().splitlines()]
OPEN = ["/health/live", "/health/ready", "/docs", "/openapi.json", "/"]
FOLDERS = ["/docs/assets/{}", "/dashboard/{}"]
OPEN_FILES = ["/docs/assets/start.js", "/dashboard/main.js"]
CALLERS = ("submitter", "tool", "token", "assigner", "operator", "admin")
# A task may be called like one of our paths.
ODD = [(method, f"/v1/tasks/{name}") for method in ("GET", "DELETE") for name in ("batch", "remarks")]

BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/tools"): lambda world: {"id": world.tool, "skills": {}, "resume": True},
    ("PATCH", "/v1/tools/{tool}"): lambda _: {"draining": True},
    ("POST", "/v1/tasks"): lambda world: {"id": world.task, "needs": {}},
    ("POST", "/v1/tasks/batch"): lambda world: {"items": [{"needs": 1}, {"id": world.task, "needs": {}}]},
    ("PUT", "/v1/tasks/{task}/remark"): lambda _: {"text": "no tool"},
    ("POST", "/v1/tasks/remarks"): lambda world: {"items": [{"task_id": world.task, "text": "no tool"}]},
    ("POST", "/v1/work"): lambda world: {"task_id": world.task, "tool_id": world.tool},
    ("POST", "/v1/work/batch"): lambda world: {"items": [{"task_id": world.task, "tool_id": world.tool}]},
    ("POST", "/v1/work/{work}/complete"): lambda _: {"outcome": "succeeded"},
    ("POST", "/v1/keys"): lambda world: {"name": world.key, "roles": ["submitter"], "replace": True},
    ("POST", "/v1/work/complete"): lambda world: {"items": [{"work_id": world.work, "outcome": "failed"}]},
}


class World(NamedTuple):
    """A task, a tool and their work, and what is left of another task, all of one submitter and one tool."""

    task: str
    tool: str
    work: str
    record: str
    token: str
    key: str


Make = Callable[[str], Awaitable[World]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secrets(database: str) -> dict[str, str]:
    """A key for each role, and another one of each kind."""
    async with open_store(database) as store:
        made = {role: await make_key(store, role, role) for role in ROLES}
        made["another submitter"] = await make_key(store, "another-submitter", "submitter")
        made["another tool"] = await make_key(store, "another-tool", "tool")
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(database: str, secrets: dict[str, str]) -> AsyncIterator[Running]:
    """A broker that has keys."""
    settings = Settings(database_url=database, fallback_seconds=60, admin_key=ADMIN_KEY)
    async with running_broker(settings) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def http(broker: Running, sql: asyncpg.Connection, kept: dict[str, World]) -> httpx.AsyncClient:
    """A client without a key, of a broker that holds nothing but keys."""
    await delete_rows(sql)
    kept.clear()
    return broker.client


@pytest.fixture(scope="module")
def kept() -> dict[str, World]:
    """The worlds that the broker holds, if nothing has changed them since they were made."""
    return {}


@pytest_asyncio.fixture(loop_scope="module")
async def worlds(
    broker: Running, sql: asyncpg.Connection, secrets: dict[str, str], kept: dict[str, World]
) -> dict[str, World]:
    """`theirs` and `others`, as they were made. A test that changes one empties the dictionary."""
    if not kept:
        await delete_rows(sql)
        make = maker(broker.client, secrets)
        kept |= {whose: await make(whose) for whose in ("theirs", "others")}
    return kept


@pytest_asyncio.fixture(loop_scope="module")
async def make(http: httpx.AsyncClient, secrets: dict[str, str]) -> Make:
    """Makes a world, `theirs` or one that belongs to other keys."""
    return maker(http, secrets)


def maker(http: httpx.AsyncClient, secrets: dict[str, str]) -> Make:
    async def a_world(whose: str) -> World:
        submitter, tool = (
            ("submitter", "tool") if whose == "theirs" else ("another submitter", "another tool")
        )

        async def post(key: str, path: str, **body: Any) -> Json:
            answer = await http.post(path, json=body, headers=bearer(secrets[key]))
            assert answer.status_code in (200, 201), answer.text
            found: Json = answer.json()
            return found

        entered = await post(tool, "/v1/tools", id=f"tool-{whose}", skills={}, capacity=10)
        works = {}
        for name in ("ended", "task"):
            task = await post(submitter, "/v1/tasks", id=f"{name}-{whose}", needs={})
            pair = {"task_id": task["id"], "tool_id": entered["id"]}
            works[name] = (await post("assigner", "/v1/work", **pair))["id"]
        await post(tool, f"/v1/work/{works['ended']}/complete", outcome="succeeded")
        key = await post("admin", "/v1/keys", name=f"key-{whose}", roles=["submitter"], replace=True)
        return World(
            f"task-{whose}", entered["id"], works["task"], works["ended"], entered["token"], key["name"]
        )

    return a_world


async def call(
    http: httpx.AsyncClient, method: str, path: str, world: World, headers: dict[str, str]
) -> httpx.Response:
    body = BODIES.get((method, path), lambda _: None)(world)
    request = {"url": path.format(**world._asdict()), "json": body, "headers": headers}
    if path != "/v1/events":
        return await http.request(method, **request)
    async with http.stream(method, **request) as answer:
        if answer.is_error:  # else it would go on without end
            await answer.aread()
    return answer


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("method", "path", "who"), CALLS, ids=[f"{method} {path}" for method, path, _ in CALLS]
)
async def test_every_cell_of_the_table(
    broker: Running,
    secrets: dict[str, str],
    worlds: dict[str, World],
    method: str,
    path: str,
    who: list[str],
    caller: str,
) -> None:
    http, theirs, others = broker.client, worlds["theirs"], worlds["others"]
    key = bearer(theirs.token if caller == "token" else secrets[caller])
    reach = dict(cell.partition(":")[::2] for cell in [*who, "admin"]).get(caller)
    if reach is not None and method != "GET":
        worlds.clear()
    about_others = await call(http, method, path, others, key)
    if reach in (None, "own"):
        assert_problem(about_others, 403, "forbidden")
    else:
        assert about_others.status_code < 300 or about_others.json()["code"] == "nothing_to_accept"
    about_theirs = await call(http, method, path, theirs, key)
    if reach is None:
        assert_problem(about_theirs, 403, "forbidden")
    else:
        assert about_theirs.status_code < 300 or about_theirs.json()["code"] == "nothing_to_accept"


@pytest.mark.parametrize(
    ("method", "path", "who"), CALLS, ids=[f"{method} {path}" for method, path, _ in CALLS]
)
async def test_without_a_key_or_with_a_wrong_one_nobody_gets_in(
    broker: Running,
    secrets: dict[str, str],
    worlds: dict[str, World],
    method: str,
    path: str,
    who: list[str],
) -> None:
    http, theirs = broker.client, worlds["theirs"]
    key = secrets["admin"]
    for headers in (
        {},
        {"Authorization": "Bearer"},
        bearer(new_key()),
        bearer(key[:-1]),
        bearer(theirs.token[:-1] + ("A" if theirs.token[-1] != "A" else "B")),
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
    ):
        refused = await call(http, method, path, theirs, headers)
        assert_problem(refused, 401, "unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_guards_and_the_database_know_the_same_roles(broker: Running, sql: asyncpg.Connection) -> None:
    assert set(ROLES) == set(get_args(Role))
    guarding = {
        role for _, _, guards in guarded(broker) for guard in guards for role in getattr(guard, "roles", ())
    }
    assert guarding <= {*ROLES, "token"}
    definitions = await sql.fetch(
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where contype = 'c' and conrelid = cast('keys' as regclass)"
    )
    [listed] = [definition for (definition,) in definitions if "roles" in definition]
    assert set(re.findall(r"'(\w+)'::text", listed)) == set(ROLES)


async def test_the_table_has_every_call(broker: Running) -> None:
    told = {(method, path.partition("?")[0]) for method, path, _ in CALLS}
    told = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in told}
    files = {("GET", path) for path in [*OPEN, *FOLDERS]}
    assert {(method, path) for method, path, _ in guarded(broker)} == told | files


async def test_every_route_has_a_guard(broker: Running) -> None:
    for method, path, guards in guarded(broker):
        assert len(guards) == 1, f"{method} {path}"
        assert guards[0] is anyone or isinstance(guards[0], Allow), f"{method} {path}"


async def test_what_has_no_data_needs_no_key(broker: Running, http: httpx.AsyncClient) -> None:
    for path in OPEN + OPEN_FILES:
        assert (await http.get(path)).status_code == 200, path
    open_to_anyone = {path for _, path, [guard] in guarded(broker) if guard is anyone}
    assert open_to_anyone == {*OPEN, *FOLDERS}
    # What is not there is not there for anybody.
    assert_problem(await http.get("/nothing"), 404, "not_found")


async def test_a_list_has_what_is_the_callers_own(
    http: httpx.AsyncClient, secrets: dict[str, str], make: Make
) -> None:
    theirs, others = await make("theirs"), await make("others")

    async def ids(caller: str, path: str, field: str = "id") -> set[str]:
        key = theirs.token if caller == "token" else secrets[caller]
        answer = await http.get(path, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        if path.endswith("export"):
            return {json.loads(line)[field] for line in answer.text.splitlines()}
        return {item[field] for item in answer.json()["items"]}

    for path, field, caller, own in (
        ("/v1/tasks", "id", "submitter", "task"),
        ("/v1/tools", "id", "tool", "tool"),
        ("/v1/work", "id", "tool", "work"),
        ("/v1/work", "id", "token", "work"),
        ("/v1/archive", "work_id", "submitter", "record"),
        ("/v1/archive/export", "work_id", "submitter", "record"),
    ):
        assert await ids(caller, path, field) == {getattr(theirs, own)}, path
        both = {getattr(theirs, own), getattr(others, own)}
        assert await ids("operator", path, field) == both, path
    assert await ids("token", f"/v1/work?tool_id={others.tool}") == set()


async def test_a_key_with_two_roles_may_do_what_either_may(
    http: httpx.AsyncClient, secrets: dict[str, str], make: Make, database: str
) -> None:
    async with open_store(database) as store:
        both = bearer(await make_key(store, "both", "tool", "operator", "submitter"))
    others = await make("others")
    await http.post("/v1/tools", json={"id": "mine", "skills": 1}, headers=both)
    for tool, allowed in (("mine", True), (others.tool, False)):
        changed = await http.patch(f"/v1/tools/{tool}", json={"skills": 2}, headers=both)
        assert (changed.status_code == 200) is allowed
        drained = await http.patch(f"/v1/tools/{tool}", json={"draining": True}, headers=both)
        assert drained.json()["state"] == "draining"
    assert_problem(await http.post(f"/v1/work/{others.work}/start", headers=both), 403, "forbidden")
    assert (await http.get(f"/v1/tasks/{others.task}", headers=both)).status_code == 200
    listed = await http.get("/v1/tools", headers=both)
    assert {item["id"] for item in listed.json()["items"]} == {"mine", others.tool}
    taken = await http.post("/v1/tasks", json={"id": others.task, "needs": 1}, headers=both)
    assert_problem(taken, 403, "forbidden")


async def test_an_operator_may_drain_a_tool_and_change_nothing_else_of_it(
    http: httpx.AsyncClient, secrets: dict[str, str], make: Make
) -> None:
    world, operator = await make("theirs"), bearer(secrets["operator"])
    path = f"/v1/tools/{world.tool}"
    for change in ({"skills": 1}, {"capacity": 2, "draining": True}, {"lease_seconds": 7}):
        assert_problem(await http.patch(path, json=change, headers=operator), 403, "forbidden")
    read = await http.get(path, headers=operator)
    assert (read.json()["state"], read.json()["capacity"]) == ("idle", 10)


async def test_of_a_batch_with_an_id_of_anothers_nothing_is_written(
    http: httpx.AsyncClient, secrets: dict[str, str], make: Make
) -> None:
    others, submitter = await make("others"), bearer(secrets["submitter"])
    for taken in (others.task, "ended-others"):
        items = [{"id": "new", "needs": 1}, {"needs": 2}, {"id": taken, "needs": 3}]
        refused = await http.post("/v1/tasks/batch", json={"items": items}, headers=submitter)
        problem = assert_problem(refused, 403, "forbidden")
        assert [error["field"] for error in problem["errors"]] == ["items[2].id"]
        assert_problem(
            await http.post("/v1/tasks", json={"id": taken, "needs": 1}, headers=submitter), 403, "forbidden"
        )
    assert_problem(await http.get("/v1/tasks/new", headers=submitter), 404, "task_not_found")
    assert (await http.get("/v1/tasks", headers=submitter)).json()["items"] == []


async def test_of_a_batch_of_completions_those_of_others_are_refused(
    http: httpx.AsyncClient, secrets: dict[str, str], make: Make
) -> None:
    theirs, others = await make("theirs"), await make("others")
    for key in (theirs.token, secrets["tool"]):
        items = [
            {"work_id": work, "outcome": "released"}
            for work in (others.work, theirs.work, others.record, str(UUID(int=7)), theirs.work)
        ]
        answer = await http.post("/v1/work/complete", json={"items": items}, headers=bearer(key))
        statuses = [item["status"] for item in answer.json()["items"]]
        ended = "archived" if key == theirs.token else "exists"
        assert statuses == ["forbidden", ended, "forbidden", "work_not_found", "exists"]
    still = await http.get(f"/v1/work/{others.work}", headers=bearer(secrets["operator"]))
    assert still.json()["state"] == "assigned"


async def test_only_who_acts_for_a_tool_or_an_assigner_is_taken_for_one(
    broker: Running, http: httpx.AsyncClient, secrets: dict[str, str], make: Make, sql: asyncpg.Connection
) -> None:
    world = await make("theirs")
    service = broker.server.service

    async def all_are_heard() -> bool:
        return not service.presence._asked and not service.store.in_use()

    await wait_until(all_are_heard)
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    await sql.execute("delete from assigner")
    service.attendance._recorded_at = -math.inf
    for caller in ("operator", "assigner"):
        for path in (f"/v1/tools/{world.tool}", f"/v1/tools/{world.tool}/work", f"/v1/work/{world.work}"):
            assert (await http.get(path, headers=bearer(secrets[caller]))).status_code == 200
    assert (await http.get("/v1/candidates", headers=bearer(secrets["operator"]))).status_code == 200
    assert await sql.fetchval("select count(*) from assigner") == 0
    assert await sql.fetchval("select offline from tools") is True
    await http.get("/v1/candidates", headers=bearer(secrets["assigner"]))
    assert await sql.fetchval("select count(*) from assigner") == 1


@pytest.mark.parametrize("path", ["/v1/tools/{tool}", "/v1/work/{work}", "/v1/work/{work}/reports"])
@pytest.mark.parametrize("by", ["token", "key"])
async def test_whatever_a_tool_asks_about_itself_brings_it_back(
    http: httpx.AsyncClient,
    secrets: dict[str, str],
    make: Make,
    sql: asyncpg.Connection,
    path: str,
    by: str,
) -> None:
    world = await make("theirs")
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    key = bearer(world.token if by == "token" else secrets["tool"])
    assert (await http.get(path.format(**world._asdict()), headers=key)).status_code == 200
    operator = bearer(secrets["operator"])
    async with asyncio.timeout(10):
        while (await http.get(f"/v1/tools/{world.tool}", headers=operator)).json()["state"] == "offline":
            await asyncio.sleep(0.01)


def guarded(broker: Running) -> list[tuple[str, str, list[Any]]]:
    """Every method and path that is served, and its guards; what answers OPTIONS tells the methods alone."""
    app = broker.server.config.app.app.app
    return [
        (method, re.sub(r"\{\w+\}", "{}", route.path_format).rstrip("/") or "/", handler.resolve_guards())
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods - {"OPTIONS"}
        if (method, route.path) not in ODD
    ]
