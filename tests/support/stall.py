"""Request bodies that are slow to parse, and a probe that measures whether other requests wait for them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from tests.support import description

EVERY_SECONDS = 0.05

# The beginning of a body, a part to repeat until the body is large enough, and the end.
_Piece = tuple[bytes, bytes, bytes]
_SMILE = "\U0001f600".encode()


def _array(item: bytes) -> _Piece:
    return b"[" + item, b"," + item, b"]"


def _object(member: bytes) -> _Piece:
    return b"{" + member, b"," + member, b"}"


def _string(part: bytes) -> _Piece:
    return b'"', part, b'"'


# JSON values. Some exceed the limits, and some are invalid JSON.
VALUES: dict[str, _Piece] = {
    "ones": _array(b"1"),
    "ones beside a UUID with an exponent": (b'["019f12a4-5e123a81-5e12",1', b",1", b"]"),
    "ones beside a large number": (b"[1e150,1", b",1", b"]"),
    "a large number in every step": (b"[1", b",1" * 60_000 + b",1e100", b"]"),
    "floats": _array(b"1.5"),
    "floats with exponents": _array(b"1e5"),
    "floats with exponents of three digits": _array(b"1e-05,1E+005"),
    "large numbers": _array(b"1e100"),
    "numbers out of range": _array(b"1e999999"),
    "zeros with large exponents": _array(b"0e100"),
    "numbers of 999 digits": _array(b"7" * 999),
    "numbers of 5,000 digits": _array(b"7" * 5_000),
    "one number": (b"1", b"7", b""),
    "one number with a point": (b"1.", b"7", b""),
    "negative numbers": _array(b"-1"),
    "booleans": _array(b"true"),
    "nulls": _array(b"null"),
    "empty arrays": _array(b"[]"),
    "empty objects": _array(b"{}"),
    "empty strings": _array(b'""'),
    "short strings": _array(b'"a"'),
    "objects": _array(b'{"a":1,"b":[2]}'),
    "arrays 190 deep": _array(b"[" * 190 + b"]" * 190),
    "objects 190 deep": _array(b'{"a":' * 190 + b"1" + b"}" * 190),
    "arrays too deep": _array(b"[" * 300 + b"]" * 300),
    "an array that does not end": (b"", b"[", b""),
    "an object that does not end": (b"", b'{"a":', b""),
    "members": _object(b'"abcdef":1'),
    "members without names": _object(b'"":1'),
    "text": _string(b"x"),
    "text of two bytes a character": _string("é".encode()),
    "text of three bytes a character": _string("漢".encode()),
    "text of four bytes a character": _string(_SMILE),
    "text with one character of four bytes": (b'"' + _SMILE, b"x", b'"'),
    "line ends": _string(b"\\n"),
    "quotes": _string(b'\\"'),
    "backslashes": _string(b"\\\\"),
    "escapes": _string(b"\\u00e9"),
    "escaped surrogates": _string(b"\\ud83d\\ude00"),
    "a lone surrogate at the end": (b'"', b"\\n", b'\\ud83d"'),
    "a lone surrogate behind quotes": (b'"', b'\\"', b'\\ude00"'),
    "escaped zeros": _string(b"\\u0000"),
    "a zero at the end": (b'"', b"\\n", b'\\u0000"'),
    "text with exponents": _string(b"0e123"),
    "text with brackets": _string(b"[{"),
    "an unknown escape at the end": (b'"', b"\\n", b'\\q"'),
    "a text that does not end": (b'"', b"\\n", b""),
    "a byte at the end that is no UTF-8": (b'"' + _SMILE, b"x", b'\xff"'),
    "spaces": (b"1", b" ", b" "),
    "lines": (b"[1,", b"\n", b"1]"),
}
# Additional members of an object, repeated.
MEMBERS: dict[str, bytes] = {
    "unknown members": b'"abcdef":1',
    "many unknown members": b'"":1',
    "unknown arrays": b'"x":[]',
    "a member again and again": b'"needs":1',
    "a text again and again": b'"id":"a"',
}
# Items of a batch, repeated. Requests without a batch get them as the value of a field.
ITEMS: dict[str, bytes] = {
    "empty items": b"{}",
    "short items": b'{"needs":1}',
    "items with unknown members": b'{"needs":1,"x":1}',
    "items with an invalid last field": b'{"needs":1,"priority":99999}',
    "items with a text again and again": b'{"needs":1,"id":"a",' + b'"id":"a",' * 400 + b'"id":"a"}',
    "pairs": b'{"task_id":"a","tool_id":"t"}',
    "remarks": b'{"task_id":"a","text":""}',
    "completions": b'{"work_id":"01890a5d-ac96-774b-bcce-b302099a8057","outcome":"failed"}',
    "items that are numbers": b"1",
    "items that are arrays": b"[]",
}
SHAPES = [*VALUES, *MEMBERS, *ITEMS]


class Endpoint(NamedTuple):
    """An operation with a request body, and how to fill its body.

    Args:
        method: The method.
        path: The path, with its parameters.
        required: The required fields of the body, except the field that is filled.
        filled: The name of the field that is filled: one for any JSON value, if there is one.
        is_list: Whether the body is a batch. Then `required` and `filled` are fields of its items.
    """

    method: str
    path: str
    required: dict[str, Any]
    filled: str
    is_list: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def endpoints() -> list[Endpoint]:
    """Return all operations with a request body, from the OpenAPI description."""
    document = description.make()
    return [
        _endpoint(document, call)
        for call in description.operations(document)
        if "requestBody" in call.described
    ]


def _endpoint(document: dict[str, Any], call: description.Operation) -> Endpoint:
    [content] = call.described["requestBody"]["content"].values()
    schema = description.resolve(document, content["schema"])
    fields = schema.get("properties", {})
    is_list = "items" in fields
    if is_list:
        schema = description.resolve(document, fields["items"]["items"])
        fields = schema["properties"]
    any_json = [name for name, field in fields.items() if not {"type", "$ref", "enum", "anyOf"} & {*field}]
    # A value for `needs` or `skills` may not be large.
    large = [name for name in any_json if name not in ("needs", "skills")]
    filled = next(iter([*large, *any_json, *fields]), "x")
    required = {name: _VALID[name] for name in schema.get("required", ()) if name != filled}
    return Endpoint(call.method, call.path, required, filled, is_list)


_VALID: dict[str, Any] = {
    "needs": 1,
    "skills": 1,
    "text": "x",
    "roles": ["tool"],
    "task_id": "a",
    "tool_id": "t",
    "outcome": "failed",
    "name": "a",
    "work_id": "01890a5d-ac96-774b-bcce-b302099a8057",
}


def body(endpoint: Endpoint, shape: str, size: int) -> bytes:
    """Return a body of a shape, padded to `size` bytes."""
    required = json.dumps(endpoint.required)[1:-1].encode()
    comma = b"," if required else b""
    before, after = (b'{"items":[', b"]}") if endpoint.is_list else (b"", b"")
    if shape in ITEMS and endpoint.is_list:
        item = ITEMS[shape]
        return _filled(before + item, b"," + item, after, size)
    if shape in MEMBERS:
        member = MEMBERS[shape]
        return _filled(before + b"{" + required + comma + member, b"," + member, b"}" + after, size)
    first, piece, last = VALUES[shape] if shape in VALUES else _array(ITEMS[shape])
    name = json.dumps(endpoint.filled).encode()
    return _filled(before + b"{" + required + comma + name + b":" + first, piece, last + b"}" + after, size)


def _filled(before: bytes, piece: bytes, after: bytes, size: int) -> bytes:
    count = (size - len(before) - len(after)) // len(piece)
    filled = before + piece * count + after
    return filled + b" " * (size - len(filled))


class Sample(NamedTuple):
    """One request of the probe: when it was sent and how long it took, in seconds."""

    path: str
    sent_at: float
    waited: float


class Probe:
    """A process that sends requests every 50 ms, and records how long each takes.

    It is a separate process, so only the broker can delay it.

    Args:
        url: The URL of the broker.
    """

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stall", url], stdout=subprocess.PIPE, text=True
        )
        self.samples: list[Sample] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.samples.append(Sample(*json.loads(line)))

    def slowest(self, since: float) -> Sample:
        """Return the slowest request that was in progress after `since`, up to now."""
        now = time.monotonic()
        while len(self.samples) < 3 or self.samples[-1].sent_at < now:
            assert self._process.poll() is None, "the probe has exited"
            time.sleep(EVERY_SECONDS)
        recent = [sample for sample in self.samples[1:] if sample.sent_at + sample.waited > since]
        return max(recent, key=lambda sample: sample.waited)

    def close(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def running_probe(url: str) -> Iterator[Probe]:
    """Run a probe of a broker that has a tool `probe`."""
    probe = Probe(url)
    try:
        probe.slowest(time.monotonic())
        yield probe
    finally:
        probe.close()


class Sender:
    """A client that sends large bodies to a broker, each about a new task and new work.

    Args:
        url: The URL of the broker.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        for tool in ("t", "probe"):
            self._do("POST", "/v1/tools", id=tool, skills=1, capacity=10_000, lease_seconds=86_400)

    def send(self, endpoint: Endpoint, content: bytes) -> int:
        """Send a body, delete all tasks and records afterwards, and return the status of the response."""
        self._do("POST", "/v1/tasks", id="a", needs=1)
        work_id = self._do("POST", "/v1/work", task_id="a", tool_id="t")["id"]
        path = endpoint.path.format(task_id="a", tool_id="t", work_id=work_id, key_name="x")
        headers = {"Content-Type": "application/json"}
        response = self._http.request(endpoint.method, path, content=content, headers=headers)
        # A page holds only some items if they are large.
        while tasks := self._do("GET", "/v1/tasks")["items"]:
            for task in tasks:
                self._do("DELETE", f"/v1/tasks/{task['id']}?force=true")
        while records := self._do("GET", "/v1/archive")["items"]:
            for record in records:
                self._do("DELETE", f"/v1/archive/{record['work_id']}")
        return response.status_code

    def close(self) -> None:
        """Close the client's connections."""
        self._http.close()

    def _do(self, method: str, path: str, **fields: Any) -> Any:
        response = self._http.request(method, path, json=fields or None)
        assert response.is_success, response.text[:500]
        return response.json() if response.content else None


def _probe(url: str) -> None:
    """Send the requests of a probe forever, and print how long each took."""
    began = time.monotonic()
    with httpx.Client(base_url=url, timeout=60) as http:
        while True:
            for method, path in (("GET", "/health/live"), ("POST", "/v1/tools/probe/heartbeat")):
                sent_at = time.monotonic()
                http.request(method, path).raise_for_status()
                print(json.dumps([path, sent_at, time.monotonic() - sent_at]), flush=True)  # noqa: T201
            began += EVERY_SECONDS
            time.sleep(max(0, began - time.monotonic()))


if __name__ == "__main__":
    _probe(sys.argv[1])
