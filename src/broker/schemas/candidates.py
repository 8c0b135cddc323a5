"""Responses and requests of an assigner: candidates, and the pairs that it makes of them."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_IN_BATCH
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.values import Id, Request


class Candidates(Struct, kw_only=True):
    """Tasks and tools that are available, and the cursor to go on from."""

    cursor: Annotated[str, Meta(description="Goes into `?cursor=`: then only what is new since is answered.")]
    tasks: list[Task]
    tools: list[ToolStatus]
    more: Annotated[bool, Meta(description="Whether there is more to be had at once.")]


class Pair(Request, kw_only=True):
    """A task, and the tool that shall do it."""

    task_id: Id
    tool_id: Id


class Pairs(Request, kw_only=True):
    """Many pairs in one call, each for itself."""

    items: Annotated[list[Pair], Meta(min_length=1, max_length=MOST_IN_BATCH)]


PairStatus = Literal[
    "assigned", "exists", "task_unavailable", "tool_unavailable", "task_not_found", "tool_not_found"
]


class AssignedPair(Struct, kw_only=True):
    """What became of one pair."""

    task_id: str
    tool_id: str
    status: PairStatus
    work_id: Annotated[UUID | None, Meta(description="The work, where there is one.")]


class AssignedPairs(Struct, kw_only=True):
    """What became of each pair, in their order."""

    items: list[AssignedPair]
