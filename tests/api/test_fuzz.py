"""Thousands of malformed requests to every operation: no response is a 500 or reveals internals.

The requests are pseudo-random, and the same in every run. `BROKER_TEST_SEED` changes them.
"""

import asyncio
import json
import os
import random
import re
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest

from broker.store.address import libpq_url
from tests.api.test_errors import LEAKS
from tests.support.api import add_task, add_tool, assign, complete_work, get
from tests.support.processes import serving, wait_for_exit, wait_until_ready
from tests.support.shared import THOROUGH
from tests.support.steps import check_invariants

REQUESTS = 10_000 if THOROUGH else 4_000
CLIENTS = 4
SEED = int(os.environ.get("BROKER_TEST_SEED", "20261125"))

TASK = {"id": "a", "needs": {"n": [1, "x"]}, "payload": None, "priority": 1, "max_attempts": 2}
TASK |= {"not_before": "2030-01-01T00:00:00Z", "timeout_seconds": 1.5, "retry_backoff_seconds": 0}
TOOL = {"id": "t", "skills": ["x"], "capacity": 3, "lease_seconds": 60, "resume": True}
PAIR = {"task_id": "a", "tool_id": "t"}
END = {"outcome": "failed", "result": {"r": 1}, "error": "e", "retry": True}
ID = "01920000-0000-7000-8000-000000000000"
OPERATIONS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/tools", TOOL),
    ("GET", "/v1/tools?state=idle&limit=5&after=x", None),
    ("GET", "/v1/tools/t", None),
    ("PATCH", "/v1/tools/t", {"skills": 1, "capacity": 2, "lease_seconds": 5, "draining": False}),
    ("DELETE", "/v1/tools/gone?force=true", None),
    ("POST", "/v1/tools/t/heartbeat", {}),
    ("GET", "/v1/tools/t/work?wait=0", None),
    ("POST", "/v1/tasks", TASK),
    ("POST", "/v1/tasks/batch", {"items": [TASK, {"needs": 1}]}),
    ("GET", "/v1/tasks?state=available&needs=%7B%7D&older_than_seconds=1&limit=5&after=x", None),
    ("GET", "/v1/tasks/a?wait=0", None),
    ("GET", "/v1/tasks/a/explain", None),
    ("DELETE", "/v1/tasks/gone?force=true", None),
    ("POST", "/v1/tasks/a/retry", {}),
    ("PUT", "/v1/tasks/a/remark", {"text": "because"}),
    ("POST", "/v1/tasks/remarks", {"items": [{"task_id": "a", "text": "because"}]}),
    ("GET", "/v1/candidates?limit=5&cursor=x&wait=0", None),
    ("POST", "/v1/work", PAIR),
    ("POST", "/v1/work/batch", {"items": [PAIR, PAIR]}),
    ("GET", "/v1/work?tool_id=t&task_id=a&state=running&limit=5&after=x", None),
    ("GET", f"/v1/work/{ID}?wait=0&after_version=1", None),
    ("POST", f"/v1/work/{ID}/start", {}),
    ("POST", f"/v1/work/{ID}/reports", {"id": ID, "progress": 0.5, "message": "m", "data": [1]}),
    ("GET", f"/v1/work/{ID}/reports?limit=5&after=x", None),
    ("POST", f"/v1/work/{ID}/complete", END),
    ("POST", "/v1/work/complete", {"items": [{"work_id": ID} | END]}),
    ("POST", f"/v1/work/{ID}/cancel", {"requeue": True}),
    ("GET", "/v1/archive?task_id=a&tool_id=t&outcome=lost&since=2030-01-01T00:00:00Z&limit=5&after=x", None),
    ("GET", "/v1/archive/export?task_id=a&until=2030-01-01T00:00:00Z", None),
    ("GET", f"/v1/archive/{ID}", None),
    ("DELETE", f"/v1/archive/{ID}", None),
    ("POST", f"/v1/archive/{ID}/accept", {}),
    ("GET", "/health/ready", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/docs/assets/start.js", None),
]
ODD_JSON = [
    "null", "true", "0", "-1", "1e400000", "1e99999999999", "-0.0", "9" * 400, '""', '"\\u0000"',
    '"\\ud800"', '"\U0001f52c"', "[]", "{}", "[" * 300 + "]" * 300, '{"a":' * 5000 + "1" + "}" * 5000,
    '"' + "x" * 20_000 + '"', "NaN", "Infinity", "'x'", '"2030-01-01"', "32768", "2147483648",
    "9223372036854775808", "1.5", "[1,]", '{"a":1,"a":2}', '"\x01"', '"; drop table tasks; --"',
    '"$(reboot)"', '"../../etc/passwd"', '{"__proto__":1}',
]  # fmt: skip
ODD_TEXTS = [
    "", "%00", "%ff", "%", "%zz", "..", "%2e%2e%2f", "a" * 3000, "'", "%27%20or%201=1--", "%0d%0aX:1", "*",
    "null", "-1", "0", "1e9", "nan", "inf", "%F0%9F%94%AC", "{}", "[", "%5B%5D", "batch", "remarks",
    "complete", "export", "99999999999999999999", "true", "1.5", "0x10", "١", "+", "%2B", "a,b", "a%20b",
    ID, ID.upper(), ID[:-1],
]  # fmt: skip
ODD_HEADERS = [
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Type:",
    "Content-Type: multipart/form-data; boundary=x", "Content-Encoding: gzip", "Accept: application/xml",
    "Prefer: wait=nonsense", "Prefer: ,,;=", "Prefer: wait=-1e999", "Authorization: Bearer",
    "Authorization: x", "Authorization: Bearer bt_////", "Authorization: Bearer bt_" + "A" * 80,
    "X-Forwarded-For: '", "Range: bytes=0-1", "If-None-Match: *", "Cookie: a=\x7f", "Expect: 100-continue",
    "Accept-Encoding: *;q=0", "X-HTTP-Method: DELETE", "Transfer-Encoding: chunked", "Content-Length: -1",
    "Content-Length: 1", "Origin: null", "Host: elsewhere", "X: " + "y" * 9000, "\x00: x", "no colon",
]  # fmt: skip
ODD_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "BREW", "PROPFIND"]


class Response(NamedTuple):
    """A received response. Its status is 0 if the broker closed the connection without a response."""

    status: int
    kind: str
    body: bytes


class Requests:
    """A generator of pseudo-random requests.

    Args:
        seed: The seed. The same seed generates the same requests.
        known: Ids of work, so some of the requests refer to existing objects.
    """

    def __init__(self, seed: int, known: list[str]) -> None:
        self._rng = random.Random(seed)
        self._known = known

    def make(self) -> bytes:
        """Return the bytes of a request."""
        rng = self._rng
        method, target, body = rng.choice(OPERATIONS)
        if self._known and rng.random() < 0.7:
            target = target.replace(ID, rng.choice(self._known))
        content = b"" if body is None else self._spoil_body(body)
        headers = ["Host: localhost", "Content-Type: application/json"]
        if rng.random() < 0.4:
            target = self._spoil_target(target)
        if rng.random() < 0.15:
            odd = rng.choice(ODD_HEADERS)
            headers = [header for header in headers if header.split(":")[0] != odd.split(":")[0]] + [odd]
        if rng.random() < 0.08:
            method = rng.choice(ODD_METHODS)
        if content or rng.random() < 0.5:
            headers.append(f"Content-Length: {len(content)}")
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""])
        return head.encode("utf-8", "surrogatepass") + content

    def _spoil_body(self, body: Any) -> bytes:
        draw = self._rng.random()
        if draw < 0.5:
            return self._with_odd_value(body).encode()
        text = bytearray(json.dumps(body).encode())
        if draw < 0.9:
            for _ in range(self._rng.randint(1, 4)):
                self._spoil_bytes(text)
            return bytes(text)
        return self._rng.randbytes(self._rng.randint(0, 60)) if draw < 0.95 else bytes(text)

    def _with_odd_value(self, body: Any) -> str:
        """Return the body as JSON, with some of its values replaced or removed."""
        odd = self._rng.choice(ODD_JSON)
        if isinstance(body, dict):
            name = self._rng.choice([*body, "unknown"])
            parts = [
                f"{json.dumps(key)}:{self._with_odd_value(value) if key == name else json.dumps(value)}"
                for key, value in body.items()
                if key != name or self._rng.random() < 0.8
            ]
            if name == "unknown":
                parts.append(f'"unknown":{odd}')
            return "{" + ",".join(parts) + "}"
        if isinstance(body, list) and body and self._rng.random() < 0.6:
            position = self._rng.randrange(len(body))
            return "[" + ",".join(
                self._with_odd_value(each) if number == position else json.dumps(each)
                for number, each in enumerate(body)
            ) + "]"  # fmt: skip
        return odd

    def _spoil_bytes(self, text: bytearray) -> None:
        position = self._rng.randrange(len(text) or 1)
        match self._rng.randrange(4):
            case 0:
                text[position : position + 1] = self._rng.randbytes(1)
            case 1:
                del text[position : position + self._rng.randint(1, 20)]
            case 2:
                text[position:position] = self._rng.choice(ODD_JSON)[:2000].encode("utf-8", "surrogatepass")
            case 3:
                text[position:position] = self._rng.choice(b'{}[]",:\\ \x00\xff'.hex(" ").split()).encode()

    def _spoil_target(self, target: str) -> str:
        odd = self._rng.choice(ODD_TEXTS)
        path, _, query = target.partition("?")
        if query and self._rng.random() < 0.7:
            parts = query.split("&")
            position = self._rng.randrange(len(parts))
            name = parts[position].partition("=")[0]
            if name != "wait" or not re.fullmatch(r"[0-9.+e]+", odd):
                parts[position] = f"{name}={odd}"
            return f"{path}?{'&'.join(parts)}"
        segments = path.split("/")
        segments[self._rng.randrange(1, len(segments))] = odd
        return "/".join(segments) + (f"?{query}" if query else self._rng.choice(["", "?", "?x=1", "?limit="]))


class Client:
    """A client that opens a new connection when the broker has closed the previous one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Response:
        """Send the bytes of a request, and read the response."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            response, is_open = await self._read(reader, is_head=request.startswith(b"HEAD "))
        except (asyncio.IncompleteReadError, ConnectionError):
            response, is_open = Response(0, "", b""), False
        # If the length may be wrong, the rest of this request would be read as the next one.
        if not is_open or request.count(b"Content-Length") > 1 or b"Transfer-Encoding" in request:
            await self.close()
        return response

    async def _read(self, reader: asyncio.StreamReader, *, is_head: bool) -> tuple[Response, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if head.startswith("http/1.1 100"):
            return await self._read(reader, is_head=is_head)
        if "transfer-encoding: chunked" in head:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            length = re.search(r"content-length: (\d+)", head)
            body = b"" if is_head else await reader.readexactly(int(length[1]) if length else 0)
        kind = re.search(r"content-type: ([\w/+-]+)", head)
        return Response(int(head.split()[1]), kind[1] if kind else "", body), "connection: close" not in head

    async def close(self) -> None:
        """Close the connection. The next request opens a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def test_thousands_of_malformed_requests_cause_no_server_error(database: str) -> None:
    with serving(BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            known = await add_history(http)
            statuses = await fuzz(httpx.URL(url).port or 0, known)
            assert statuses.keys() & {200, 201, 202, 204, 400, 404, 405, 409, 415} >= {
                200,
                201,
                400,
                404,
                405,
                409,
                415,
            }
            # The broker is ready, and still does its work.
            assert (await get(http, "/health/ready"))["status"] == "ready"
            assert await add_history(http, "after")
        process.terminate()
        assert await wait_for_exit(process, within=20) == 0
        log = process.stderr.read().decode() if process.stderr else ""
    assert not LEAKS.search(log), log[-3000:]
    assert "request failed" not in log
    connection = await asyncpg.connect(libpq_url(database))
    try:
        # The requests have reduced capacities, retried tasks and deleted records.
        but = {
            "no tool exceeds its capacity, unless it was resized",
            "a task counts the attempts in the archive",
        }
        await check_invariants(connection, but=but)
    finally:
        await connection.close()


async def fuzz(port: int, known: list[str]) -> dict[int, int]:
    """Send all requests. Return the number of responses by status."""
    counts: dict[int, int] = {}

    async def send(number: int) -> None:
        client, requests = Client(port), Requests(SEED + number, known)
        for _ in range(REQUESTS // CLIENTS):
            request = requests.make()
            try:
                async with asyncio.timeout(20):
                    response = await client.send(request)
            except TimeoutError:
                pytest.fail(f"no response to {request[:2000]!r}")
            counts[response.status] = counts.get(response.status, 0) + 1
            check(request, response)
        await client.close()

    await asyncio.gather(*(send(number) for number in range(CLIENTS)))
    return counts


def check(request: bytes, response: Response) -> None:
    """Check that a response has a valid form and reveals no internals."""
    message = f"{request[:2000]!r} returned {response.status}: {response.body[:1000]!r}"
    assert response.status < 500, message
    if response.status >= 400 and response.body:
        assert response.kind == "application/problem+json", message
        problem = json.loads(response.body)
        assert problem["status"] == response.status, message
        # Only `errors[].field` and `instance` may repeat what the client sent.
        texts = " ".join(
            [problem["title"], problem["detail"], *(e["message"] for e in problem.get("errors", []))]
        )
        assert not LEAKS.search(texts), message


async def add_history(http: httpx.AsyncClient, suffix: str = "") -> list[str]:
    """Create running, succeeded and failed work, and return its ids."""
    tool = (await add_tool(http, f"t{suffix}", capacity=100, resume=True))["id"]
    works = []
    for number in range(6):
        name = f"known-{number}{suffix}"
        await add_task(http, name)
        works.append((await assign(http, name, tool))["id"])
    await complete_work(http, works[0])
    await complete_work(http, works[1], "failed", retry=False)
    return works
