"""Responses about the records of ended attempts."""

from typing import Annotated

from msgspec import Meta, Struct

from broker.schemas.states import Outcome
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.values import JSON, EndedAt, Moment, Next, StartedAt, TaskId, WorkId
from broker.schemas.work import AttemptNumber, Report


class LateResult(Struct, kw_only=True):
    """A result that arrived after the work had ended with another outcome."""

    outcome: Annotated[str, Meta(description="The outcome that the tool sent.")]
    result: Annotated[JSON, Meta(description="The result that the tool sent.")]
    error: Annotated[str | None, Meta(description="The error that the tool sent.")]
    at: Annotated[Moment, Meta(description="Time when it arrived.")]


class ArchiveRecord(Struct, kw_only=True):
    """The complete record of one attempt, or of a task that ended without work."""

    work_id: WorkId
    task_id: TaskId
    tool_id: Annotated[str | None, Meta(description="Id of the tool. Null if no tool had the task.")]
    task: Annotated[Task, Meta(description="The task as it was when the attempt ended.")]
    tool: Annotated[
        ToolStatus | None,
        Meta(description="The tool as it was when the attempt ended. Null if no tool had the task."),
    ]
    attempt: AttemptNumber
    outcome: Annotated[Outcome, Meta(description="How the attempt ended.")]
    result: Annotated[JSON, Meta(description="The result, exactly as the tool sent it.")]
    error: Annotated[str | None, Meta(description="The reason why the attempt did not succeed.")]
    late: Annotated[
        LateResult | None,
        Meta(
            description="A result that arrived after the attempt had ended with another outcome. An operator"
            " can accept it."
        ),
    ]
    reports: Annotated[list[Report], Meta(description="All reports on the attempt, oldest first.")]
    assigned_at: Annotated[
        Moment | None, Meta(description="Time of assignment. Null if no tool had the task.")
    ]
    started_at: StartedAt
    ended_at: EndedAt


class ArchivePage(Struct, kw_only=True):
    """A page of the archive, newest record first."""

    items: Annotated[list[ArchiveRecord], Meta(description="The records of this page.")]
    next: Next
