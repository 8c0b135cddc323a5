"""Requests and responses of an assigner: candidates, and pairs of a task and a tool."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_IN_BATCH
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.values import Id, Request, TaskId, ToolId


class Candidates(Struct, kw_only=True):
    """The available tasks and tools, with a cursor for the next request."""

    cursor: Annotated[
        str,
        Meta(description="Pass it as `?cursor=` to get only later changes. Opaque: do not interpret it."),
    ]
    tasks: Annotated[
        list[Task],
        Meta(description="Available tasks. With a cursor, those that became available or changed since."),
    ]
    tools: Annotated[
        list[ToolStatus],
        Meta(description="Available tools. With a cursor, those that became available or changed since."),
    ]
    more: Annotated[
        bool,
        Meta(description="True if more candidates are available. Repeat the request with this `cursor`."),
    ]


class Pair(Request, kw_only=True):
    """A task and the tool that the broker assigns it to."""

    task_id: Annotated[Id, Meta(description="Id of the task.")]
    tool_id: Annotated[Id, Meta(description="Id of the tool.")]


class Pairs(Request, kw_only=True):
    """A batch of pairs. The broker handles each of them independently."""

    items: Annotated[
        list[Pair],
        Meta(
            min_length=1,
            max_length=MOST_IN_BATCH,
            description=f"1 to {MOST_IN_BATCH:,} pairs. An earlier pair wins over a later one.",
        ),
    ]


PairStatus = Literal[
    "assigned", "exists", "task_unavailable", "tool_unavailable", "task_not_found", "tool_not_found"
]


class AssignedPair(Struct, kw_only=True):
    """The result for one pair of a batch."""

    task_id: TaskId
    tool_id: ToolId
    status: Annotated[
        PairStatus,
        Meta(
            description="`assigned`: the tool has the task now. `exists`: it had the task already."
            " Otherwise the reason why the broker did not assign it."
        ),
    ]
    work_id: Annotated[
        UUID | None, Meta(description="Id of the work. Null if the task was not assigned to this tool.")
    ]


class AssignedPairs(Struct, kw_only=True):
    """The result for each pair of a batch, in the order of the request."""

    items: Annotated[list[AssignedPair], Meta(description="One result for each pair.")]
