"""What pairing reads of the broker's answers: no payloads, and nothing else that it does not need."""

from datetime import datetime

from msgspec import Struct

from broker.schemas.states import ToolState
from broker.schemas.values import JSON


class OfferedTask(Struct, kw_only=True):
    """What it needs to know of a task that is available."""

    id: str
    needs: JSON
    priority: int
    created_at: datetime
    remark: str | None = None


class OfferedTool(Struct, kw_only=True):
    """What it needs to know of a tool that is available."""

    id: str
    skills: JSON
    capacity: int
    load: int


class Offers(Struct, kw_only=True):
    """The candidates, as `GET /v1/candidates` answers them."""

    cursor: str
    tasks: list[OfferedTask]
    tools: list[OfferedTool]
    more: bool


class RegisteredTool(Struct, kw_only=True):
    """What it needs to know of a tool that may have no room, or be away."""

    id: str
    skills: JSON
    state: ToolState
    lease_expires_at: datetime


class RegisteredTools(Struct, kw_only=True):
    """A page of the tools, as `GET /v1/tools` answers it."""

    items: list[RegisteredTool]
    next: str | None
