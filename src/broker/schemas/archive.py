"""Responses about the records of ended attempts."""

from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.states import Outcome
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.values import JSON, Moment, Next
from broker.schemas.work import AttemptNumber, Report


class LateResult(Struct, kw_only=True):
    """What a tool said after its work had ended without it."""

    outcome: str
    result: JSON
    error: str | None
    at: Moment


class ArchiveRecord(Struct, kw_only=True):
    """The whole story of one attempt."""

    work_id: UUID
    task_id: str
    tool_id: str | None
    task: Task
    tool: ToolStatus | None
    attempt: AttemptNumber
    outcome: Outcome
    result: JSON
    error: str | None
    late: Annotated[LateResult | None, Meta(description="What came after it had ended otherwise.")]
    reports: list[Report]
    assigned_at: Moment | None
    started_at: Moment | None
    ended_at: Moment


class ArchivePage(Struct, kw_only=True):
    """Some of the archive, newest first; `next` goes into `?after=`, null at the end."""

    items: list[ArchiveRecord]
    next: Next
