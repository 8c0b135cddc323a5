"""Requests and responses about work and its reports. Work is one attempt of a tool at a task."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_LATEST_REPORTS
from broker.schemas.states import AnyWorkState
from broker.schemas.tasks import NeedsValue, PayloadValue
from broker.schemas.tools import LeaseEnd
from broker.schemas.values import (
    JSON,
    NULL_DEFAULT,
    AssignedAt,
    Moment,
    Next,
    Request,
    StartedAt,
    TaskId,
    Text,
    ToolId,
    WorkId,
)

CancelRequested = Annotated[
    bool, Meta(description="True if the broker has asked the tool to stop this work.")
]
AttemptNumber = Annotated[int, Meta(description="Number of this attempt at the task. The first is 1.")]
Progress = Annotated[float, Meta(ge=0, le=1)]
LastProgress = Annotated[
    float | None,
    Meta(description="Completed fraction of the work, 0 to 1, from the last report with a progress."),
]
DeadlineAt = Annotated[
    Moment | None,
    Meta(
        description="For work that has not started, the time by which it must start. For running work, the"
        " time by which it must end. At this time the broker ends the work. Null: no limit."
    ),
]
CurrentWorkState = Annotated[
    AnyWorkState, Meta(description="State of the work. For ended work, its outcome.")
]
Version = Annotated[
    int,
    Meta(description="Increases with every change of the state, the reports or `cancel_requested`."),
]
StopsTool = Annotated[bool, Meta(description="True: stop this work and complete it as `cancelled`.")]


class Work(Struct, kw_only=True):
    """One attempt of one tool at one task. Another attempt is another work item, with its own id."""

    id: WorkId
    task_id: TaskId
    tool_id: ToolId
    attempt: AttemptNumber
    state: CurrentWorkState
    needs: NeedsValue
    payload: PayloadValue
    progress: LastProgress
    cancel_requested: CancelRequested
    version: Version
    assigned_at: AssignedAt
    started_at: StartedAt
    deadline_at: DeadlineAt


class NewReport(Request, kw_only=True):
    """A progress report. Every field is optional."""

    id: Annotated[
        UUID | None, Meta(description="Id of the report, a UUID. Makes it safe to repeat the request.")
    ] = None
    progress: Annotated[
        Progress | None, Meta(description="Completed fraction of the work: 0 to 1. Null: unchanged.")
    ] = None
    message: Annotated[Text | None, Meta(description="A message for people.")] = None
    data: Annotated[
        JSON, Meta(description="Data for programs: any JSON value. The broker returns exactly this text.")
    ] = NULL_DEFAULT


class Report(Struct, kw_only=True):
    """A stored progress report."""

    id: Annotated[UUID, Meta(description="Id of the report.")]
    at: Annotated[Moment, Meta(description="Time when the broker received the report.")]
    progress: Annotated[float | None, Meta(description="Completed fraction of the work: 0 to 1.")]
    message: Annotated[str | None, Meta(description="The message of the tool.")]
    data: Annotated[JSON, Meta(description="The data of the tool, exactly as it was sent.")]


class ReportPage(Struct, kw_only=True):
    """A page of the reports on work, oldest first."""

    items: Annotated[list[Report], Meta(description="The reports of this page.")]
    next: Next


class Reported(Struct, kw_only=True):
    """The result of a report: the renewed lease, and whether the tool must stop the work."""

    id: Annotated[UUID, Meta(description="Id of the report.")]
    cancel_requested: StopsTool
    lease_expires_at: LeaseEnd


class WorkWithReports(Work, kw_only=True):
    """Work with its latest reports."""

    reports: Annotated[
        Sequence[Report],
        Meta(
            description=f"The latest {MOST_LATEST_REPORTS:,} reports, oldest first. Fewer if they are"
            " larger than"
            " 8 MiB. `GET /v1/work/{work_id}/reports` lists all of them."
        ),
    ]
    report_count: Annotated[int, Meta(description="Number of all reports on the work.")]


class WorkStatus(Struct, kw_only=True):
    """The state of work without its content, for `Prefer: return=minimal`."""

    state: CurrentWorkState
    cancel_requested: CancelRequested
    version: Version


class WorkPage(Struct, kw_only=True):
    """A page of the work in progress, in the order of assignment."""

    items: Annotated[list[Work], Meta(description="The work items of this page.")]
    next: Next


class WorkItems(Struct, kw_only=True):
    """The work that a tool has not started yet."""

    items: Annotated[list[Work], Meta(description="Work assigned to the tool, oldest first.")]


class NewCancellation(Request, kw_only=True):
    """A request to cancel work. The task is cancelled too, or it becomes available again."""

    requeue: Annotated[
        bool,
        Meta(
            description="False: the task is cancelled with the work. True: the task becomes available again,"
            " for the same tool or another one."
        ),
    ] = False
