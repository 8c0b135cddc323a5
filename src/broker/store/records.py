"""Stored records: the JSON in which the archive keeps a task, a tool, a report and a late result.

A record stays readable forever, so a field that migration 0001 did not write has a default here. Responses
have structs of their own in `schemas`. Each is made of all fields of a stored struct, and requires no others.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import Decoder
from msgspec.structs import asdict

from broker.schemas.archive import LateResult
from broker.schemas.states import TaskState, ToolState
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.work import Report


class StoredTask(Struct, kw_only=True):
    """A task as it was when its work ended."""

    id: str
    needs: Raw
    payload: Raw
    priority: int
    state: TaskState
    attempt: int
    max_attempts: int
    retry_backoff_seconds: float
    timeout_seconds: float | None
    not_before: datetime | None
    created_at: datetime
    work_id: UUID | None
    remark: str | None
    result: Raw
    error: str | None
    ended_at: datetime | None


class StoredTool(Struct, kw_only=True):
    """A tool as it was when its work ended."""

    id: str
    skills: Raw
    capacity: int
    load: int
    state: ToolState
    lease_seconds: float
    lease_expires_at: datetime
    registered_at: datetime
    seen_at: datetime


class StoredReport(Struct, kw_only=True):
    """A report on ended work."""

    id: UUID
    at: datetime
    progress: float | None
    message: str | None
    data: Raw


class StoredLateResult(Struct, kw_only=True):
    """The result that a tool sent after its work had ended."""

    outcome: str
    result: Raw
    error: str | None
    at: datetime


_task = Decoder(StoredTask)
_tool = Decoder(StoredTool)
_report = Decoder(StoredReport)
_late = Decoder(StoredLateResult)


def read_task(stored: Raw) -> Task:
    """Return the task of a record."""
    return Task(**asdict(_task.decode(stored)))


def read_tool(stored: Raw) -> ToolStatus:
    """Return the tool of a record."""
    return ToolStatus(**asdict(_tool.decode(stored)))


def read_report(stored: Raw) -> Report:
    """Return a report of a record."""
    return Report(**asdict(_report.decode(stored)))


def read_late(stored: Raw) -> LateResult:
    """Return the late result of a record."""
    return LateResult(**asdict(_late.decode(stored)))
