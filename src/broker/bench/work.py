"""Tasks that the benchmark submits, and the parts of responses that it reads.

The structs of `broker.schemas` would decode every field, and use CPU that the service then lacks.
"""

from typing import Any

import msgspec
from msgspec import Struct

NEEDS = {"skill": "render"}
HALF_WAY = b'{"progress": 0.5, "message": "half way"}'
SUCCEEDED = b'{"outcome": "succeeded"}'


def task(number: int) -> dict[str, Any]:
    """Return a new task of about 300 bytes."""
    payload = {
        "i": number,
        "need": {"skill": "render", "gpu": False, "memory_mb": 2048},
        "args": {
            "source": f"bucket/input/{number:08d}.dat",
            "target": f"bucket/output/{number:08d}.dat",
            "options": ["fast", "verify", "keep"],
            "note": "x" * 96,
        },
    }
    return {"needs": NEEDS, "payload": payload}


def encode_task(number: int) -> bytes:
    """Return a new task as JSON."""
    return msgspec.json.encode(task(number))


class BenchItem(Struct):
    """The id of a task, a tool or a work item."""

    id: str


class BenchTool(Struct):
    """The load of a tool."""

    id: str
    capacity: int
    load: int


class BenchCandidates(Struct):
    """The part of the candidates that an assigner needs."""

    cursor: str
    tasks: list[BenchItem]
    tools: list[BenchTool]


class BenchItems(Struct):
    """The ids of a list."""

    items: list[BenchItem]


class BenchCompletion(Struct):
    """The next work of the tool, in the response to a completion."""

    next: list[BenchItem]
