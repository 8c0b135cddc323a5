"""Requests and responses about tools."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from broker.schemas.limits import DEFAULT_LEASE_SECONDS, MOST_CAPACITY
from broker.schemas.states import ToolState
from broker.schemas.values import JSON, Id, Moment, Next, Request, SeenAt, ToolId

LeaseEnd = Annotated[
    datetime,
    Meta(tz=True, description="If the tool makes no request before this time, it goes offline."),
]
Capacity = Annotated[
    int, Meta(ge=1, le=MOST_CAPACITY, description="Maximum number of work items the tool has at a time.")
]
Draining = Annotated[
    bool,
    Meta(description="True: the tool finishes its current work and gets no new work. False: it gets work."),
]
LeaseSeconds = Annotated[
    float,
    Meta(
        ge=5,
        le=86_400,
        description="If the tool makes no request for this long, it goes offline, and its tasks become"
        " available to other tools.",
    ),
]
SkillsValue = Annotated[
    JSON, Meta(description="The abilities of the tool, for the assigner to match with tasks' `needs`.")
]


class NewTool(Request, kw_only=True):
    """A tool to register."""

    skills: SkillsValue
    id: Annotated[
        Id | None,
        Meta(description="Id of the tool. Use the same id after a restart. Default: a UUID (version 7)."),
    ] = None
    capacity: Capacity = 1
    lease_seconds: LeaseSeconds = float(DEFAULT_LEASE_SECONDS)
    resume: Annotated[
        bool,
        Meta(
            description="True: the tool continues the work that it had started before a restart. False: this"
            " work is archived as `lost`, and its tasks become available again."
        ),
    ] = False


class ToolChange(Request, kw_only=True):
    """Changes to a tool. Omitted fields stay unchanged."""

    skills: SkillsValue | UnsetType = UNSET
    capacity: Capacity | UnsetType = UNSET
    lease_seconds: LeaseSeconds | UnsetType = UNSET
    draining: Draining | UnsetType = UNSET


class ToolStatus(Struct, kw_only=True):
    """A tool: a program, an instrument, a machine or anything else that does work."""

    id: ToolId
    skills: SkillsValue
    capacity: Annotated[int, Meta(description="Maximum number of work items the tool has at a time.")]
    load: Annotated[int, Meta(description="Number of work items the tool has now, started or not.")]
    state: Annotated[
        ToolState,
        Meta(
            description="`idle`: has free capacity. `busy`: has none. `draining`: gets no new work."
            " `offline`: its lease has expired."
        ),
    ]
    lease_seconds: Annotated[
        float,
        Meta(description="If the tool makes no request for this long, it goes offline."),
    ]
    lease_expires_at: LeaseEnd
    registered_at: Annotated[Moment, Meta(description="Time of the first registration.")]
    seen_at: SeenAt


class RegisteredTool(ToolStatus, kw_only=True):
    """The registered tool, with its token."""

    token: Annotated[
        str,
        Meta(
            description="The bearer token for requests that the tool makes about itself and its work. The"
            " broker"
            " shows it only here."
        ),
    ]


class Heartbeat(Struct, kw_only=True):
    """The renewed lease, and the work that the tool must stop."""

    lease_expires_at: LeaseEnd
    cancel: Annotated[list[UUID], Meta(description="Ids of the tool's work whose cancellation is requested.")]


class ToolPage(Struct, kw_only=True):
    """A page of the tools, in the order of their ids."""

    items: Annotated[list[ToolStatus], Meta(description="The tools of this page.")]
    next: Next
