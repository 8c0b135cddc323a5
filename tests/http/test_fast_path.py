"""The fast path to frequent handlers: plain requests use it, and its responses equal those of Litestar."""

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
# Values that differ between two equal requests, and their replacements.
VARIABLE_VALUES = {
    re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"): "UUID",
    re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)"): "TIME",
    re.compile(r'"cursor":"[^"]+"'): '"cursor":"CURSOR"',
}


class PlainRequest(NamedTuple):
    """A plain request to a handler of the fast path.

    Args:
        method: The HTTP method.
        path: The path. `{task}`, `{tool}` and `{work}` are different for each request, also in the body.
        body: The body as a Python value. None: no body.
        status: The expected status.
    """

    method: str
    path: str
    body: Any = None
    status: int = 200


PLAIN_REQUESTS = [
    PlainRequest("POST", "/v1/tasks", {"id": "{new}", "needs": {"gpu": True}, "payload": [1, "ä"]}, 201),
    PlainRequest("POST", "/v1/tasks", {"id": "{task}", "needs": {}}),
    PlainRequest(
        "POST", "/v1/tasks/batch", {"items": [{"id": "{new}", "needs": {}}, {"id": "{task}", "needs": {}}]}
    ),
    PlainRequest("POST", "/v1/work", {"task_id": "{free task}", "tool_id": "{tool}"}, 201),
    PlainRequest("POST", "/v1/work", {"task_id": "{task}", "tool_id": "{tool}"}),
    PlainRequest(
        "POST",
        "/v1/work/batch",
        {"items": [{"task_id": each, "tool_id": "{tool}"} for each in ("{task}", "{free task}", "nobody")]},
    ),
    PlainRequest("POST", "/v1/work/{work}/start"),
    PlainRequest("POST", "/v1/work/{work}/start", {}),
    PlainRequest("POST", "/v1/work/{work}/reports", {"progress": 0.5, "message": "half", "data": [1]}, 201),
    PlainRequest("POST", "/v1/work/{work}/complete", {"outcome": "succeeded", "result": {"n": 1}}),
    PlainRequest(
        "POST",
        "/v1/work/complete",
        {"items": [{"work_id": each, "outcome": "succeeded"} for each in ("{work}", UNKNOWN)]},
    ),
    PlainRequest("POST", "/v1/tools/{tool}/heartbeat"),
    PlainRequest("GET", "/v1/tools/{tool}/work"),
    PlainRequest("GET", "/v1/tools/{tool}/work?wait=0"),
    PlainRequest("GET", "/v1/tasks/{task}"),
    PlainRequest("GET", "/v1/tasks/{free task}?wait=0"),
    PlainRequest("GET", "/v1/archive/{work}"),
    PlainRequest("GET", "/v1/candidates"),
    PlainRequest("GET", "/v1/candidates?limit=1&wait=1.5"),
]


class Refused(NamedTuple):
    """A request that is refused.

    Args:
        method: The HTTP method.
        path: The path.
        body: The body: a text, or a value to send as JSON.
        status: The expected status.
        code: The expected code.
        fast: Whether it takes the fast path if its headers are plain.
    """

    method: str
    path: str
    body: Any = None
    status: int = 400
    code: str = "validation_failed"
    fast: bool = True


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
    Refused("POST", "/v1/tasks?wiat=1", {"needs": 1}, fast=False),
    Refused("POST", "/v1/tasks?wait=1", {"needs": 1}, fast=False),
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
        Refused("GET", f"/v1/candidates?{query}", fast=False)
        for query in (
            "wiat=1", "wait=61", "wait=60.5", "wait=-1", "wait=x", "limit=0", "limit=1001", "limit=1.5",
        )
    ),
]  # fmt: skip


class CountingLitestar:
    """Litestar with a counter of its requests."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        await self.app(scope, receive, send)


@pytest.fixture
def litestar(broker: Running, monkeypatch: pytest.MonkeyPatch) -> CountingLitestar:
    """Count the requests that reach Litestar behind the fast path."""
    return count_requests(broker, monkeypatch)


def count_requests(broker: Running, monkeypatch: pytest.MonkeyPatch) -> CountingLitestar:
    fast = fast_path_of(broker)
    litestar = CountingLitestar(fast.app)
    monkeypatch.setattr(fast, "_let_litestar_respond", litestar)
    return litestar


def fast_path_of(broker: Running) -> FastPath:
    fast = broker.server.config.app.app
    assert isinstance(fast, FastPath)
    return fast


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: Any = None, **headers: str
) -> httpx.Response:
    content = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
    all_headers = ({"content-type": JSON} if content is not None else {}) | headers
    return await http.request(method, path, content=content, headers=all_headers)


async def send_with_odd_header(
    http: httpx.AsyncClient, method: str, path: str, body: Any = None
) -> httpx.Response:
    """Send the same request with a header that does not change its meaning."""
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


ODD_SENDERS = [send_with_odd_header, send_in_pieces, send_with_preference]


def comparable(response: httpx.Response, name: str = "") -> tuple[int, dict[str, str], str]:
    """Return the status, headers and text of a response, without ids, times and names that vary."""
    text = response.text.replace(name, "") if name else response.text
    for pattern, replacement in VARIABLE_VALUES.items():
        text = pattern.sub(replacement, text)
    headers = {key: value for key, value in response.headers.items() if key not in ("content-length", "date")}
    return response.status_code, headers, text


def fill(template: Any, names: dict[str, str]) -> Any:
    """Return a template with the values of its placeholders."""
    text = json.dumps(template)
    for placeholder, value in names.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return json.loads(text)


async def prepare(http: httpx.AsyncClient, plain_request: PlainRequest, name: str) -> tuple[str, Any]:
    """Create a task, a tool and work for a request, and return the path and the body of the request."""
    ready = add_running_work if plain_request.path.endswith(("reports", "complete")) else add_assigned_work
    pair = await ready(http, f"{name}task", f"{name}tool")
    await add_task(http, f"{name}free")
    if "archive" in plain_request.path:
        await api.complete_work(http, pair.work)
    names = dict(zip(Pair._fields, pair, strict=True)) | {"free task": f"{name}free", "new": f"{name}new"}
    return fill(plain_request.path, names), fill(plain_request.body, names)


def fast_path_handlers(app: Any) -> list[tuple[str, str, HTTPRouteHandler]]:
    """Return the method, path and handler of every handler with `fast_path=True`."""
    return [
        (method, route.path_format, handler)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.opt.get("fast_path")
        for method in handler.http_methods
    ]


async def test_every_handler_of_the_fast_path_has_a_route_and_a_description(
    broker: Running, http: httpx.AsyncClient
) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]
    handlers = fast_path_handlers(fast_path_of(broker).app)
    assert handlers
    for method, path, _ in handlers:
        assert described[path][method.lower()]["responses"], (method, path)


async def test_every_handler_of_the_fast_path_has_a_request_in_this_module(broker: Running) -> None:
    compared = {(request.method, request.path.partition("?")[0]) for request in PLAIN_REQUESTS}
    for method, path, _ in fast_path_handlers(fast_path_of(broker).app):
        assert (method, re.sub(r"_id\b", "", path)) in compared


@pytest.mark.parametrize("send_odd", ODD_SENDERS)
@pytest.mark.parametrize(
    "plain_request", PLAIN_REQUESTS, ids=lambda each: f"{each.method} {each.path} {each.status}"
)
async def test_fast_path_and_litestar_give_the_same_response(
    http: httpx.AsyncClient, litestar: CountingLitestar, plain_request: PlainRequest, send_odd: Any
) -> None:
    if "candidates" in plain_request.path:
        await add_task(http, "only")
        await add_tool(http, "one")
        plain_path = odd_path = plain_request.path
        plain_body = odd_body = None
    else:
        plain_path, plain_body = await prepare(http, plain_request, "p-")
        odd_path, odd_body = await prepare(http, plain_request, "o-")

    before = litestar.requests
    plain = await send(http, plain_request.method, plain_path, plain_body)
    assert litestar.requests == before, "Litestar handled a plain request"
    odd = await send_odd(http, plain_request.method, odd_path, odd_body)
    assert litestar.requests == before + 1, "the fast path handled an odd request"

    assert plain.status_code == plain_request.status, plain.text
    assert plain.headers["content-type"] == JSON
    assert comparable(plain, "p-") == comparable(odd, "o-")


@pytest.mark.parametrize("refused", REFUSED, ids=lambda each: f"{each.method} {each.path} {each.body!r:.40}")
async def test_fast_path_and_litestar_give_the_same_errors(
    http: httpx.AsyncClient, litestar: CountingLitestar, refused: Refused
) -> None:
    await add_task(http)
    await add_assigned_work(http, "assigned")
    await add_tool(http, "other")
    path = refused.path
    if "/ended/" in path:
        work = (await add_running_work(http, "finished")).work
        await api.complete_work(http, work)
        path = path.replace("ended", work)

    before = litestar.requests
    plain = await send(http, refused.method, path, refused.body)
    assert (litestar.requests == before) is refused.fast
    odd = await send_with_odd_header(http, refused.method, path, refused.body)
    assert litestar.requests == before + (1 if refused.fast else 2)

    problem = assert_problem(plain, refused.status, refused.code)
    assert sorted_errors(problem) == sorted_errors(assert_problem(odd, refused.status, refused.code))
    assert comparable(plain)[:2] == comparable(odd)[:2]


def sorted_errors(problem: Json) -> Json:
    """Return a problem with its errors and its detail in a fixed order."""
    errors = sorted(problem.get("errors", ()), key=str)
    return problem | {"errors": errors, "detail": sorted(problem["detail"].split("; "))}


@pytest.mark.parametrize(
    "query",
    [
        "wait=1e1", "wait=%31", "wait=+1", "limit=01", "wait=0&wait=0", "wait=", "limit=5&limit=6",
        "wait=1&&limit=1",
    ],
)  # fmt: skip
async def test_litestar_handles_a_query_with_unusual_notation(
    http: httpx.AsyncClient, litestar: CountingLitestar, query: str
) -> None:
    # With a candidate, no request waits.
    await add_task(http)
    before = litestar.requests
    response = await http.get(f"/v1/candidates?{query}")
    assert litestar.requests == before + 1
    if response.status_code != 200:
        assert_problem(response, 400, "validation_failed")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"]
)
async def test_body_of_another_media_type_is_refused(http: httpx.AsyncClient, content_type: str) -> None:
    response = await send(http, "POST", "/v1/tasks", {"needs": 1}, **{"content-type": content_type})
    assert_problem(response, 415, "unsupported_media_type")


async def test_body_without_a_media_type_is_read_as_json(
    http: httpx.AsyncClient, litestar: CountingLitestar
) -> None:
    before = litestar.requests
    response = await http.post("/v1/tasks", content=b'{"id": "a", "needs": 1}')
    assert response.status_code == 201, response.text
    assert litestar.requests == before


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
async def test_litestar_handles_requests_that_only_resemble_a_marked_handler(
    http: httpx.AsyncClient, litestar: CountingLitestar, method: str, path: str, status: int, code: str
) -> None:
    before = litestar.requests
    assert_problem(await http.request(method, path), status, code)
    assert litestar.requests == before + 1


@pytest.mark.parametrize("send_odd", ODD_SENDERS)
async def test_body_limit_is_the_same_on_the_fast_path_and_in_litestar(
    database: str, monkeypatch: pytest.MonkeyPatch, send_odd: Any
) -> None:
    async with running_broker(Settings(database_url=database, max_body_bytes=1024)) as broker:
        litestar = count_requests(broker, monkeypatch)
        around = len(json.dumps({"needs": 1, "payload": ""}))
        largest = {"needs": 1, "payload": "x" * (1024 - around)}
        larger = {"needs": 1, "payload": "x" * (1025 - around)}

        assert (await send(broker.client, "POST", "/v1/tasks", largest)).status_code == 201
        assert litestar.requests == 0
        plain = await send(broker.client, "POST", "/v1/tasks", larger)
        assert (await send_odd(broker.client, "POST", "/v1/tasks", largest)).status_code == 201
        odd = await send_odd(broker.client, "POST", "/v1/tasks", larger)
        assert assert_problem(plain, 413, "payload_too_large") == assert_problem(
            odd, 413, "payload_too_large"
        )


async def test_internal_error_shows_no_details_on_the_fast_path_and_in_litestar(
    broker: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(broker.server.service.store, "one", fails)
        plain = await send(http, "POST", "/v1/tasks", {"needs": 1})
        odd = await send_with_odd_header(http, "POST", "/v1/tasks", {"needs": 1})
    assert assert_problem(plain, 500, "internal") == assert_problem(odd, 500, "internal")
    assert "secret" not in plain.text


def route(*arguments: str) -> FastRoute:
    """Return a route whose handler has these arguments."""
    return FastRoute(handler=None, guard=anyone, body=Request, arguments=frozenset(arguments), status=200)


@pytest.mark.parametrize(
    ("query", "expected"),
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
async def test_fast_path_reads_a_plain_query(query: bytes, expected: dict[str, Any]) -> None:
    read: dict[str, Any] = {}
    assert _read_query(route("wait", "limit", "cursor"), query, read)
    assert read == expected
    assert {name: type(value) for name, value in read.items()} == {
        name: type(value) for name, value in expected.items()
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
async def test_fast_path_does_not_read_other_queries(query: bytes) -> None:
    all_arguments = route("wait", "limit", "cursor", "tool_id", "data", "request", "service")
    assert not _read_query(all_arguments, query, {"tool_id": "t"})


@pytest.mark.parametrize("longest", [LONGEST_WAIT_SECONDS, 100, 86_400])
async def test_longest_wait_uses_the_fast_path_and_is_traced(
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


async def test_fast_path_does_not_read_parameters_that_the_handler_does_not_have() -> None:
    assert not _read_query(route("wait"), b"limit=1", {})
