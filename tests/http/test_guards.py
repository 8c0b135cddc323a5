"""The rights of roles: every request by every role, about its own resources and those of others."""

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

# The roles that may make each request. `own`: about their own resources only. `list`: the response is limited
# to their own resources.
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
REQUESTS = [(line.split()[0], line.split()[1], line.split()[2:]) for line in TABLE.strip().splitlines()]
PATHS_WITHOUT_KEY = ["/health/live", "/health/ready", "/docs", "/openapi.json", "/"]
FOLDERS = ["/docs/assets/{}", "/dashboard/{}", "/help", "/help/{}"]
FILES_WITHOUT_KEY = ["/docs/assets/start.js", "/dashboard/main.js"]
CALLERS = ("submitter", "tool", "token", "assigner", "operator", "admin")
# The id of a task may also be a path of the API.
TASKS_NAMED_LIKE_PATHS = [
    (method, f"/v1/tasks/{name}") for method in ("GET", "DELETE") for name in ("batch", "remarks")
]

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
    """A task, its tool and work, and the record of another task of the same submitter and tool key."""

    task: str
    tool: str
    work: str
    record: str
    token: str
    key: str


CreateWorld = Callable[[str], Awaitable[World]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secrets(database: str) -> dict[str, str]:
    """Create a key for each role, and a second one for a submitter and a tool."""
    async with open_store(database) as store:
        made = {role: await make_key(store, role, role) for role in ROLES}
        made["another submitter"] = await make_key(store, "another-submitter", "submitter")
        made["another tool"] = await make_key(store, "another-tool", "tool")
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(database: str, secrets: dict[str, str]) -> AsyncIterator[Running]:
    """Run a broker with keys."""
    settings = Settings(database_url=database, fallback_seconds=60, admin_key=ADMIN_KEY)
    async with running_broker(settings) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def http(broker: Running, sql: asyncpg.Connection, unchanged: dict[str, World]) -> httpx.AsyncClient:
    """Delete all rows except keys, and return a client that sends no key."""
    await delete_rows(sql)
    unchanged.clear()
    return broker.client


@pytest.fixture(scope="module")
def unchanged() -> dict[str, World]:
    """Keep the unchanged worlds of the broker. Empty if a test has changed them."""
    return {}


@pytest_asyncio.fixture(loop_scope="module")
async def worlds(
    broker: Running, sql: asyncpg.Connection, secrets: dict[str, str], unchanged: dict[str, World]
) -> dict[str, World]:
    """Return the worlds `theirs` and `others`. Create them again if a test has changed them."""
    if not unchanged:
        await delete_rows(sql)
        create = world_creator(broker.client, secrets)
        unchanged |= {whose: await create(whose) for whose in ("theirs", "others")}
    return unchanged


@pytest_asyncio.fixture(loop_scope="module")
async def create(http: httpx.AsyncClient, secrets: dict[str, str]) -> CreateWorld:
    """Return a function that creates a world: `theirs`, or one that belongs to other keys."""
    return world_creator(http, secrets)


def world_creator(http: httpx.AsyncClient, secrets: dict[str, str]) -> CreateWorld:
    async def create(whose: str) -> World:
        submitter, tool = (
            ("submitter", "tool") if whose == "theirs" else ("another submitter", "another tool")
        )

        async def post(key: str, path: str, **body: Any) -> Json:
            response = await http.post(path, json=body, headers=bearer(secrets[key]))
            assert response.status_code in (200, 201), response.text
            content: Json = response.json()
            return content

        registered = await post(tool, "/v1/tools", id=f"tool-{whose}", skills={}, capacity=10)
        works = {}
        for name in ("ended", "task"):
            task = await post(submitter, "/v1/tasks", id=f"{name}-{whose}", needs={})
            pair = {"task_id": task["id"], "tool_id": registered["id"]}
            works[name] = (await post("assigner", "/v1/work", **pair))["id"]
        await post(tool, f"/v1/work/{works['ended']}/complete", outcome="succeeded")
        key = await post("admin", "/v1/keys", name=f"key-{whose}", roles=["submitter"], replace=True)
        return World(
            f"task-{whose}", registered["id"], works["task"], works["ended"], registered["token"], key["name"]
        )

    return create


async def send(
    http: httpx.AsyncClient, method: str, path: str, world: World, headers: dict[str, str]
) -> httpx.Response:
    body = BODIES.get((method, path), lambda _: None)(world)
    request = {"url": path.format(**world._asdict()), "json": body, "headers": headers}
    if path != "/v1/events":
        return await http.request(method, **request)
    async with http.stream(method, **request) as response:
        # A successful response does not end.
        if response.is_error:
            await response.aread()
    return response


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("method", "path", "roles"), REQUESTS, ids=[f"{method} {path}" for method, path, _ in REQUESTS]
)
async def test_role_allows_exactly_the_requests_in_the_table(
    broker: Running,
    secrets: dict[str, str],
    worlds: dict[str, World],
    method: str,
    path: str,
    roles: list[str],
    caller: str,
) -> None:
    http, theirs, others = broker.client, worlds["theirs"], worlds["others"]
    key = bearer(theirs.token if caller == "token" else secrets[caller])
    reach = dict(cell.partition(":")[::2] for cell in [*roles, "admin"]).get(caller)
    if reach is not None and method != "GET":
        worlds.clear()
    about_others = await send(http, method, path, others, key)
    if reach in (None, "own"):
        assert_problem(about_others, 403, "forbidden")
    else:
        assert about_others.status_code < 300 or about_others.json()["code"] == "nothing_to_accept"
    about_theirs = await send(http, method, path, theirs, key)
    if reach is None:
        assert_problem(about_theirs, 403, "forbidden")
    else:
        assert about_theirs.status_code < 300 or about_theirs.json()["code"] == "nothing_to_accept"


@pytest.mark.parametrize(
    ("method", "path", "roles"), REQUESTS, ids=[f"{method} {path}" for method, path, _ in REQUESTS]
)
async def test_request_without_a_valid_key_is_refused(
    broker: Running,
    secrets: dict[str, str],
    worlds: dict[str, World],
    method: str,
    path: str,
    roles: list[str],
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
        refused = await send(http, method, path, theirs, headers)
        assert_problem(refused, 401, "unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_guards_and_the_database_have_the_same_roles(broker: Running, sql: asyncpg.Connection) -> None:
    assert set(ROLES) == set(get_args(Role))
    guarding = {
        role
        for _, _, guards in routes_with_guards(broker)
        for guard in guards
        for role in getattr(guard, "roles", ())
    }
    assert guarding <= {*ROLES, "token"}
    definitions = await sql.fetch(
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where contype = 'c' and conrelid = cast('keys' as regclass)"
    )
    [listed] = [definition for (definition,) in definitions if "roles" in definition]
    assert set(re.findall(r"'(\w+)'::text", listed)) == set(ROLES)


async def test_table_of_roles_has_every_route(broker: Running) -> None:
    requests = {(method, path.partition("?")[0]) for method, path, _ in REQUESTS}
    listed = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in requests}
    files = {("GET", path) for path in [*PATHS_WITHOUT_KEY, *FOLDERS]}
    assert {(method, path) for method, path, _ in routes_with_guards(broker)} == listed | files


async def test_every_route_has_a_guard(broker: Running) -> None:
    for method, path, guards in routes_with_guards(broker):
        assert len(guards) == 1, f"{method} {path}"
        assert guards[0] is anyone or isinstance(guards[0], Allow), f"{method} {path}"


async def test_pages_without_data_need_no_key(broker: Running, http: httpx.AsyncClient) -> None:
    for path in PATHS_WITHOUT_KEY + FILES_WITHOUT_KEY:
        assert (await http.get(path)).status_code == 200, path
    open_to_anyone = {path for _, path, [guard] in routes_with_guards(broker) if guard is anyone}
    assert open_to_anyone == {*PATHS_WITHOUT_KEY, *FOLDERS}
    # An unknown path is 404 even without a key.
    assert_problem(await http.get("/nothing"), 404, "not_found")


async def test_list_has_only_the_items_of_the_caller(
    http: httpx.AsyncClient, secrets: dict[str, str], create: CreateWorld
) -> None:
    theirs, others = await create("theirs"), await create("others")

    async def ids(caller: str, path: str, field: str = "id") -> set[str]:
        key = theirs.token if caller == "token" else secrets[caller]
        response = await http.get(path, headers=bearer(key))
        assert response.status_code == 200, response.text
        if path.endswith("export"):
            return {json.loads(line)[field] for line in response.text.splitlines()}
        return {item[field] for item in response.json()["items"]}

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


async def test_key_with_several_roles_has_the_rights_of_each(
    http: httpx.AsyncClient, secrets: dict[str, str], create: CreateWorld, database: str
) -> None:
    async with open_store(database) as store:
        both = bearer(await make_key(store, "both", "tool", "operator", "submitter"))
    others = await create("others")
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


async def test_operator_may_change_only_draining_of_a_tool(
    http: httpx.AsyncClient, secrets: dict[str, str], create: CreateWorld
) -> None:
    world, operator = await create("theirs"), bearer(secrets["operator"])
    path = f"/v1/tools/{world.tool}"
    for change in ({"skills": 1}, {"capacity": 2, "draining": True}, {"lease_seconds": 7}):
        assert_problem(await http.patch(path, json=change, headers=operator), 403, "forbidden")
    read = await http.get(path, headers=operator)
    assert (read.json()["state"], read.json()["capacity"]) == ("idle", 10)


async def test_batch_with_an_id_of_another_submitter_writes_nothing(
    http: httpx.AsyncClient, secrets: dict[str, str], create: CreateWorld
) -> None:
    others, submitter = await create("others"), bearer(secrets["submitter"])
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


async def test_batch_of_completions_refuses_only_the_work_of_others(
    http: httpx.AsyncClient, secrets: dict[str, str], create: CreateWorld
) -> None:
    theirs, others = await create("theirs"), await create("others")
    for key in (theirs.token, secrets["tool"]):
        items = [
            {"work_id": work, "outcome": "released"}
            for work in (others.work, theirs.work, others.record, str(UUID(int=7)), theirs.work)
        ]
        response = await http.post("/v1/work/complete", json={"items": items}, headers=bearer(key))
        statuses = [item["status"] for item in response.json()["items"]]
        ended = "archived" if key == theirs.token else "exists"
        assert statuses == ["forbidden", ended, "forbidden", "work_not_found", "exists"]
    still = await http.get(f"/v1/work/{others.work}", headers=bearer(secrets["operator"]))
    assert still.json()["state"] == "assigned"


async def test_only_requests_by_a_tool_or_an_assigner_count_as_its_own(
    broker: Running,
    http: httpx.AsyncClient,
    secrets: dict[str, str],
    create: CreateWorld,
    sql: asyncpg.Connection,
) -> None:
    world = await create("theirs")
    service = broker.server.service

    async def all_renewals_are_done() -> bool:
        return not service.presence._asked and not service.store.in_use()

    await wait_until(all_renewals_are_done)
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
async def test_any_request_of_a_tool_about_itself_brings_it_back_online(
    http: httpx.AsyncClient,
    secrets: dict[str, str],
    create: CreateWorld,
    sql: asyncpg.Connection,
    path: str,
    by: str,
) -> None:
    world = await create("theirs")
    await sql.execute("update tools set offline = true; update tool_leases set expires_at = now()")
    key = bearer(world.token if by == "token" else secrets["tool"])
    assert (await http.get(path.format(**world._asdict()), headers=key)).status_code == 200
    operator = bearer(secrets["operator"])
    async with asyncio.timeout(10):
        while (await http.get(f"/v1/tools/{world.tool}", headers=operator)).json()["state"] == "offline":
            await asyncio.sleep(0.01)


def routes_with_guards(broker: Running) -> list[tuple[str, str, list[Any]]]:
    """Return every method and path with its guards, without OPTIONS."""
    app = broker.server.config.app.app.app
    return [
        (method, re.sub(r"\{\w+\}", "{}", route.path_format).rstrip("/") or "/", handler.resolve_guards())
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods - {"OPTIONS"}
        if (method, route.path) not in TASKS_NAMED_LIKE_PATHS
    ]
