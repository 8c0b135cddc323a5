"""Requests and responses about completing work."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.archive import ArchiveRecord
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_COMPLETIONS
from broker.schemas.states import ChosenOutcome
from broker.schemas.values import JSON, NULL_DEFAULT, Request, Text
from broker.schemas.work import Work

Retry = Annotated[bool, Meta(description="Whether a failed task may be tried again.")]
NextWaitSeconds = Annotated[
    float,
    Meta(
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        description="Wait this long, in the same call, for this tool's next work.",
    ),
]


class Completion(Request, kw_only=True):
    """How the work ended."""

    outcome: ChosenOutcome
    result: JSON = NULL_DEFAULT
    error: Text | None = None
    retry: Retry = True
    next_wait_seconds: NextWaitSeconds = 0.0


class WorkCompletion(Request, kw_only=True):
    """How one piece of work of a batch ended."""

    work_id: UUID
    outcome: ChosenOutcome
    result: JSON = NULL_DEFAULT
    error: Text | None = None
    retry: Retry = True


class WorkCompletions(Request, kw_only=True):
    """How many pieces of work ended, each for itself."""

    items: Annotated[list[WorkCompletion], Meta(min_length=1, max_length=MOST_COMPLETIONS)]


class Completed(Struct, kw_only=True):
    """The record that went to the archive, and the tool's next work where it asked to wait for it."""

    archived: ArchiveRecord
    next: Annotated[list[Work], Meta(description="The work that its tool has not started.")]


CompletedStatus = Literal["archived", "exists", "work_ended", "work_not_found", "forbidden"]


class CompletedWork(Struct, kw_only=True):
    """What became of one completion of a batch."""

    work_id: UUID
    status: CompletedStatus


class CompletedBatch(Struct, kw_only=True):
    """What became of each completion, in their order."""

    items: list[CompletedWork]
