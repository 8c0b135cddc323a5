"""Responses about statistics."""

from typing import Annotated

from msgspec import Meta, Struct

from broker.schemas.values import AssignerSeenAt, Moment


class TaskCounts(Struct, kw_only=True):
    """Numbers of live tasks by state."""

    scheduled: Annotated[
        int, Meta(description="Tasks before their `not_before`, or before their next attempt.")
    ]
    available: Annotated[int, Meta(description="Tasks that wait for an assignment.")]
    assigned: Annotated[int, Meta(description="Tasks that a tool has and has not started.")]
    running: Annotated[int, Meta(description="Tasks that a tool has started.")]
    failed: Annotated[
        int, Meta(description="Tasks without attempts left that nobody has retried or cancelled.")
    ]


class ToolCounts(Struct, kw_only=True):
    """Numbers of tools by state."""

    idle: Annotated[int, Meta(description="Tools with free capacity.")]
    busy: Annotated[int, Meta(description="Tools without free capacity.")]
    draining: Annotated[int, Meta(description="Tools that finish their work and get no more.")]
    offline: Annotated[int, Meta(description="Tools whose lease has expired.")]
    room: Annotated[int, Meta(description="Free capacity of all available tools together.")]


class WorkCounts(Struct, kw_only=True):
    """Numbers of work items in progress by state."""

    assigned: Annotated[int, Meta(description="Work items that are not started.")]
    running: Annotated[int, Meta(description="Work items that are started.")]
    cancel_requested: Annotated[
        int, Meta(description="Work items, of all states, whose cancellation is requested.")
    ]


class LastMinute(Struct, kw_only=True):
    """Rates per minute: tasks submitted, and attempts ended by outcome."""

    submitted: Annotated[int, Meta(description="Tasks that were submitted.")]
    succeeded: Annotated[int, Meta(description="Attempts that succeeded.")]
    failed: Annotated[int, Meta(description="Attempts that failed.")]
    cancelled: Annotated[int, Meta(description="Attempts that were cancelled.")]
    released: Annotated[int, Meta(description="Attempts that a tool gave back, or that somebody requeued.")]
    lost: Annotated[int, Meta(description="Attempts whose tool went offline or did not start in time.")]
    timed_out: Annotated[int, Meta(description="Attempts that exceeded their `timeout_seconds`.")]


class Stats(Struct, kw_only=True):
    """Counts of tasks, tools and work at one moment, and rates of the minute before."""

    at: Annotated[Moment, Meta(description="The moment of the counts.")]
    tasks: Annotated[TaskCounts, Meta(description="Live tasks by state.")]
    tools: Annotated[ToolCounts, Meta(description="Tools by state.")]
    work: Annotated[WorkCounts, Meta(description="Work in progress by state.")]
    last_minute: Annotated[LastMinute, Meta(description="Rates of the last minute.")]
    oldest_available_seconds: Annotated[
        float | None,
        Meta(description="Time since the oldest available task was submitted. Null if no task is available."),
    ]
    assigner_seen_at: AssignerSeenAt
