"""The short way to the busy handlers: it is taken, and nobody can tell it from the long way."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import Receive, Scope, Send

from broker.http import fast_path
from broker.http.fast_path import FastPath, FastRoute, _read_query
from broker.http.guards import anyone
from broker.schemas.limits import LONGEST_WAIT_SECONDS
from broker.schemas.values import Request
from broker.settings import Settings
from broker.telemetry import spans
from tests.conftest import Running, running_broker
from tests.support import api
from tests.support.api import (
    Json,
    Pair,
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assert_problem,
)
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

JSON = "application/json"
UNKNOWN = "01920000-0000-7000-8000-000000000000"
# What differs between two requests that do the same.
OWN = {
    re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"): "UUID",
    re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)"): "TIME",
    re.compile(r'"cursor":"[^"]+"'): '"cursor":"CURSOR"',
}


class Call(NamedTuple):
    """A plain request to a marked handler.

    Args:
        method: Its method.
        path: Where it goes; `{task}`, `{tool}` and `{work}` are new for each request, as in the body.
        body: What is sent; none: nothing.
        status: The status of its answer.
    """

    method: str
    path: str
    body: Any = None
    status: int = 200


CALLS = [
    Call("POST", "/v1/tasks", {"id": "{new}", "needs": {"gpu": True}, "payload": [1, "ä"]}, 201),
    Call("POST", "/v1/tasks", {"id": "{task}", "needs": {}}),
    Call("POST", "/v1/tasks/batch", {"items": [{"id": "{new}", "needs": {}}, {"id": "{task}", "needs": {}}]}),
    Call("POST", "/v1/work", {"task_id": "{free task}", "tool_id": "{tool}"}, 201),
    Call("POST", "/v1/work", {"task_id": "{task}", "tool_id": "{tool}"}),
    Call(
        "POST",
        "/v1/work/batch",
        {"items": [{"task_id": each, "tool_id": "{tool}"} for each in ("{task}", "{free task}", "nobody")]},
    ),
    Call("POST", "/v1/work/{work}/start"),
    Call("POST", "/v1/work/{work}/start", {}),
    Call("POST", "/v1/work/{work}/reports", {"progress": 0.5, "message": "half", "data": [1]}, 201),
    Call("POST", "/v1/work/{work}/complete", {"outcome": "succeeded", "result": {"n": 1}}),
    Call(
        "POST",
        "/v1/work/complete",
        {"items": [{"work_id": each, "outcome": "succeeded"} for each in ("{work}", UNKNOWN)]},
    ),
    Call("POST", "/v1/tools/{tool}/heartbeat"),
    Call("GET", "/v1/tools/{tool}/work"),
    Call("GET", "/v1/tools/{tool}/work?wait=0"),
    Call("GET", "/v1/tasks/{task}"),
    Call("GET", "/v1/tasks/{free task}?wait=0"),
    Call("GET", "/v1/archive/{work}"),
    Call("GET", "/v1/candidates"),
    Call("GET", "/v1/candidates?limit=1&wait=1.5"),
]


class Refused(NamedTuple):
    """A request that is refused.

    Args:
        method: Its method.
        path: Where it goes.
        body: What is sent: texts as they are, anything else as JSON.
        status: The status of the answer.
        code: Its code.
        short: Whether it goes the short way, if its headers are plain.
    """

    method: str
    path: str
    body: Any = None
    status: int = 400
    code: str = "validation_failed"
    short: bool = True


MALFORMED = "malformed_json"
REFUSED = [
    Refused("POST", "/v1/tasks", '{"needs": ', code=MALFORMED),
    Refused("POST", "/v1/tasks", "nonsense", code=MALFORMED),
    Refused("POST", "/v1/tasks", b'{"needs": "\xff"}', code=MALFORMED),
    Refused("POST", "/v1/tasks", {}),
    Refused("POST", "/v1/tasks"),
    Refused("POST", "/v1/tasks", []),
    Refused("POST", "/v1/tasks", {"needs": 1, "neads": 1}),
    Refused("POST", "/v1/tasks", {"needs": 1, "priority": "high", "max_attempts": 0}),
    Refused("POST", "/v1/tasks", r'{"needs": "\u0000"}'),
    Refused("POST", "/v1/tasks/batch", {"items": [{"needs": 1}, {"need": 1}]}),
    Refused("POST", "/v1/tasks?wiat=1", {"needs": 1}, short=False),
    Refused("POST", "/v1/tasks?wait=1", {"needs": 1}, short=False),
    Refused("POST", "/v1/work/batch", {"items": []}),
    Refused("POST", "/v1/work", {"task_id": "nobody", "tool_id": "t"}, 404, "task_not_found"),
    Refused("POST", "/v1/work", {"task_id": "a", "tool_id": "nobody"}, 404, "tool_not_found"),
    Refused("POST", "/v1/work", {"task_id": "assigned", "tool_id": "other"}, 409, "task_unavailable"),
    Refused("POST", f"/v1/work/{UNKNOWN}/start", None, 404, "work_not_found"),
    Refused("POST", "/v1/work/nonsense/start", None, 404, "work_not_found"),
    Refused("POST", f"/v1/work/{UNKNOWN}/start", {"x": 1}),
    Refused("POST", f"/v1/work/{UNKNOWN}/reports", {}, 404, "work_not_found"),
    Refused("POST", f"/v1/work/{UNKNOWN}/reports", {"progress": 2}),
    Refused("POST", f"/v1/work/{UNKNOWN}/complete", {"outcome": "failed"}, 404, "work_not_found"),
    Refused("POST", f"/v1/work/{UNKNOWN}/complete", {"outcome": "splendid"}),
    Refused("POST", "/v1/work/ended/complete", {"outcome": "failed"}, 409, "work_ended"),
    Refused("POST", "/v1/work/ended/start", None, 409, "work_ended"),
    Refused("POST", "/v1/tools/nobody/heartbeat", None, 404, "tool_not_found"),
    Refused("POST", "/v1/tools/~x/heartbeat", None, 404, "tool_not_found"),
    Refused("GET", "/v1/tasks/nobody", None, 404, "task_not_found"),
    Refused("GET", "/v1/tasks/~x", None, 404, "task_not_found"),
    Refused("GET", f"/v1/archive/{UNKNOWN}", None, 404, "work_not_found"),
    Refused("GET", "/v1/archive/nonsense", None, 404, "work_not_found"),
    Refused("GET", "/v1/tools/nobody/work", None, 404, "tool_not_found"),
    Refused("GET", "/v1/tools/nobody/work?wait=1", None, 404, "tool_not_found"),
    Refused("GET", "/v1/candidates?cursor=nonsense"),
    *(
        Refused("GET", f"/v1/candidates?{query}", short=False)
        for query in (
            "wiat=1", "wait=61", "wait=60.5", "wait=-1", "wait=x", "limit=0", "limit=1001", "limit=1.5",
        )
    ),
]  # fmt: skip


class LongWay:
    """Litestar, and how often it is called."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await self.app(scope, receive, send)


@pytest.fixture
def long_way(broker: Running, monkeypatch: pytest.MonkeyPatch) -> LongWay:
    """What the broker's short way stands in front of."""
    return watched(broker, monkeypatch)


def watched(broker: Running, monkeypatch: pytest.MonkeyPatch) -> LongWay:
    lean = lean_of(broker)
    long_way = LongWay(lean.app)
    monkeypatch.setattr(lean, "_let_litestar_respond", long_way)
    return long_way


def lean_of(broker: Running) -> FastPath:
    lean = broker.server.config.app.app
    assert isinstance(lean, FastPath)
    return lean


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: Any = None, **headers: str
) -> httpx.Response:
    content = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
    given = ({"content-type": JSON} if content is not None else {}) | headers
    return await http.request(method, path, content=content, headers=given)


async def send_oddly(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
    """The same request, but for a header that means nothing new."""
    return await send(http, method, path, body, **{"content-type": f"{JSON}; charset=utf-8"})


async def send_in_pieces(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
    async def pieces() -> AsyncIterator[bytes]:
        whole = b"" if body is None else json.dumps(body).encode()
        yield whole[:3]
        yield whole[3:]

    return await http.request(method, path, content=pieces(), headers={"content-type": JSON})


async def send_with_preference(
    http: httpx.AsyncClient, method: str, path: str, body: Any = None
) -> httpx.Response:
    return await send(http, method, path, body, prefer="wait=0")


ODD_WAYS = [send_oddly, send_in_pieces, send_with_preference]


def told(answer: httpx.Response, name: str = "") -> tuple[int, dict[str, str], str]:
    """What an answer says, without what is its own: ids, times, and the names that were made for it."""
    text = answer.text.replace(name, "") if name else answer.text
    for pattern, instead in OWN.items():
        text = pattern.sub(instead, text)
    headers = {key: value for key, value in answer.headers.items() if key not in ("content-length", "date")}
    return answer.status_code, headers, text


def filled(template: Any, names: dict[str, str]) -> Any:
    """The template with what its placeholders stand for."""
    text = json.dumps(template)
    for placeholder, value in names.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return json.loads(text)


async def prepared(http: httpx.AsyncClient, call: Call, name: str) -> tuple[str, Any]:
    """The path and the body of a call on things of its own, whose ids begin with a name."""
    ready = add_running_work if call.path.endswith(("reports", "complete")) else add_assigned_work
    pair = await ready(http, f"{name}task", f"{name}tool")
    await add_task(http, f"{name}free")
    if "archive" in call.path:
        await api.complete_work(http, pair.work)
    names = dict(zip(Pair._fields, pair, strict=True)) | {"free task": f"{name}free", "new": f"{name}new"}
    return filled(call.path, names), filled(call.body, names)


def marked(app: Any) -> list[tuple[str, str, HTTPRouteHandler]]:
    """The handlers that say `fast_path=True`: method, path and handler."""
    return [
        (method, route.path_format, handler)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.opt.get("fast_path")
        for method in handler.http_methods
    ]


async def test_every_marked_handler_is_an_ordinary_route_and_described(
    broker: Running, http: httpx.AsyncClient
) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]
    found = marked(lean_of(broker).app)
    assert found
    for method, path, _ in found:
        assert described[path][method.lower()]["responses"], (method, path)


async def test_every_marked_handler_is_compared_here(broker: Running) -> None:
    compared = {(call.method, call.path.partition("?")[0]) for call in CALLS}
    for method, path, _ in marked(lean_of(broker).app):
        assert (method, re.sub(r"_id\b", "", path)) in compared


@pytest.mark.parametrize("odd_way", ODD_WAYS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path} {call.status}")
async def test_both_ways_do_and_answer_the_same(
    http: httpx.AsyncClient, long_way: LongWay, call: Call, odd_way: Any
) -> None:
    if "candidates" in call.path:
        await add_task(http, "only")
        await add_tool(http, "one")
        plain_path = odd_path = call.path
        plain_body = odd_body = None
    else:
        plain_path, plain_body = await prepared(http, call, "p-")
        odd_path, odd_body = await prepared(http, call, "o-")

    before = long_way.calls
    plain = await send(http, call.method, plain_path, plain_body)
    assert long_way.calls == before, "a plain request went the long way"
    odd = await odd_way(http, call.method, odd_path, odd_body)
    assert long_way.calls == before + 1, "an odd request went the short way"

    assert plain.status_code == call.status, plain.text
    assert plain.headers["content-type"] == JSON
    assert told(plain, "p-") == told(odd, "o-")


@pytest.mark.parametrize("refused", REFUSED, ids=lambda each: f"{each.method} {each.path} {each.body!r:.40}")
async def test_both_ways_refuse_the_same_in_the_same_words(
    http: httpx.AsyncClient, long_way: LongWay, refused: Refused
) -> None:
    await add_task(http)
    await add_assigned_work(http, "assigned")
    await add_tool(http, "other")
    path = refused.path
    if "/ended/" in path:
        work = (await add_running_work(http, "over")).work
        await api.complete_work(http, work)
        path = path.replace("ended", work)

    before = long_way.calls
    plain = await send(http, refused.method, path, refused.body)
    assert (long_way.calls == before) is refused.short
    odd = await send_oddly(http, refused.method, path, refused.body)
    assert long_way.calls == before + (1 if refused.short else 2)

    problem = assert_problem(plain, refused.status, refused.code)
    assert sorted_errors(problem) == sorted_errors(assert_problem(odd, refused.status, refused.code))
    assert told(plain)[:2] == told(odd)[:2]


def sorted_errors(problem: Json) -> Json:
    """A problem with its errors, and the detail that tells of them, in one order."""
    errors = sorted(problem.get("errors", ()), key=str)
    return problem | {"errors": errors, "detail": sorted(problem["detail"].split("; "))}


@pytest.mark.parametrize(
    "query",
    [
        "wait=1e1", "wait=%31", "wait=+1", "limit=01", "wait=0&wait=0", "wait=", "limit=5&limit=6",
        "wait=1&&limit=1",
    ],
)  # fmt: skip
async def test_what_is_written_oddly_in_a_query_is_left_to_the_long_way(
    http: httpx.AsyncClient, long_way: LongWay, query: str
) -> None:
    await add_task(http)  # so that no wait is waited for
    before = long_way.calls
    answer = await http.get(f"/v1/candidates?{query}")
    assert long_way.calls == before + 1
    if answer.status_code != 200:
        assert_problem(answer, 400, "validation_failed")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"]
)
async def test_what_is_said_to_be_no_json_is_refused(http: httpx.AsyncClient, content_type: str) -> None:
    answer = await send(http, "POST", "/v1/tasks", {"needs": 1}, **{"content-type": content_type})
    assert_problem(answer, 415, "unsupported_media_type")


async def test_a_body_without_a_type_is_taken_for_json(http: httpx.AsyncClient, long_way: LongWay) -> None:
    before = long_way.calls
    answer = await http.post("/v1/tasks", content=b'{"id": "a", "needs": 1}')
    assert answer.status_code == 201, answer.text
    assert long_way.calls == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/v1/tasks", 405, "method_not_allowed"),
        ("POST", "/v1/candidates", 405, "method_not_allowed"),
        ("GET", "/v1/tasks/batch", 404, "task_not_found"),
        ("POST", "/v1/work/a/b/start", 404, "not_found"),
        ("POST", "/v1/tasksx", 404, "not_found"),
    ],
)
async def test_what_only_resembles_a_marked_handler_goes_the_long_way(
    http: httpx.AsyncClient, long_way: LongWay, method: str, path: str, status: int, code: str
) -> None:
    before = long_way.calls
    assert_problem(await http.request(method, path), status, code)
    assert long_way.calls == before + 1


@pytest.mark.parametrize("odd_way", ODD_WAYS)
async def test_too_large_a_body_is_refused_both_ways_and_the_largest_is_not(
    database: str, monkeypatch: pytest.MonkeyPatch, odd_way: Any
) -> None:
    async with running_broker(Settings(database_url=database, max_body_bytes=1024)) as broker:
        long_way = watched(broker, monkeypatch)
        around = len(json.dumps({"needs": 1, "payload": ""}))
        largest = {"needs": 1, "payload": "x" * (1024 - around)}
        larger = {"needs": 1, "payload": "x" * (1025 - around)}

        assert (await send(broker.client, "POST", "/v1/tasks", largest)).status_code == 201
        assert long_way.calls == 0
        plain = await send(broker.client, "POST", "/v1/tasks", larger)
        assert (await odd_way(broker.client, "POST", "/v1/tasks", largest)).status_code == 201
        odd = await odd_way(broker.client, "POST", "/v1/tasks", larger)
        assert assert_problem(plain, 413, "payload_too_large") == assert_problem(
            odd, 413, "payload_too_large"
        )


async def test_a_failure_of_our_own_is_told_both_ways_and_tells_nothing(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(broker.server.service.store, "one", fails)
        plain = await send(http, "POST", "/v1/tasks", {"needs": 1})
        odd = await send_oddly(http, "POST", "/v1/tasks", {"needs": 1})
    assert assert_problem(plain, 500, "internal") == assert_problem(odd, 500, "internal")
    assert "secret" not in plain.text


def route(*takes: str) -> FastRoute:
    """A route that takes these arguments."""
    return FastRoute(handler=None, guard=anyone, body=Request, arguments=frozenset(takes), status=200)


@pytest.mark.parametrize(
    ("query", "given"),
    [
        (b"", {}),
        (b"wait=0", {"wait": 0.0}),
        (b"wait=60", {"wait": 60.0}),
        (b"wait=59.999999999", {"wait": 59.999999999}),
        (b"limit=1", {"limit": 1}),
        (b"limit=1000", {"limit": 1000}),
        (b"cursor=aB-_9&limit=7&wait=1.5", {"cursor": "aB-_9", "limit": 7, "wait": 1.5}),
    ],
)
async def test_a_plain_query_is_read(query: bytes, given: dict[str, Any]) -> None:
    read: dict[str, Any] = {}
    assert _read_query(route("wait", "limit", "cursor"), query, read)
    assert read == given
    assert {name: type(value) for name, value in read.items()} == {
        name: type(value) for name, value in given.items()
    }


@pytest.mark.parametrize(
    "query",
    [
        b"wait", b"wait=", b"=1", b"&", b"wait=1&", b"&wait=1", b"wait=61", b"wait=60.1", b"wait=100",
        b"wait=-1", b"wait=+1", b"wait=1e1", b"wait=1.", b"wait=.5", b"wait=inf", b"wait=nan", b"wait=1_0",
        b"wait=1\n",
        "wait=\u0661".encode(), b"wait=1;limit=1", b"wait=1&wait=1", b"WAIT=1", b"limit=0", b"limit=01",
        b"limit=1001", b"limit=1.0", b"limit=-5", b"cursor=", b"cursor=a%20b", b"cursor=a+b", b"cursor=a=b",
        b"cursor=\xff", b"other=1", b"tool_id=t", b"data=1", b"request=1", b"service=1",
        b"wait=" + b"9" * 5_000, b"limit=" + b"9" * 5_000,
    ],
)  # fmt: skip
async def test_a_query_that_is_not_plain_is_left_alone(query: bytes) -> None:
    takes = route("wait", "limit", "cursor", "tool_id", "data", "request", "service")
    assert not _read_query(takes, query, {"tool_id": "t"})


@pytest.mark.parametrize("longest", [LONGEST_WAIT_SECONDS, 100, 86_400])
async def test_longest_wait_takes_the_fast_path_and_is_traced_whatever_it_is(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fast_path._QUERY["wait"]
    assert plain.most == LONGEST_WAIT_SECONDS
    monkeypatch.setitem(fast_path._QUERY, "wait", plain._replace(most=longest))
    monkeypatch.setattr(spans, "LONGEST_WAIT_SECONDS", longest)

    arguments: dict[str, Any] = {}
    assert _read_query(route("wait"), b"wait=%d" % longest, arguments)
    assert arguments == {"wait": longest}
    assert spans._wait_seconds(b"limit=1&wait=%d" % longest) == longest
    assert not _read_query(route("wait"), b"wait=%d.1" % longest, {})
    assert spans._wait_seconds(b"wait=%d.1" % longest) is None


async def test_a_parameter_that_the_handler_does_not_take_is_not_plain() -> None:
    assert not _read_query(route("wait"), b"limit=1", {})
