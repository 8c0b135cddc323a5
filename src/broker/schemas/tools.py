"""Requests and responses about tools."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from broker.schemas.limits import DEFAULT_LEASE_SECONDS, MOST_CAPACITY
from broker.schemas.states import ToolState
from broker.schemas.values import JSON, Id, Moment, Next, Request

LeaseEnd = Annotated[
    datetime, Meta(tz=True, description="The tool is offline if it is not heard of by then.")
]
Capacity = Annotated[int, Meta(ge=1, le=MOST_CAPACITY, description="How much work the tool takes at once.")]
Draining = Annotated[bool, Meta(description="It finishes what it has, and gets no more.")]
LeaseSeconds = Annotated[float, Meta(ge=5, le=86_400, description="Silent for longer, a tool is offline.")]


class NewTool(Request, kw_only=True):
    """A tool that registers."""

    skills: JSON
    id: Id | None = None
    capacity: Capacity = 1
    lease_seconds: LeaseSeconds = float(DEFAULT_LEASE_SECONDS)
    resume: Annotated[bool, Meta(description="It goes on with what its last run had started.")] = False


class ToolChange(Request, kw_only=True):
    """What may be changed of a tool; what is left out stays."""

    skills: JSON | UnsetType = UNSET
    capacity: Capacity | UnsetType = UNSET
    lease_seconds: LeaseSeconds | UnsetType = UNSET
    draining: Draining | UnsetType = UNSET


class ToolStatus(Struct, kw_only=True):
    """A program, an instrument, a machine: anything that does work."""

    id: str
    skills: JSON
    capacity: int
    load: Annotated[int, Meta(description="How much work it has.")]
    state: ToolState
    lease_seconds: float
    lease_expires_at: LeaseEnd
    registered_at: Moment
    seen_at: Moment


class RegisteredTool(ToolStatus, kw_only=True):
    """A tool, with the token that is shown this once."""

    token: Annotated[
        str, Meta(description="For the calls that the tool makes itself; it is shown this once.")
    ]


class Heartbeat(Struct, kw_only=True):
    """Until when the tool's lease runs, and which of its work should stop."""

    lease_expires_at: LeaseEnd
    cancel: Annotated[list[UUID], Meta(description="The work that should stop.")]


class ToolPage(Struct, kw_only=True):
    """Some of the tools; `next` goes into `?after=`, null at the end."""

    items: list[ToolStatus]
    next: Next
