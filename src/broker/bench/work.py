"""What is worked on: tasks of some 300 bytes, as the peers' measurements have them, and parts of answers."""

from typing import Any

import msgspec
from msgspec import Struct

NEEDS = {"skill": "render"}


def task(number: int) -> dict[str, Any]:
    """A task as it is submitted: three properties, some arguments, and a note that fills it up."""
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


def encoded(number: int) -> bytes:
    """The same as JSON."""
    return msgspec.json.encode(task(number))


class Named(Struct):
    """Of a task, a tool or a work item: its id."""

    id: str


class Room(Struct):
    """Of a tool: how much more it can take."""

    id: str
    capacity: int
    load: int


class Candidates(Struct):
    """What an assigner needs to know."""

    cursor: str
    tasks: list[Named]
    tools: list[Room]
    more: bool


class Items(Struct):
    """The ids of a list."""

    items: list[Named]


class Pair(Struct):
    """A task and its tool."""

    task_id: str
    tool_id: str


class PairAnswer(Struct):
    """What became of a pair."""

    task_id: str
    tool_id: str
    status: str


class PairAnswers(Struct):
    """What became of the pairs."""

    items: list[PairAnswer]


class Completed(Struct):
    """Of a completion: the tool's next work."""

    next: list[Named]
