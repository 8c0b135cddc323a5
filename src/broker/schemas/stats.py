"""Responses about statistics."""

from typing import Annotated

from msgspec import Meta, Struct

from broker.schemas.values import Moment


class TaskCounts(Struct, kw_only=True):
    """How many live tasks there are, by their state."""

    scheduled: int
    available: int
    assigned: int
    running: int
    failed: int


class ToolCounts(Struct, kw_only=True):
    """How many tools there are, by their state."""

    idle: int
    busy: int
    draining: int
    offline: int
    room: Annotated[int, Meta(description="How much more work they could be given now.")]


class WorkCounts(Struct, kw_only=True):
    """How much work is under way, by its state."""

    assigned: int
    running: int
    cancel_requested: Annotated[int, Meta(description="How much of it is asked to stop.")]


class LastMinute(Struct, kw_only=True):
    """Rates per minute: the tasks that came in the last one, and the attempts that ended, by outcome."""

    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    released: int
    lost: int
    timed_out: int


class Stats(Struct, kw_only=True):
    """How many of everything there are, all at one moment, and what has happened in the minute before."""

    at: Moment
    tasks: TaskCounts
    tools: ToolCounts
    work: WorkCounts
    last_minute: LastMinute
    oldest_available_seconds: Annotated[
        float | None, Meta(description="How long ago the oldest available task was submitted.")
    ]
    assigner_seen_at: Annotated[Moment | None, Meta(description="When an assigner last asked.")]
