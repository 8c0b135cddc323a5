"""The parts of the broker's responses that the assigner needs: no payloads."""

from datetime import datetime

from msgspec import Struct

from broker.schemas.states import ToolState
from broker.schemas.values import JSON


class CandidateTask(Struct, kw_only=True):
    """An available task."""

    id: str
    needs: JSON
    priority: int
    created_at: datetime
    remark: str | None = None


class CandidateTool(Struct, kw_only=True):
    """An available tool."""

    id: str
    skills: JSON
    capacity: int
    load: int


class CandidatePage(Struct, kw_only=True):
    """A page of candidates, as `GET /v1/candidates` returns it."""

    cursor: str
    tasks: list[CandidateTask]
    tools: list[CandidateTool]
    more: bool


class ListedTool(Struct, kw_only=True):
    """A registered tool, in any state."""

    id: str
    skills: JSON
    state: ToolState
    lease_expires_at: datetime


class ListedToolPage(Struct, kw_only=True):
    """A page of the registered tools, as `GET /v1/tools` returns it."""

    items: list[ListedTool]
    next: str | None
