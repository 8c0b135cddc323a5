"""Requests and responses about work: attempts of a tool at a task, and the reports on them."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_LATEST_REPORTS
from broker.schemas.states import AnyWorkState
from broker.schemas.tools import LeaseEnd
from broker.schemas.values import JSON, NULL_DEFAULT, Moment, Next, Request, Text

CancelRequested = Annotated[bool, Meta(description="Whether the tool is asked to stop.")]
AttemptNumber = Annotated[int, Meta(description="Which attempt at the task it is; the first is 1.")]
Progress = Annotated[float, Meta(ge=0, le=1, description="How much of it is done: 0 to 1.")]


class Work(Struct, kw_only=True):
    """One attempt of one tool at one task; its id is the fencing token."""

    id: UUID
    task_id: str
    tool_id: str
    attempt: AttemptNumber
    state: AnyWorkState
    needs: JSON
    payload: JSON
    progress: float | None
    cancel_requested: CancelRequested
    version: Annotated[int, Meta(description="Grows with every change.")]
    assigned_at: Moment
    started_at: Moment | None
    deadline_at: Annotated[
        Moment | None, Meta(description="It ends by then if it is not started, or not ended.")
    ]


class NewReport(Request, kw_only=True):
    """How far the work is, in a number, in words, in data."""

    id: Annotated[UUID | None, Meta(description="Makes it safe to send the report again.")] = None
    progress: Progress | None = None
    message: Text | None = None
    data: JSON = NULL_DEFAULT


class Report(Struct, kw_only=True):
    """A report as it was taken."""

    id: UUID
    at: Moment
    progress: float | None
    message: str | None
    data: JSON


class ReportPage(Struct, kw_only=True):
    """Some of a work's reports, in order; `next` goes into `?after=`, null at the end."""

    items: list[Report]
    next: Next


class Reported(Struct, kw_only=True):
    """The answer to a report: whether the work should stop, and until when the lease runs."""

    id: UUID
    cancel_requested: CancelRequested
    lease_expires_at: LeaseEnd


class WorkWithReports(Work, kw_only=True):
    """Work with its latest reports; all of them have a list of their own."""

    reports: Annotated[
        Sequence[Report],
        Meta(
            description=f"The latest {MOST_LATEST_REPORTS:,}, the oldest first;"
            " fewer if they are larger than 8 MiB."
        ),
    ]
    report_count: Annotated[int, Meta(description="How many reports there are.")]


class WorkStatus(Struct, kw_only=True):
    """What a watcher needs to know of work: `Prefer: return=minimal` asks for no more."""

    state: AnyWorkState
    cancel_requested: CancelRequested
    version: Annotated[int, Meta(description="Grows with every change.")]


class WorkPage(Struct, kw_only=True):
    """Some of the work under way; `next` goes into `?after=`, null at the end."""

    items: list[Work]
    next: Next


class WorkItems(Struct, kw_only=True):
    """The work that waits for a tool to start it."""

    items: list[Work]


class NewCancellation(Request, kw_only=True):
    """How work is to be cancelled: with its task, or so that the task goes back."""

    requeue: Annotated[bool, Meta(description="The task goes back, for another tool.")] = False
