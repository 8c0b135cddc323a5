"""Summaries for dashboards, and the events of the event stream. They have no payloads and results.

The broker shortens long texts in them. For that reason `needs` and `skills` are texts here. Tasks and tools
have them in full.
"""

from typing import Annotated, Literal, get_args
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.states import Outcome, TaskState, ToolState, Verdict, WorkState
from broker.schemas.tasks import AttemptsSoFar, LastWord
from broker.schemas.values import Moment, Next
from broker.schemas.work import AttemptNumber, CancelRequested

#: The longest text in a summary, in characters.
MOST_CHARS = 500

Cut = Annotated[str | None, Meta(description="Cut where it is long.")]
JsonText = Annotated[str, Meta(description="JSON as a text, cut where it is long.")]


class WorkSummary(Struct, kw_only=True):
    """Work under way, and what was last said about it."""

    id: UUID
    task_id: str
    tool_id: str
    attempt: AttemptNumber
    state: WorkState
    progress: float | None
    message: Annotated[str | None, Meta(description="The last message that was reported, cut if long.")]
    cancel_requested: CancelRequested
    assigned_at: Moment
    started_at: Moment | None
    deadline_at: Moment | None


class ToolSummary(Struct, kw_only=True):
    """A tool, and the first of the work that it has."""

    id: str
    state: ToolState
    load: int
    capacity: int
    skills: JsonText
    seen_at: Moment
    work: Annotated[list[WorkSummary], Meta(description="The oldest first, 16 at most.")]


class ToolSummaryPage(Struct, kw_only=True):
    """Some of the tools; `next` goes into `?after=`, null at the end."""

    items: list[ToolSummary]
    next: Next


class QueuedKind(Struct, kw_only=True):
    """Available tasks that need the same and have the same priority."""

    needs: JsonText
    priority: int
    tasks: int
    oldest_id: str
    oldest_at: Moment
    passed_by: Annotated[
        int,
        Meta(description="Of the latest 2,000 attempts so many are at tasks that came after the oldest."),
    ]


class UnaskedTool(Struct, kw_only=True):
    """A tool that has room, and has had nothing to do for long."""

    id: str
    skills: JsonText
    since: Annotated[Moment, Meta(description="When it last ended a work; never: when it registered.")]


class Queue(Struct, kw_only=True):
    """What waits, by what it needs; and which tools have nothing to do meanwhile."""

    at: Moment
    counted: Annotated[int, Meta(description="How many tasks were looked at, in the order they are offered.")]
    more: Annotated[bool, Meta(description="Whether there are others beyond these.")]
    kinds: Annotated[list[QueuedKind], Meta(description="Those with the most tasks first, 100 at most.")]
    unasked: Annotated[list[UnaskedTool], Meta(description="Idle for longest first, 100 at most.")]


class WaitingTask(Struct, kw_only=True):
    """A task that waits, and why."""

    id: str
    needs: JsonText
    priority: int
    state: TaskState
    attempt: AttemptsSoFar
    max_attempts: int
    created_at: Moment
    verdict: Verdict
    detail: str
    remark: LastWord


class WaitingTasks(Struct, kw_only=True):
    """Tasks that wait, those that were submitted first in front."""

    assigner_seen_at: Annotated[Moment | None, Meta(description="When an assigner last asked.")]
    available_tools: int
    items: list[WaitingTask]


class Attempted(Struct, kw_only=True):
    """One attempt that has ended: who was at what, and when."""

    work_id: UUID
    task_id: str
    tool_id: str
    attempt: AttemptNumber
    outcome: Outcome
    assigned_at: Moment
    started_at: Moment | None
    ended_at: Moment


class Timeline(Struct, kw_only=True):
    """Attempts that have ended, those that ended last first."""

    complete: Annotated[bool, Meta(description="Whether these are all; else the older ones are left out.")]
    items: list[Attempted]


class Bucket(Struct, kw_only=True):
    """What ended in a part of a span of time, and how long it had waited and run."""

    at: Annotated[Moment, Meta(description="When it begins.")]
    succeeded: int
    failed: int
    cancelled: int
    released: int
    lost: int
    timed_out: int
    wait_median_seconds: Annotated[
        float | None, Meta(description="From submission, or `not_before`, to the first assignment.")
    ]
    wait_p95_seconds: float | None
    run_median_seconds: Annotated[float | None, Meta(description="From its start to its end.")]
    run_p95_seconds: float | None


class History(Struct, kw_only=True):
    """A span of time in parts of equal length, the oldest first."""

    since: Moment
    until: Moment
    bucket_seconds: float
    complete: Annotated[bool, Meta(description="Whether all of it is counted; else the oldest is left out.")]
    items: list[Bucket]


class Failure(Struct, kw_only=True):
    """An attempt that did not succeed, with the last that was said about it."""

    work_id: UUID
    task_id: str
    tool_id: str
    attempt: AttemptNumber
    outcome: Outcome
    error: Cut
    message: Annotated[
        str | None,
        Meta(
            description="The last message that was reported, cut if long; null, too, where reports are many."
        ),
    ]
    ended_at: Moment
    late: Annotated[bool, Meta(description="Whether a success came after it had ended.")]
    task_state: Annotated[
        TaskState | None, Meta(description="What has become of its task; null: it is not known any more.")
    ]


class Failures(Struct, kw_only=True):
    """Attempts that did not succeed, the newest first."""

    items: list[Failure]
    next: Next


EventKind = Literal["task", "tool", "work", "archive"]
#: The kinds of events, in the order in which the broker sends those of one moment.
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)

# The data of each kind of event.


class TaskEvent(Struct, kw_only=True):
    """A task came, changed or ended."""

    id: str
    state: TaskState
    priority: Annotated[int | None, Meta(description="Null once it has ended.")]
    attempt: AttemptsSoFar


class ToolEvent(Struct, kw_only=True):
    """A tool came, changed or is gone (`deleted`, its load and capacity 0)."""

    id: str
    state: ToolState | Literal["deleted"]
    load: int
    capacity: int
    skills: JsonText


class WorkEvent(WorkSummary, kw_only=True):
    """Work was assigned, started, reported on or asked to stop."""


class ArchiveEvent(Struct, kw_only=True):
    """A record came to the archive; one without a tool is of a task that was deleted while it had no work."""

    work_id: UUID
    task_id: str
    tool_id: str | None
    attempt: AttemptNumber
    outcome: Outcome
    error: Cut
    assigned_at: Moment | None
    started_at: Moment | None
    ended_at: Moment


class Resync(Struct, kw_only=True):
    """Something was missed: read these anew."""

    of: Annotated[list[EventKind], Meta(description="The kinds of things.")]
    why: str
