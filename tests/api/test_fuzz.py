"""Thousands of odd requests, to every call: none is a 500, none tells what is inside, and all is well after.

They are made by chance, but the same every time; `BROKER_TEST_SEED` makes others.
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
CALLS: list[tuple[str, str, Any]] = [
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


class Answer(NamedTuple):
    """An answer as it came; status 0: the connection was closed without a word."""

    status: int
    kind: str
    body: bytes


class Requests:
    """Makes requests by chance.

    Args:
        seed: The same seed, the same requests.
        known: Ids of work under way, of records and the like: some of the requests are about what is there.
    """

    def __init__(self, seed: int, known: list[str]) -> None:
        self._chance = random.Random(seed)
        self._known = known

    def make(self) -> bytes:
        """One request, as it goes over the wire."""
        chance = self._chance
        method, target, body = chance.choice(CALLS)
        if self._known and chance.random() < 0.7:
            target = target.replace(ID, chance.choice(self._known))
        content = b"" if body is None else self._spoil_body(body)
        headers = ["Host: localhost", "Content-Type: application/json"]
        if chance.random() < 0.4:
            target = self._spoil_target(target)
        if chance.random() < 0.15:
            odd = chance.choice(ODD_HEADERS)
            headers = [header for header in headers if header.split(":")[0] != odd.split(":")[0]] + [odd]
        if chance.random() < 0.08:
            method = chance.choice(ODD_METHODS)
        if content or chance.random() < 0.5:
            headers.append(f"Content-Length: {len(content)}")
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""])
        return head.encode("utf-8", "surrogatepass") + content

    def _spoil_body(self, body: Any) -> bytes:
        how = self._chance.random()
        if how < 0.5:
            return self._with_odd_value(body).encode()
        text = bytearray(json.dumps(body).encode())
        if how < 0.9:
            for _ in range(self._chance.randint(1, 4)):
                self._spoil_bytes(text)
            return bytes(text)
        return self._chance.randbytes(self._chance.randint(0, 60)) if how < 0.95 else bytes(text)

    def _with_odd_value(self, body: Any) -> str:
        """The body as JSON, with some of its values replaced, left out or doubled."""
        odd = self._chance.choice(ODD_JSON)
        if isinstance(body, dict):
            name = self._chance.choice([*body, "unknown"])
            parts = [
                f"{json.dumps(key)}:{self._with_odd_value(value) if key == name else json.dumps(value)}"
                for key, value in body.items()
                if key != name or self._chance.random() < 0.8
            ]
            if name == "unknown":
                parts.append(f'"unknown":{odd}')
            return "{" + ",".join(parts) + "}"
        if isinstance(body, list) and body and self._chance.random() < 0.6:
            place = self._chance.randrange(len(body))
            return "[" + ",".join(
                self._with_odd_value(each) if number == place else json.dumps(each)
                for number, each in enumerate(body)
            ) + "]"  # fmt: skip
        return odd

    def _spoil_bytes(self, text: bytearray) -> None:
        place = self._chance.randrange(len(text) or 1)
        match self._chance.randrange(4):
            case 0:
                text[place : place + 1] = self._chance.randbytes(1)
            case 1:
                del text[place : place + self._chance.randint(1, 20)]
            case 2:
                text[place:place] = self._chance.choice(ODD_JSON)[:2000].encode("utf-8", "surrogatepass")
            case 3:
                text[place:place] = self._chance.choice(b'{}[]",:\\ \x00\xff'.hex(" ").split()).encode()

    def _spoil_target(self, target: str) -> str:
        odd = self._chance.choice(ODD_TEXTS)
        path, _, query = target.partition("?")
        if query and self._chance.random() < 0.7:
            parts = query.split("&")
            place = self._chance.randrange(len(parts))
            name = parts[place].partition("=")[0]
            if name != "wait" or not re.fullmatch(r"[0-9.+e]+", odd):
                parts[place] = f"{name}={odd}"
            return f"{path}?{'&'.join(parts)}"
        segments = path.split("/")
        segments[self._chance.randrange(1, len(segments))] = odd
        return "/".join(segments) + (
            f"?{query}" if query else self._chance.choice(["", "?", "?x=1", "?limit="])
        )


class Client:
    """Sends requests over a connection, and a new one when that is closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Answer:
        """Send a request as it is, and read the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            response, goes_on = await self._read(reader, is_head=request.startswith(b"HEAD "))
        except (asyncio.IncompleteReadError, ConnectionError):
            response, goes_on = Answer(0, "", b""), False
        # What was said of its length may be wrong: what is left would be the beginning of the next.
        if not goes_on or request.count(b"Content-Length") > 1 or b"Transfer-Encoding" in request:
            await self.close()
        return response

    async def _read(self, reader: asyncio.StreamReader, *, is_head: bool) -> tuple[Answer, bool]:
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
        return Answer(int(head.split()[1]), kind[1] if kind else "", body), "connection: close" not in head

    async def close(self) -> None:
        """Close the connection; the next request goes over a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def test_thousands_of_odd_requests(database: str) -> None:
    with serving(BROKER_DATABASE_URL=database) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            known = await some_history(http)
            seen = await fuzz(httpx.URL(url).port or 0, known)
            assert seen.keys() & {200, 201, 202, 204, 400, 404, 405, 409, 415} >= {
                200,
                201,
                400,
                404,
                405,
                409,
                415,
            }
            # It is well, and does its work.
            assert (await get(http, "/health/ready"))["status"] == "ready"
            assert await some_history(http, "after")
        process.terminate()
        assert await wait_for_exit(process, within=20) == 0
        said = process.stderr.read().decode() if process.stderr else ""
    assert not LEAKS.search(said), said[-3000:]
    assert "request failed" not in said
    connection = await asyncpg.connect(libpq_url(database))
    try:
        # Tools were made smaller, tasks retried, records deleted.
        but = {
            "no tool exceeds its capacity, unless it was resized",
            "a task counts the attempts in the archive",
        }
        await check_invariants(connection, but=but)
    finally:
        await connection.close()


async def fuzz(port: int, known: list[str]) -> dict[int, int]:
    """Send them all; how many answers of each status there were."""
    seen: dict[int, int] = {}

    async def send(number: int) -> None:
        client, requests = Client(port), Requests(SEED + number, known)
        for _ in range(REQUESTS // CLIENTS):
            request = requests.make()
            try:
                async with asyncio.timeout(20):
                    response = await client.send(request)
            except TimeoutError:
                pytest.fail(f"no answer to {request[:2000]!r}")
            seen[response.status] = seen.get(response.status, 0) + 1
            check(request, response)
        await client.close()

    await asyncio.gather(*(send(number) for number in range(CLIENTS)))
    return seen


def check(request: bytes, response: Answer) -> None:
    """An answer says what it is, and nothing of what is inside."""
    told = f"{request[:2000]!r} was answered {response.status}: {response.body[:1000]!r}"
    assert response.status < 500, told
    if response.status >= 400 and response.body:
        assert response.kind == "application/problem+json", told
        problem = json.loads(response.body)
        assert problem["status"] == response.status, told
        # What was sent may be told again in the name of a field, or as the place.
        ours = " ".join(
            [problem["title"], problem["detail"], *(e["message"] for e in problem.get("errors", []))]
        )
        assert not LEAKS.search(ours), told


async def some_history(http: httpx.AsyncClient, suffix: str = "") -> list[str]:
    """Work of every kind, so that there is something to meet; the ids of some of it."""
    tool = (await add_tool(http, f"t{suffix}", capacity=100, resume=True))["id"]
    works = []
    for number in range(6):
        name = f"known-{number}{suffix}"
        await add_task(http, name)
        works.append((await assign(http, name, tool))["id"])
    await complete_work(http, works[0])
    await complete_work(http, works[1], "failed", retry=False)
    return works
