"""Requests and responses about completing work."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.archive import ArchiveRecord
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_COMPLETIONS
from broker.schemas.states import ChosenOutcome
from broker.schemas.values import JSON, NULL_DEFAULT, Request, Text, WorkId
from broker.schemas.work import Work

EndsAs = Annotated[
    ChosenOutcome,
    Meta(
        description="How the work ended. `succeeded` and `cancelled` end the task. After `failed`, the broker"
        " retries the task. After `released`, the task is available at once, and the attempt does not count."
    ),
]
SentResult = Annotated[
    JSON, Meta(description="The result: any JSON value. The broker returns exactly this text.")
]
SentError = Annotated[
    Text | None, Meta(description="The reason why the attempt did not succeed, for people.")
]
Retry = Annotated[bool, Meta(description="With `failed`: false if the task must get no further attempt.")]
NextWaitSeconds = Annotated[
    float,
    Meta(
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        description="After the completion, wait in the same request up to this many seconds for the next work"
        " of this tool.",
    ),
]


class Completion(Request, kw_only=True):
    """The outcome of work, with its result or error."""

    outcome: EndsAs
    result: SentResult = NULL_DEFAULT
    error: SentError = None
    retry: Retry = True
    next_wait_seconds: NextWaitSeconds = 0.0


class WorkCompletion(Request, kw_only=True):
    """The outcome of one work item of a batch."""

    work_id: Annotated[UUID, Meta(description="Id of the work.")]
    outcome: EndsAs
    result: SentResult = NULL_DEFAULT
    error: SentError = None
    retry: Retry = True


class WorkCompletions(Request, kw_only=True):
    """A batch of completions. The broker handles each of them independently."""

    items: Annotated[
        list[WorkCompletion],
        Meta(
            min_length=1, max_length=MOST_COMPLETIONS, description=f"1 to {MOST_COMPLETIONS:,} completions."
        ),
    ]


class Completed(Struct, kw_only=True):
    """The archive record of the work, and the next work of the tool if the request asked for it."""

    archived: Annotated[ArchiveRecord, Meta(description="The archive record of the work.")]
    next: Annotated[
        list[Work],
        Meta(description="Work assigned to the tool and not started. Empty without `next_wait_seconds`."),
    ]


CompletedStatus = Literal["archived", "exists", "work_ended", "work_not_found", "forbidden"]


class CompletedWork(Struct, kw_only=True):
    """The result for one completion of a batch."""

    work_id: WorkId
    status: Annotated[
        CompletedStatus,
        Meta(
            description="`archived`: completed now. `exists`: completed earlier with the same outcome."
            " Otherwise the reason why the broker did not complete it."
        ),
    ]


class CompletedBatch(Struct, kw_only=True):
    """The result for each completion of a batch, in the order of the request."""

    items: Annotated[list[CompletedWork], Meta(description="One result for each completion.")]
