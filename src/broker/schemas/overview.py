"""Summaries for dashboards, and the events of the event stream. They have no payloads or results.

The broker shortens long texts in them. Therefore `needs` and `skills` are texts here. Tasks and tools have
the complete values.
"""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from broker.schemas.states import Outcome, TaskState, ToolState, WorkState
from broker.schemas.tasks import AttemptsSoFar, CurrentRemark, CurrentTaskState, VerdictDetail, VerdictWord
from broker.schemas.values import (
    AssignedAt,
    AssignerSeenAt,
    CreatedAt,
    EndedAt,
    Moment,
    Next,
    SeenAt,
    StartedAt,
    TaskId,
    ToolId,
    WorkId,
)
from broker.schemas.work import AttemptNumber, CancelRequested, DeadlineAt, LastProgress

#: Maximum length of a text in a summary, in characters.
MOST_CHARS = 500

ShortError = Annotated[str | None, Meta(description="The error of the attempt, shortened if it is long.")]
ShortNeeds = Annotated[str, Meta(description="The task's `needs` as JSON text, shortened if it is long.")]
ShortSkills = Annotated[str, Meta(description="The tool's `skills` as JSON text, shortened if it is long.")]
Load = Annotated[int, Meta(description="Number of work items the tool has now.")]
TotalCapacity = Annotated[int, Meta(description="Maximum number of work items the tool has at a time.")]
CurrentToolState = Annotated[ToolState, Meta(description="State of the tool.")]
TaskPriority = Annotated[int, Meta(description="Priority of the task.")]
FinalOutcome = Annotated[Outcome, Meta(description="How the attempt ended.")]


class WorkSummary(Struct, kw_only=True):
    """Work in progress, with its last message."""

    id: WorkId
    task_id: TaskId
    tool_id: ToolId
    attempt: AttemptNumber
    state: Annotated[WorkState, Meta(description="State of the work.")]
    progress: LastProgress
    message: Annotated[str | None, Meta(description="The last message of the tool, shortened if it is long.")]
    cancel_requested: CancelRequested
    assigned_at: AssignedAt
    started_at: StartedAt
    deadline_at: DeadlineAt


class ToolSummary(Struct, kw_only=True):
    """A tool with its oldest work items."""

    id: ToolId
    state: CurrentToolState
    load: Load
    capacity: TotalCapacity
    skills: ShortSkills
    seen_at: SeenAt
    work: Annotated[list[WorkSummary], Meta(description="The oldest work items of the tool, at most 16.")]


class ToolSummaryPage(Struct, kw_only=True):
    """A page of tools with their work, in the order of their ids."""

    items: Annotated[list[ToolSummary], Meta(description="The tools of this page.")]
    next: Next


class QueuedKind(Struct, kw_only=True):
    """Available tasks with the same needs and the same priority."""

    needs: ShortNeeds
    priority: TaskPriority
    tasks: Annotated[int, Meta(description="Number of these tasks.")]
    oldest_id: Annotated[str, Meta(description="Id of the oldest of these tasks.")]
    oldest_at: Annotated[Moment, Meta(description="Time when the oldest of these tasks was submitted.")]
    passed_by: Annotated[
        int,
        Meta(
            description="Number of recent attempts at tasks that were submitted after the oldest of these"
            " tasks. The broker looks at the latest 2,000 in progress and the latest 2,000 that ended."
        ),
    ]


class IdleTool(Struct, kw_only=True):
    """An available tool without work for more than ten minutes."""

    id: ToolId
    skills: ShortSkills
    since: Annotated[
        Moment,
        Meta(description="Time when its last work ended. If it never had work, the time of registration."),
    ]


class Queue(Struct, kw_only=True):
    """The available tasks by needs and priority, and the tools that are idle."""

    at: Annotated[Moment, Meta(description="The moment of the counts.")]
    counted: Annotated[
        int,
        Meta(description="Number of tasks that the broker counted. It counts the first tasks of the queue."),
    ]
    more: Annotated[bool, Meta(description="True if more tasks are available than the broker counted.")]
    kinds: Annotated[
        list[QueuedKind], Meta(description="Groups of tasks, the largest first, at most 100 of them.")
    ]
    unasked: Annotated[list[IdleTool], Meta(description="Idle tools, the longest idle first, at most 100.")]


class WaitingTask(Struct, kw_only=True):
    """A task that waits, and the reason."""

    id: TaskId
    needs: ShortNeeds
    priority: TaskPriority
    state: CurrentTaskState
    attempt: AttemptsSoFar
    max_attempts: Annotated[int, Meta(description="Maximum number of attempts.")]
    created_at: CreatedAt
    verdict: VerdictWord
    detail: VerdictDetail
    remark: CurrentRemark


class WaitingTasks(Struct, kw_only=True):
    """Tasks that wait, in the order of their submission."""

    assigner_seen_at: AssignerSeenAt
    available_tools: Annotated[int, Meta(description="Number of available tools.")]
    items: Annotated[list[WaitingTask], Meta(description="The tasks, oldest first.")]


class EndedAttempt(Struct, kw_only=True):
    """An attempt that has ended: the task, the tool and the times."""

    work_id: WorkId
    task_id: TaskId
    tool_id: ToolId
    attempt: AttemptNumber
    outcome: FinalOutcome
    assigned_at: AssignedAt
    started_at: StartedAt
    ended_at: EndedAt


class Timeline(Struct, kw_only=True):
    """Attempts that have ended, the latest end first."""

    complete: Annotated[
        bool,
        Meta(
            description="True if these are all attempts of the time range. Otherwise older ones are missing."
        ),
    ]
    items: Annotated[list[EndedAttempt], Meta(description="The attempts.")]


class Bucket(Struct, kw_only=True):
    """Attempts that ended in one part of a time range, with their waiting and run times."""

    at: Annotated[Moment, Meta(description="Start of this part.")]
    succeeded: Annotated[int, Meta(description="Attempts that succeeded.")]
    failed: Annotated[int, Meta(description="Attempts that failed.")]
    cancelled: Annotated[int, Meta(description="Attempts that were cancelled.")]
    released: Annotated[int, Meta(description="Attempts that a tool gave back, or that somebody requeued.")]
    lost: Annotated[int, Meta(description="Attempts whose tool went offline or did not start in time.")]
    timed_out: Annotated[int, Meta(description="Attempts that exceeded their `timeout_seconds`.")]
    wait_median_seconds: Annotated[
        float | None,
        Meta(description="Median time from submission, or `not_before`, to the first assignment."),
    ]
    wait_p95_seconds: Annotated[
        float | None, Meta(description="95th percentile of the time to the first assignment.")
    ]
    run_median_seconds: Annotated[
        float | None, Meta(description="Median time from the start of an attempt to its end.")
    ]
    run_p95_seconds: Annotated[
        float | None, Meta(description="95th percentile of the time from start to end.")
    ]


class History(Struct, kw_only=True):
    """Attempts that ended in a time range, counted in parts of equal length."""

    since: Annotated[Moment, Meta(description="Start of the time range.")]
    until: Annotated[Moment, Meta(description="End of the time range.")]
    bucket_seconds: Annotated[float, Meta(description="Length of each part.")]
    complete: Annotated[
        bool,
        Meta(description="True if all attempts of the time range are counted. Otherwise the oldest are not."),
    ]
    items: Annotated[list[Bucket], Meta(description="The parts, oldest first.")]


class Failure(Struct, kw_only=True):
    """An attempt that did not succeed, with its error and its last message."""

    work_id: WorkId
    task_id: TaskId
    tool_id: ToolId
    attempt: AttemptNumber
    outcome: FinalOutcome
    error: ShortError
    message: Annotated[
        str | None,
        Meta(
            description="The last message of the tool, shortened if it is long. Also null if the reports are"
            " large."
        ),
    ]
    ended_at: EndedAt
    late: Annotated[bool, Meta(description="True if the tool sent `succeeded` after the attempt had ended.")]
    task_state: Annotated[
        TaskState | None, Meta(description="Current state of the task. Null if its records were deleted.")
    ]


class Failures(Struct, kw_only=True):
    """Attempts that did not succeed, newest first."""

    items: Annotated[list[Failure], Meta(description="The attempts of this page.")]
    next: Next


EventKind = Literal["task", "tool", "work", "archive"]
#: The kinds of events, in the order in which the broker sends those of one moment.
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)

# The data of each kind of event.


class TaskEvent(Struct, kw_only=True):
    """A task was submitted, changed or ended."""

    id: TaskId
    state: CurrentTaskState
    priority: Annotated[int | None, Meta(description="Priority of the task. Null after it has ended.")]
    attempt: AttemptsSoFar


class ToolEvent(Struct, kw_only=True):
    """A tool was registered, changed or deleted."""

    id: ToolId
    state: Annotated[
        ToolState | Literal["deleted"],
        Meta(description="State of the tool. With `deleted`, its load and capacity are 0."),
    ]
    load: Load
    capacity: TotalCapacity
    skills: ShortSkills


class WorkEvent(WorkSummary, kw_only=True):
    """Work was assigned, started, reported on or asked to stop."""


class ArchiveEvent(Struct, kw_only=True):
    """A record was added to the archive."""

    work_id: WorkId
    task_id: TaskId
    tool_id: Annotated[str | None, Meta(description="Id of the tool. Null if the task ended without work.")]
    attempt: AttemptNumber
    outcome: FinalOutcome
    error: ShortError
    assigned_at: Annotated[
        Moment | None, Meta(description="Time of assignment. Null if the task ended without work.")
    ]
    started_at: StartedAt
    ended_at: EndedAt


class Resync(Struct, kw_only=True):
    """Events were lost. Read these kinds of data again."""

    of: Annotated[list[EventKind], Meta(description="The kinds of data to read again.")]
    why: Annotated[str, Meta(description="The reason, for people.")]
