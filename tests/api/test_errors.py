"""Refusals of invalid requests, and values: any JSON that the broker accepts comes back equal."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.schemas.limits import LARGEST_BODY_BYTES
from broker.settings import Settings
from tests.conftest import Running, running_broker
from tests.support.api import (
    add_assigned_work,
    add_running_work,
    add_task,
    add_tool,
    assert_problem,
    assign,
    finish_long_poll,
    get,
    parse_exactly,
    start_long_poll,
)
from tests.support.shared import SHARED_BROKER, THOROUGH

pytestmark, database, broker, sql, http = SHARED_BROKER

JSON = "application/json"
UNKNOWN = "01920000-0000-7000-8000-000000000000"
CODES = {
    "validation_failed", "malformed_json", "not_found", "method_not_allowed", "task_not_found",
    "tool_not_found",
    "work_not_found", "payload_too_large", "unsupported_media_type", "cursor_expired",
}  # fmt: skip
LEAKS = re.compile(
    r"traceback|\bselect\b.+\bfrom\b|insert into|update \w+ set|\$\d\b|asyncpg|sqlalchemy|litestar"
    r"|msgspec|\.py\b|/src/|site-packages|psycopg|0x[0-9a-f]{6,}|<class",
    re.IGNORECASE,
)


class Bad(NamedTuple):
    """A request that must be refused.

    Args:
        method: The method.
        path: The path. WORK, TASK and TOOL stand for ids of existing objects.
        body: The body: bytes and strings are sent unchanged, other values as JSON.
        fields: The fields that `errors` must name, exactly. Without any, every refusal is valid.
        content_type: The Content-Type of the body.
        code: The required error code, if there is only one.
    """

    method: str
    path: str
    body: Any = None
    fields: tuple[str, ...] = ()
    content_type: str = JSON
    code: str | None = None


TASKS, TOOLS, TOOL, WORK = "/v1/tasks", "/v1/tools", "/v1/tools/TOOL", "/v1/work"
REPORTS, COMPLETE, REMARK = "/v1/work/WORK/reports", "/v1/work/WORK/complete", "/v1/tasks/TASK/remark"
PAIR = {"task_id": "x", "tool_id": "t"}
INVALID_TIMES = (
    "2030-01-01T00:00:00", "2030-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "soon", "",
    "2030-13-01T00:00:00Z", "2030-02-30T00:00:00Z", "2030-01-01T25:00:00Z", "2030-01-01T00:00:00+99:00", 5,
    [], True,
)  # fmt: skip
BAD_IDS = (
    "", "x\n", "\nx", "x\u0000", "x" * 129, ".x", "-x", "~x", ":x", "_x", "a b", "a/b", "é", "x\u0661",
    "\uff11", "x\ufeff",
    7, None, [], {}, True, 1.5,
)  # fmt: skip


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def nested_objects(depth: int) -> str:
    return '{"k":' * (depth - 1) + "{}" + "}" * (depth - 1)


UNSTORABLE = {
    "nul": r'"a\u0000b"',
    "nul in a key": r'{"\u0000": 1}',
    "nul far inside": r'[1, {"k": ["x", "\u0000"]}]',
    "lone high surrogate": r'"\ud800"',
    "lone low surrogate": r'"\udc00"',
    "surrogates swapped": r'"\udc00\ud800"',
    "high surrogate before a letter": r'"\ud800x"',
    "lone surrogate in a key": r'{"\udfff": 1}',
    "too large a number": "1e400000",
    "too large a negative number": "[-1e400000]",
    "too large a number with a capital": "1.5E+400000",
    "too small a number": "1e-400000",
    "an exponent beyond everything": "1e99999999999999999999",
    "201 deep": nested(201),
    "201 objects deep": nested_objects(201),
    "100,000 deep": nested(100_000),
}
MALFORMED = {
    "nan": "NaN",
    "infinity": "-Infinity",
    "truncated": '{"x": [1, ',
    "a comma too many": "[1,]",
    "single quotes": "{'x': 1}",
    "a raw control character": '"a\nb"',
    "leading zero": "01",
    "half an escape": r'"\u12"',
    "python": "None",
}


def json_fields() -> Iterator[tuple[str, str, str, str]]:
    """Yield every field that accepts any JSON: method, path, the body around it, and the field's name."""
    yield "POST", TASKS, '{"needs": %s}', "needs"
    yield "POST", TASKS, '{"needs": 1, "payload": %s}', "payload"
    yield "POST", f"{TASKS}/batch", '{"items": [{"needs": 1}, {"needs": %s}]}', "items[1].needs"
    yield "POST", f"{TASKS}/batch", '{"items": [{"needs": 1, "payload": %s}]}', "items[0].payload"
    yield "POST", TOOLS, '{"skills": %s}', "skills"
    yield "PATCH", TOOL, '{"skills": %s}', "skills"
    yield "POST", REPORTS, '{"data": %s}', "data"
    yield "POST", COMPLETE, '{"outcome": "failed", "result": %s}', "result"
    yield (
        "POST", f"{WORK}/complete", '{"items": [{"work_id": "WORK", "outcome": "failed", "result": %s}]}',
        "items[0].result",
    )  # fmt: skip


def bad_json() -> Iterator[Bad]:
    for method, path, body, name in json_fields():
        for value in UNSTORABLE.values():
            yield Bad(method, path, body % value, (name,))
        for value in MALFORMED.values():
            yield Bad(method, path, body % value, code="malformed_json")
        yield Bad(method, path, (body % '"\x00\xff"').encode("latin-1"), code="malformed_json")
        yield Bad(method, path, (body % '"').encode() + b"\xed\xa0\x80" + b'"}', code="malformed_json")
        if name.endswith(("needs", "skills")):
            yield Bad(method, path, body % json.dumps("x" * 70_000), (name,))


def bad_texts() -> Iterator[Bad]:
    texts: list[Any] = [json.dumps("x" * 10_001), r'"\u0000"', r'"\ud800"', "5", "[]", "{}", "true"]
    fields = [
        ("PUT", REMARK, '{"text": %s}', "text"),
        ("POST", f"{TASKS}/remarks", '{"items": [{"task_id": "x", "text": ""}, {"task_id":"y", "text": %s}]}',
         "items[1].text"),
        ("POST", REPORTS, '{"message": %s}', "message"),
        ("POST", COMPLETE, '{"outcome": "failed", "error": %s}', "error"),
        ("POST", f"{WORK}/complete", '{"items": [{"work_id": "WORK", "outcome": "failed", "error": %s}]}',
         "items[0].error"),
    ]  # fmt: skip
    for method, path, body, name in fields:
        for text in texts:
            yield Bad(method, path, body % text, (name,))
    yield Bad("PUT", REMARK, {"text": None}, ("text",))
    yield Bad("PUT", REMARK, {}, ("text",))


def bad_ids() -> Iterator[Bad]:
    for bad in BAD_IDS:
        if bad is not None:  # null may mean the same as an absent id
            yield Bad("POST", TASKS, {"id": bad, "needs": 1}, ("id",))
            yield Bad("POST", TOOLS, {"id": bad, "skills": 1}, ("id",))
            yield Bad(
                "POST", f"{TASKS}/batch", {"items": [{"needs": 1}, {"id": bad, "needs": 1}]}, ("items[1].id",)
            )
        yield Bad("POST", WORK, {"task_id": bad, "tool_id": "t"}, ("task_id",))
        yield Bad("POST", WORK, {"task_id": "x", "tool_id": bad}, ("tool_id",))
        yield Bad(
            "POST",
            f"{WORK}/batch",
            {"items": [PAIR, {"task_id": "x", "tool_id": bad}]},
            ("items[1].tool_id",),
        )
        yield Bad(
            "POST", f"{TASKS}/remarks", {"items": [{"task_id": bad, "text": "x"}]}, ("items[0].task_id",)
        )
    for bad in ("", "x", UNKNOWN + "\n", UNKNOWN[:-1], UNKNOWN.replace("-", "g"), 5, [], "\u0000"):
        yield Bad("POST", REPORTS, {"id": bad}, ("id",))
        yield Bad(
            "POST",
            f"{WORK}/complete",
            {"items": [{"work_id": bad, "outcome": "failed"}]},
            ("items[0].work_id",),
        )
    for bad in (
        "%00",
        "a%00b",
        "%0a",
        "x%0A",
        "%ff",
        "%ed%a0%80",
        "x" * 129,
        "x" * 5000,
        "a%20b",
        "a%2Fb",
        "%F0%9F%94%AC",
    ):
        for method, path, body in (
            ("GET", f"{TASKS}/{bad}", None), ("GET", f"{TASKS}/{bad}?wait=60", None),
            ("DELETE", f"{TASKS}/{bad}", None),
            ("PUT", f"{TASKS}/{bad}/remark", {"text": "x"}), ("GET", f"{TOOLS}/{bad}", None),
            ("PATCH", f"{TOOLS}/{bad}", {"capacity": 2}), ("DELETE", f"{TOOLS}/{bad}", None),
            ("POST", f"{TOOLS}/{bad}/heartbeat", None), ("GET", f"{TOOLS}/{bad}/work?wait=60", None),
        ):  # fmt: skip
            yield Bad(method, path, body)
    for bad in (
        "x",
        "%00",
        "%ff",
        UNKNOWN[:-1],
        UNKNOWN + "0",
        UNKNOWN + "%0a",
        f"%7B{UNKNOWN}%7D%00",
        "1" * 5000,
    ):
        for method, path, body in (
            ("GET", f"{WORK}/{bad}", None), ("GET", f"{WORK}/{bad}?wait=60", None),
            ("GET", f"{WORK}/{bad}/reports", None),
            ("POST", f"{WORK}/{bad}/start", None), ("POST", f"{WORK}/{bad}/reports", {}),
            ("POST", f"{WORK}/{bad}/complete", {"outcome": "failed"}), ("GET", f"/v1/archive/{bad}", None),
        ):  # fmt: skip
            yield Bad(method, path, body)


def bad_values() -> Iterator[Bad]:
    of_a_task: dict[str, tuple[Any, ...]] = {
        "priority": (-32769, 32768, 10**30, 1.5, "1", None, [], True),
        "max_attempts": (0, -1, 1001, 10**30, 1.5, "3", None, {}),
        "timeout_seconds": (0, -1, 31_536_000.1, 1e300, "1", [], True),
        "retry_backoff_seconds": (-0.1, 86_400.5, 1e300, "1", None, {}, False),
        "not_before": INVALID_TIMES,
    }
    for field, values in of_a_task.items():
        for value in values:
            yield Bad("POST", TASKS, {"needs": 1, field: value}, (field,))
        yield Bad(
            "POST", f"{TASKS}/batch", {"items": [{"needs": 1, field: values[0]}]}, (f"items[0].{field}",)
        )
    of_a_tool: dict[str, tuple[Any, ...]] = {
        "capacity": (0, -1, 10_001, 10**30, 1.5, "1", None, []),
        "lease_seconds": (4.9, 0, -5, 86_400.1, 1e300, "60", None, [], True),
    }
    for field, values in of_a_tool.items():
        for value in values:
            yield Bad("POST", TOOLS, {"skills": 1, field: value}, (field,))
            yield Bad("PATCH", TOOL, {field: value}, (field,))
    for value in (0, 1, "true", None, []):
        yield Bad("POST", TOOLS, {"skills": 1, "resume": value}, ("resume",))
        yield Bad("PATCH", TOOL, {"draining": value}, ("draining",))
        yield Bad("POST", COMPLETE, {"outcome": "failed", "retry": value}, ("retry",))
    for value in (-0.01, 1.01, 1e300, "1", [], True):
        yield Bad("POST", REPORTS, {"progress": value}, ("progress",))
    for value in ("lost", "timed_out", "Succeeded", "", "succeeded\n", None, 5, []):
        yield Bad("POST", COMPLETE, {"outcome": value}, ("outcome",))
        yield Bad(
            "POST",
            f"{WORK}/complete",
            {"items": [{"work_id": UNKNOWN, "outcome": value}]},
            ("items[0].outcome",),
        )
    for value in (-0.1, 60.1, 1e300, "1", None, [], True):
        yield Bad("POST", COMPLETE, {"outcome": "failed", "next_wait_seconds": value}, ("next_wait_seconds",))
    for number in ("1e400", "-1e400", "1e400000"):
        yield Bad("POST", TASKS, f'{{"needs": 1, "timeout_seconds": {number}}}', ("timeout_seconds",))
        yield Bad("POST", TASKS, f'{{"needs": 1, "priority": {number}}}', ("priority",))
        yield Bad("POST", REPORTS, f'{{"progress": {number}}}', ("progress",))


def bad_shapes() -> Iterator[Bad]:
    """Yield requests with missing and unknown fields, and with bodies that are not objects."""
    bodies: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
        ("POST", TASKS, {"needs": 1}, ("needs",)),
        ("POST", TOOLS, {"skills": 1}, ("skills",)),
        ("PATCH", TOOL, {"capacity": 1}, ()),
        ("PUT", REMARK, {"text": "x"}, ("text",)),
        ("POST", WORK, PAIR, ("task_id", "tool_id")),
        ("POST", REPORTS, {"progress": 1}, ()),
        ("POST", COMPLETE, {"outcome": "failed"}, ("outcome",)),
    ]
    for method, path, body, required in bodies:
        for field in ("nope", "Needs", "", "id\u0000", "état", "a.b", "items[0]"):
            yield Bad(method, path, {**body, field: 1}, (field,))
        for missing in required:
            yield Bad(method, path, {key: value for key, value in body.items() if key != missing}, (missing,))
        if required:
            yield Bad(method, path, None, required)
        for odd in ("[]", "null", "5", '"x"', "true", "[{}]"):
            yield Bad(method, path, odd, code="validation_failed")
        for text in (
            "",
            " ",
            "{",
            "}",
            '{"needs"',
            json.dumps(body)[:-1],
            json.dumps(body) + "x",
            b"\xff\xfe{}",
            b"\x00",
        ):
            if required or text not in ("", " "):
                yield Bad(method, path, text)
        for kind in (
            "text/plain",
            "application/xml",
            "multipart/form-data; boundary=x",
            "application/msgpack",
        ):
            yield Bad(method, path, json.dumps(body), content_type=kind, code="unsupported_media_type")
    yield Bad("POST", TASKS, {"id": "a b", "priority": "x", "nope": 1}, ("id", "priority", "nope", "needs"))


def bad_batches() -> Iterator[Bad]:
    batches: list[tuple[str, dict[str, Any], tuple[str, ...], int]] = [
        (f"{TASKS}/batch", {"needs": 1}, ("needs",), 10_000),
        (f"{TASKS}/remarks", {"task_id": "x", "text": "x"}, ("task_id", "text"), 10_000),
        (f"{WORK}/batch", PAIR, ("task_id", "tool_id"), 10_000),
        (f"{WORK}/complete", {"work_id": UNKNOWN, "outcome": "failed"}, ("work_id", "outcome"), 1000),
    ]
    for path, item, required, maximum in batches:
        yield Bad("POST", path, {"items": []}, ("items",))
        yield Bad("POST", path, {}, ("items",))
        yield Bad("POST", path, None, ("items",))
        yield Bad("POST", path, {"items": [item], "nope": 1}, ("nope",))
        for odd in (None, 5, {}, "x"):
            yield Bad("POST", path, {"items": odd}, ("items",))
        for odd in (None, 5, [], "x"):
            yield Bad("POST", path, {"items": [item, item, odd]}, ("items[2]",))
        items = [item] * 20
        for missing in required:
            some = {key: value for key, value in item.items() if key != missing}
            yield Bad("POST", path, {"items": [*items[:13], some, *items[14:]]}, (f"items[13].{missing}",))
            yield Bad(
                "POST", path, {"items": [some, item, some]}, (f"items[0].{missing}", f"items[2].{missing}")
            )
        yield Bad("POST", path, {"items": [*items[:13], {**item, "nope": 1}]}, ("items[13].nope",))
        yield Bad(
            "POST", path, '{"items":[' + ",".join([json.dumps(item)] * (maximum + 1)) + "]}", ("items",)
        )


def bad_lists() -> Iterator[Bad]:
    lists = (TASKS, TOOLS, WORK, "/v1/archive", "/v1/work/WORK/reports")
    for path in lists:
        for value in ("0", "-1", "1001", "x", "1.5", "", "%00", "9" * 40, "true", "%D9%A1"):
            yield Bad("GET", f"{path}?limit={value}", fields=("limit",))
        for value in (
            "garbled",
            "%00",
            "%ff",
            "null",
            "AAAA",
            "W10",
            "eyJhIjoxfQ",
            "gA",
            "x" * 5000,
            UNKNOWN,
            "1",
            "%F0%9F%94%AC",
        ):
            yield Bad("GET", f"{path}?after={value}", fields=("after",))
    for path in (TASKS, TOOLS, WORK):
        for value in ("nope", "", "Available", "%00", "running,failed", "lost"):
            yield Bad("GET", f"{path}?state={value}", fields=("state",))
    for value in ("nope", "", "%00", "running", "Succeeded"):
        yield Bad("GET", f"/v1/archive?outcome={value}", fields=("outcome",))


def bad_filters() -> Iterator[Bad]:
    for value in INVALID_TIMES[:10]:
        for name in ("since", "until"):
            yield Bad("GET", f"/v1/archive?{name}={str(value).replace('+', '%2B')}", fields=(name,))
    for value in (
        "",
        "{",
        "nope",
        "%00",
        "%22%5Cu0000%22",
        "%22%5Cud800%22",
        "1e400000",
        "NaN",
        nested(201),
        "%22%ff%22",
    ):
        yield Bad("GET", f"{TASKS}?needs={value}", fields=("needs",))
    for value in ("-1", "x", "", "NaN", "inf", "%00", "1e400"):
        yield Bad("GET", f"{TASKS}?older_than_seconds={value}", fields=("older_than_seconds",))
    for name, value in (("task_id", "%00"), ("tool_id", "%00"), ("task_id", "a%00b"), ("tool_id", "%00x")):
        for path in (WORK, "/v1/archive"):
            yield Bad("GET", f"{path}?{name}={value}", fields=(name,))


def bad_waits() -> Iterator[Bad]:
    for path in (f"{TASKS}/TASK", f"{TOOL}/work", f"{WORK}/WORK", "/v1/candidates"):
        for value in (
            "-1",
            "-0.1",
            "60.1",
            "61",
            "x",
            "",
            "NaN",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "%00",
            "1_0",
            "0x1",
        ):
            yield Bad("GET", f"{path}?wait={value}", fields=("wait",))
    for value in ("x", "1.5", "", "NaN", "%00"):
        yield Bad("GET", f"{WORK}/WORK?after_version={value}", fields=("after_version",))
    for value in ("0", "1001", "-1", "x", ""):
        yield Bad("GET", f"/v1/candidates?limit={value}", fields=("limit",))
    for value in (
        "garbled",
        "%00",
        "%ff",
        "AAAA",
        "null",
        "x" * 5000,
        UNKNOWN,
        "%F0%9F%94%AC",
        "1",
        "W10",
        "gA",
    ):
        yield Bad("GET", f"/v1/candidates?cursor={value}", fields=("cursor",))


def unknown_parameters() -> Iterator[Bad]:
    for method, path, body in (
        ("GET", TASKS, None), ("GET", f"{TASKS}/TASK", None), ("DELETE", f"{TASKS}/TASK", None),
        ("GET", TOOLS, None),
        ("GET", TOOL, None), ("PATCH", TOOL, {}), ("DELETE", TOOL, None), ("POST", f"{TOOL}/heartbeat", None),
        ("GET", f"{TOOL}/work", None), ("POST", TASKS, {"needs": 1}), ("POST", TOOLS, {"skills": 1}),
        ("GET", WORK, None),
        ("POST", WORK, PAIR), ("GET", f"{WORK}/WORK", None), ("POST", f"{WORK}/WORK/start", None),
        ("POST", REPORTS, {}),
        ("POST", COMPLETE, {"outcome": "failed"}), ("GET", "/v1/candidates", None),
        ("GET", "/v1/archive", None),
        ("PUT", REMARK, {"text": "x"}), ("POST", f"{WORK}/batch", {"items": [PAIR]}),
        ("POST", f"{TASKS}/remarks", {"items": [{"task_id": "x", "text": "x"}]}),
        ("POST", f"{TASKS}/batch", {"items": [{"needs": 1}]}),
    ):  # fmt: skip
        yield Bad(method, f"{path}?nope=1", body, ("nope",))
    yield Bad("DELETE", f"{TASKS}/TASK?force=maybe", fields=("force",))
    # Handlers have other arguments besides the query parameters. Clients cannot set them.
    yield Bad("GET", f"{TASKS}?service=1", fields=("service",))
    yield Bad("POST", f"{TASKS}?data=1", {"needs": 1}, ("data",))
    yield Bad("GET", f"{TASKS}/TASK?request=1&task_id=x", fields=("request", "task_id"))


def odd_parameters() -> Iterator[Bad]:
    """Yield parameters that could be ignored, or treated as absent."""
    for path in (TASKS, TOOLS, WORK):
        yield Bad("GET", f"{path}?state=null", fields=("state",))
        yield Bad("GET", f"{path}?limit=1&limit=2", fields=("limit",))
    yield Bad("GET", f"{TASKS}?older_than_seconds=null&state=failed&state=running", fields=(
        "older_than_seconds", "state",
    ))  # fmt: skip
    yield Bad("GET", "/v1/archive?outcome=null", fields=("outcome",))
    yield Bad("GET", "/v1/archive?task_id=a&task_id=b", fields=("task_id",))
    yield Bad("GET", "/v1/candidates?wait=null", fields=("wait",))
    yield Bad("GET", f"{WORK}/WORK?wait=1&wait=60&after_version=null", fields=("wait", "after_version"))
    yield Bad("DELETE", f"{TASKS}/TASK?force=false&force=true", fields=("force",))


def bad_addresses() -> Iterator[Bad]:
    for path in (
        "/v1",
        "/v1/nope",
        "/v2/tasks",
        "/v1/tasks/TASK/nope",
        "/%00",
        "/v1/%ff",
        "/v1/tasks/TASK/remark/x",
    ):
        yield Bad("GET", path, code="not_found")
    for method, path in (
        ("PUT", TASKS), ("DELETE", TASKS), ("PATCH", f"{TASKS}/TASK"), ("POST", f"{TASKS}/TASK"),
        ("PUT", TOOL),
        ("DELETE", WORK), ("GET", f"{WORK}/WORK/start"), ("GET", f"{WORK}/WORK/complete"),
        ("POST", "/v1/candidates"),
        ("POST", "/v1/archive"), ("GET", REMARK), ("GET", f"{TOOL}/heartbeat"), ("POST", "/health/live"),
    ):  # fmt: skip
        yield Bad(method, path, code="method_not_allowed")
    for path in (f"{WORK}/WORK/start", f"{TOOL}/heartbeat"):
        yield Bad("POST", path, {"nope": 1}, ("nope",))


def name_of(bad: Bad) -> str:
    body = "" if bad.body is None else bad.body if isinstance(bad.body, str) else repr(bad.body)
    text = f"{bad.method} {bad.path} {body} {'' if bad.content_type == JSON else bad.content_type}"
    text = text if len(text) < 120 else f"{text[:80]}...{text[-25:]}"
    return ascii(text)[1:-1]


KINDS = (
    bad_json, bad_texts, bad_ids, bad_values, bad_shapes, bad_batches, bad_lists, bad_filters, bad_waits,
    unknown_parameters, odd_parameters, bad_addresses,
)  # fmt: skip
ALL_BAD = [bad for kind in KINDS for bad in kind()]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def targets(broker: Running) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """Return a client, and the ids for WORK, TASK and TOOL. No refused request may change these objects."""
    http = broker.client
    pair = await add_running_work(http, "target", "target-tool")
    yield http, {"WORK": pair.work, "TASK": pair.task, "TOOL": pair.tool}


@pytest.mark.parametrize("bad", ALL_BAD, ids=name_of)
async def test_an_invalid_request_is_refused_with_the_reason(
    targets: tuple[httpx.AsyncClient, dict[str, str]], bad: Bad
) -> None:
    http, target_ids = targets
    path, body = bad.path, bad.body
    if body is not None and not isinstance(body, str | bytes):
        body = json.dumps(body)
    for name, id_ in target_ids.items():
        path = re.sub(rf"\b{name}\b", id_, path)
        body = body.replace(name, id_) if isinstance(body, str) else body
    headers = {} if body is None else {"content-type": bad.content_type}
    response = await http.request(bad.method, path, content=body, headers=headers, timeout=5)

    text = response.text
    assert 400 <= response.status_code < 500, f"{response.status_code}: {text[:300]}"
    assert response.headers["content-type"].split(";")[0] == "application/problem+json"
    problem = response.json()
    for member in ("type", "title", "detail", "instance", "code"):
        assert isinstance(problem.get(member), str), f"no {member}: {text[:300]}"
    assert problem["status"] == response.status_code
    assert problem["code"] in CODES
    # `instance` may repeat what the client sent.
    texts = {key: value for key, value in problem.items() if key != "instance"}
    assert not LEAKS.search(json.dumps(texts)), text[:500]
    assert len(text) < 20_000
    if bad.code:
        assert problem["code"] == bad.code
    if bad.fields:
        assert (response.status_code, problem["code"]) == (400, "validation_failed")
    if problem["code"] == "validation_failed":
        assert all(error.keys() == {"field", "message"} for error in problem["errors"])
        assert all(error["message"] for error in problem["errors"])
        assert not bad.fields or sorted({e["field"] for e in problem["errors"]}) == sorted(bad.fields), text[
            :500
        ]
        assert problem["errors"], text[:500]


async def test_refused_requests_change_nothing_and_leave_the_broker_ready(
    targets: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    http, target_ids = targets
    assert (await http.get("/health/ready")).status_code == 200
    assert [task["id"] for task in (await get(http, "/v1/tasks"))["items"]] == [target_ids["TASK"]]
    assert [tool["id"] for tool in (await get(http, "/v1/tools"))["items"]] == [target_ids["TOOL"]]
    work = await get(http, f"/v1/work/{target_ids['WORK']}")
    assert (work["state"], work["reports"], work["cancel_requested"]) == ("running", [], False)


async def test_one_invalid_submission_does_not_affect_concurrent_ones(http: httpx.AsyncClient) -> None:
    bodies = [f'{{"id": "x{n}", "needs": {"1e400000" if n % 10 == 3 else n}}}' for n in range(60)]
    send = [http.post("/v1/tasks", content=body, headers={"content-type": JSON}) for body in bodies]
    responses = await asyncio.gather(*send)
    assert [response.status_code for response in responses] == [
        400 if n % 10 == 3 else 201 for n in range(60)
    ]


async def test_one_invalid_completion_does_not_affect_concurrent_ones(http: httpx.AsyncClient) -> None:
    works = [(await add_assigned_work(http, f"x{n}")).work for n in range(20)]
    send = [
        http.post(
            f"/v1/work/{work}/complete",
            content=f'{{"outcome": "succeeded", "result": {"1e400000" if n % 5 == 3 else n}}}',
            headers={"content-type": JSON},
        )
        for n, work in enumerate(works)
    ]
    responses = await asyncio.gather(*send)
    assert [response.status_code for response in responses] == [400 if n % 5 == 3 else 200 for n in range(20)]


async def test_one_invalid_report_does_not_affect_concurrent_ones(http: httpx.AsyncClient) -> None:
    works = [(await add_assigned_work(http, f"x{n}")).work for n in range(20)]
    send = [
        http.post(
            f"/v1/work/{work}/reports",
            content=f'{{"data": {"1e400000" if n % 5 == 3 else n}}}',
            headers={"content-type": JSON},
        )
        for n, work in enumerate(works)
    ]
    responses = await asyncio.gather(*send)
    assert [response.status_code for response in responses] == [400 if n % 5 == 3 else 201 for n in range(20)]


# Size


@pytest.mark.parametrize(
    "around", ["%s", '{"needs": 1, "items": [{"needs": %s}]}', '{"unknown": %s, "id": 7}']
)
async def test_a_very_deep_body_with_other_errors_is_refused(http: httpx.AsyncClient, around: str) -> None:
    for deep in (nested(5_000), nested_objects(5_000), "[" * 200_000):
        body = (around % deep).encode()
        for path in (TASKS, "/v1/tasks/batch", WORK):
            response = await http.post(path, content=body, headers={"Content-Type": JSON})
            assert response.status_code == 400, response.text[:300]
            assert response.json()["code"] in ("validation_failed", "malformed_json")


async def test_a_body_beyond_the_limit_is_too_large(http: httpx.AsyncClient) -> None:
    body = b'{"needs": 1, "payload": "' + b"x" * LARGEST_BODY_BYTES + b'"}'
    response = await http.post("/v1/tasks", content=body, headers={"content-type": JSON})
    assert_problem(response, 413, "payload_too_large")


async def test_the_limits_are_settings_and_apply_to_chunked_bodies(database: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"needs": 1, "payload": "'
        for _ in range(20):
            yield b"x" * 200
        yield b'"}'

    limits = {"max_body_bytes": 2048, "max_depth": 5, "max_match_bytes": 100, "max_text_chars": 50}
    async with running_broker(Settings(database_url=database, **limits)) as small:
        http = small.client
        response = await http.post("/v1/tasks", content=chunks(), headers={"content-type": JSON})
        assert_problem(response, 413, "payload_too_large")
        for field, value in (("needs", "x" * 200), ("payload", [[[[[[]]]]]])):
            problem = assert_problem(
                await http.post("/v1/tasks", json={"needs": 1, field: value}), 400, "validation_failed"
            )
            assert [error["field"] for error in problem["errors"]] == [field]
        problem = assert_problem(
            await http.put("/v1/tasks/x/remark", json={"text": "x" * 51}), 400, "validation_failed"
        )
        assert [error["field"] for error in problem["errors"]] == ["text"]
        assert (await http.get("/health/ready")).status_code == 200


async def test_a_content_type_with_a_charset_is_accepted(http: httpx.AsyncClient) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        response = await http.post("/v1/tasks", content=b'{"needs": 1}', headers={"content-type": kind})
        assert response.status_code == 201


async def test_a_refused_method_names_the_allowed_ones(http: httpx.AsyncClient) -> None:
    for path, allowed in (("/v1/tasks", {"GET", "POST"}), ("/v1/tools/x", {"GET", "PATCH", "DELETE"})):
        response = await http.put(path)
        assert allowed <= set(re.split(r",\s*", response.headers["allow"]))


async def test_options_returns_every_method_of_a_path(http: httpx.AsyncClient) -> None:
    for path, expected in (
        ("/v1/tasks", {"GET", "POST"}), ("/v1/tools/x", {"GET", "PATCH", "DELETE"}),
        ("/v1/work/x/reports", {"GET", "POST"}), ("/v1/tasks/batch", {"GET", "POST", "DELETE"}),
    ):  # fmt: skip
        response = await http.options(path)
        assert (response.status_code, response.content) == (204, b"")
        assert set(re.split(r",\s*", response.headers["allow"])) == expected | {"OPTIONS"}


async def test_the_text_null_is_a_text_where_an_id_is_expected(http: httpx.AsyncClient) -> None:
    await add_task(http, "null", needs=None)
    await add_task(http, "other", needs=1)
    assert [task["id"] for task in (await get(http, "/v1/tasks?needs=null"))["items"]] == ["null"]
    pair = await add_assigned_work(http, "pair", "null")
    assert [work["id"] for work in (await get(http, "/v1/work?tool_id=null"))["items"]] == [pair.work]
    assert (await get(http, "/v1/work?task_id=null"))["items"] == []


async def test_a_problem_uses_the_field_names_of_the_request(http: httpx.AsyncClient) -> None:
    body = {"items": [{"needs": 1}] * 13 + [{"id": "a b", "priority": 10**6, "nope": 0}]}
    problem = assert_problem(await http.post("/v1/tasks/batch", json=body), 400, "validation_failed")
    names = {error["field"] for error in problem["errors"]}
    assert names == {"items[13].id", "items[13].priority", "items[13].nope", "items[13].needs"}


# All JSON that can be stored

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
numbers = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**40), max_value=10**40),
    st.decimals(allow_nan=False, allow_infinity=False, places=12),
    st.builds(
        lambda mantissa, exponent: Decimal(mantissa).scaleb(exponent),
        st.integers(-(10**18), 10**18),
        st.integers(-300, 300),
    ),
    st.sampled_from(
        [Decimal("1.10"), Decimal("-0.0"), Decimal("0.1"), 2**53 + 1, 10**30 - 1, Decimal("1E+400")]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=5)),
    max_leaves=20,
)


def to_json(value: Any) -> str:
    """Return JSON with every digit of a Decimal, which the json module does not support."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(to_json, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{to_json(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@given(value=values, raw=st.booleans())
@settings(max_examples=60 if THOROUGH else 30, deadline=None, suppress_health_check=list(HealthCheck))
async def test_every_field_returns_json_that_equals_the_stored_json(
    broker: Running, value: Any, raw: bool
) -> None:
    http, task, tool = broker.client, str(uuid4()), str(uuid4())
    text = to_json(value)
    expected = parse_exactly(text)
    if raw:  # the same text, without escapes
        text = re.sub(
            r"(\\u[0-9a-f]{4})+",
            lambda match: json.dumps(json.loads(f'"{match[0]}"'), ensure_ascii=False)[1:-1],
            text,
        )

    async def send(path: str, body: str) -> Any:
        response = await http.post(path, content=body.encode(), headers={"content-type": JSON})
        assert response.status_code in (200, 201), response.text[:500]
        return parse_exactly(response.text)

    new_task = await send("/v1/tasks", f'{{"id": "{task}", "needs": {text}, "payload": {text}}}')
    new_tool = await send("/v1/tools", f'{{"id": "{tool}", "skills": {text}}}')
    work = await send("/v1/work", f'{{"task_id": "{task}", "tool_id": "{tool}"}}')
    await send(f"/v1/work/{work['id']}/reports", f'{{"data": {text}}}')
    done = await send(f"/v1/work/{work['id']}/complete", f'{{"outcome": "succeeded", "result": {text}}}')
    record = parse_exactly((await http.get(f"/v1/archive/{work['id']}")).text)
    ended = parse_exactly((await http.get(f"/v1/tasks/{task}")).text)
    assert record == done["archived"]
    for returned in (
        new_task["needs"], new_task["payload"], new_tool["skills"], work["needs"], work["payload"],
        record["result"],
        record["reports"][0]["data"], record["task"]["needs"], record["task"]["payload"],
        record["tool"]["skills"],
        ended["result"], ended["needs"], ended["payload"],
    ):  # fmt: skip
        assert returned == expected


@pytest.mark.parametrize(
    "number",
    ["1.10", "123456789012345678901234567890", "0.1000000000000000055511151231257827", "1.0", "0.00", "-7.50",
     "3.141592653589793238462643383279502884197", "9007199254740993", "1" * 1000],
)  # fmt: skip
async def test_a_number_keeps_all_its_digits(http: httpx.AsyncClient, number: str) -> None:
    body = f'{{"id": "a", "needs": [{number}], "payload": {number}}}'
    await http.post("/v1/tasks", content=body, headers={"content-type": JSON})
    for path in ("/v1/tasks/a", "/v1/tasks", "/v1/candidates"):
        text = (await http.get(path)).text
        assert re.search(r'"payload": ?' + re.escape(number) + r"[,}]", text)
        assert re.search(r'"needs": ?\[' + re.escape(number) + r"\]", text)


# Health, description and documentation page


async def test_the_health_endpoints_report_live_and_ready(http: httpx.AsyncClient) -> None:
    for path in ("/health/live", "/health/ready"):
        response = await http.get(path)
        assert (response.status_code, response.headers["content-type"].split(";")[0]) == (200, JSON)


async def test_the_api_is_described_as_openapi_3_1(http: httpx.AsyncClient) -> None:
    document = await get(http, "/openapi.json")
    assert document["openapi"].startswith("3.1")
    described = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path))
        for path, item in document["paths"].items()
        for method in item
    }
    assert described >= {
        ("POST", "/v1/tools"), ("GET", "/v1/tools"), ("GET", "/v1/tools/{}"), ("PATCH", "/v1/tools/{}"),
        ("DELETE", "/v1/tools/{}"), ("POST", "/v1/tools/{}/heartbeat"), ("GET", "/v1/tools/{}/work"),
        ("POST", "/v1/tasks"), ("POST", "/v1/tasks/batch"), ("GET", "/v1/tasks"), ("GET", "/v1/tasks/{}"),
        ("DELETE", "/v1/tasks/{}"), ("PUT", "/v1/tasks/{}/remark"), ("POST", "/v1/tasks/remarks"),
        ("GET", "/v1/candidates"), ("POST", "/v1/work"), ("POST", "/v1/work/batch"), ("GET", "/v1/work"),
        ("GET", "/v1/work/{}"), ("POST", "/v1/work/{}/start"), ("POST", "/v1/work/{}/reports"),
        ("GET", "/v1/work/{}/reports"), ("POST", "/v1/work/{}/complete"), ("POST", "/v1/work/complete"),
        ("GET", "/v1/archive"), ("GET", "/v1/archive/{}"), ("GET", "/health/live"), ("GET", "/health/ready"),
    }  # fmt: skip


def schema_at(document: Any, schema: Any) -> Any:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


async def test_every_described_request_body_has_an_example(
    http: httpx.AsyncClient,
) -> None:
    document = await get(http, "/openapi.json")
    without = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get(JSON)
            if content is None:
                continue
            schema = schema_at(document, content["schema"])
            if not (
                "example" in content
                or content.get("examples")
                or schema.get("examples")
                or "example" in schema
            ):
                without.append(f"{method.upper()} {path}")
    assert without == []


async def test_an_optional_body_is_described_as_optional(http: httpx.AsyncClient) -> None:
    document = await get(http, "/openapi.json")
    paths = {re.sub(r"\{.*?\}", "{}", path): item for path, item in document["paths"].items()}
    for operation in (paths["/v1/work/{}/reports"]["post"], paths["/v1/tools/{}"]["patch"]):
        assert not operation["requestBody"].get("required", False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("post", "/v1/tools", "200"), ("post", "/v1/tasks", "200"), ("post", "/v1/work", "200"),
        ("post", "/v1/work/{}/reports", "200"), ("delete", "/v1/tasks/{}", "202"),
    ],
)  # fmt: skip
async def test_the_second_success_status_of_an_operation_is_described(
    http: httpx.AsyncClient, method: str, path: str, status: str
) -> None:
    document = await get(http, "/openapi.json")
    paths = {re.sub(r"\{.*?\}", "{}", path): item for path, item in document["paths"].items()}
    assert status in paths[path][method]["responses"]


class Page(HTMLParser):
    """A parsed page, with the URLs that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        self.loaded += [value for name, value in attrs if name == wanted and value]


async def test_the_documentation_page_loads_nothing_from_other_hosts(http: httpx.AsyncClient) -> None:
    response = await http.get("/docs")
    assert (response.status_code, response.headers["content-type"].split(";")[0]) == (200, "text/html")
    page = Page()
    page.feed(response.text)
    assert page.loaded
    assert "//" not in re.sub(
        r"<!--.*?-->|<!doctype[^>]*>", "", response.text, flags=re.DOTALL | re.IGNORECASE
    )
    for path in [each for each in page.loaded if each != "data:,"]:  # no icon
        assert path.startswith("/") or not re.match(r"\w+:", path)
        loaded = await http.get(path)
        assert loaded.status_code == 200
        if path.endswith(".css"):
            assert not re.findall(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", loaded.text)
        if "validator.swagger.io" in loaded.text:  # Swagger UI contacts it unless the page turns that off
            assert re.search(
                r"validatorUrl\W+(null|\"none\")", "".join([(await http.get(p)).text for p in page.loaded])
            )


async def test_the_description_names_no_other_host(http: httpx.AsyncClient) -> None:
    document = await get(http, "/openapi.json")
    assert all(server["url"].startswith("/") for server in document.get("servers", []))
    assert '$ref": "http' not in json.dumps(document)


async def test_a_refused_request_does_not_wait(http: httpx.AsyncClient) -> None:
    await add_tool(http)
    async with asyncio.timeout(5):
        assert (await http.get("/v1/tools/t/work?wait=60&nope=1")).status_code == 400


async def test_a_long_poll_survives_invalid_requests_of_other_clients(
    broker: Running, http: httpx.AsyncClient
) -> None:
    await add_tool(http)
    await add_task(http)
    poll = await start_long_poll(broker, "GET", "/v1/tools/t/work?wait=60")
    for body in (b"{", b'{"task_id": "a"}', b'{"task_id": "a\\u0000", "tool_id": "t"}'):
        await http.post("/v1/work", content=body, headers={"content-type": JSON})
    work = await assign(http)
    assert [item["id"] for item in (await finish_long_poll(poll))["items"]] == [work["id"]]
