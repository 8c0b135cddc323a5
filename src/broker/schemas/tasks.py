"""Requests and responses about tasks."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_ATTEMPTS, MOST_IN_BATCH
from broker.schemas.states import TaskState, Verdict
from broker.schemas.values import (
    JSON,
    NULL_DEFAULT,
    AssignerSeenAt,
    CreatedAt,
    Id,
    Moment,
    Next,
    Request,
    TaskId,
    Text,
    Time,
)

AttemptsSoFar = Annotated[
    int, Meta(description="Number of ended attempts that count towards `max_attempts`.")
]
CurrentRemark = Annotated[
    str | None,
    Meta(description="The assigner's explanation why the task still waits. Null after the task is assigned."),
]
Priority = Annotated[int, Meta(ge=-32768, le=32767, description="Tasks with a higher priority come first.")]
MaxAttempts = Annotated[
    int,
    Meta(
        ge=1, le=MOST_ATTEMPTS, description="After this many attempts without success, the task is `failed`."
    ),
]
TimeoutSeconds = Annotated[float, Meta(gt=0, le=31_536_000)]
BackoffSeconds = Annotated[
    float,
    Meta(
        ge=0,
        le=86_400,
        description="If the first attempt ends as `failed` or `timed_out`, the delay before the second one."
        " The delay doubles with each further attempt, up to a day. The broker waits between 50% and 100% of"
        " the delay, at random.",
    ),
]
NeedsValue = Annotated[
    JSON, Meta(description="The requirements of the task, for the assigner to match with tools' `skills`.")
]
PayloadValue = Annotated[JSON, Meta(description="Input for the tool, exactly as it was submitted.")]
CurrentTaskState = Annotated[TaskState, Meta(description="State of the task.")]
VerdictDetail = Annotated[str, Meta(description="The reason in sentences, for people.")]


class NewTask(Request, kw_only=True):
    """A task to submit."""

    needs: NeedsValue
    id: Annotated[
        Id | None,
        Meta(description="Id of the task. Makes it safe to repeat the request. Default: a UUID (version 7)."),
    ] = None
    payload: Annotated[JSON, Meta(description="Input for the tool, which gets it unchanged.")] = NULL_DEFAULT
    priority: Priority = 0
    not_before: Annotated[
        Time | None, Meta(description="The task does not become available before this time.")
    ] = None
    timeout_seconds: Annotated[
        TimeoutSeconds | None,
        Meta(description="If an attempt runs longer, the broker ends it as `timed_out`. Null: no limit."),
    ] = None
    max_attempts: MaxAttempts = 3
    retry_backoff_seconds: BackoffSeconds = 1.0


class NewTasks(Request, kw_only=True):
    """A batch of tasks. The broker writes all of them or none."""

    items: Annotated[
        list[NewTask],
        Meta(min_length=1, max_length=MOST_IN_BATCH, description=f"1 to {MOST_IN_BATCH:,} tasks."),
    ]


class Task(Struct, kw_only=True):
    """A task, live or ended."""

    id: TaskId
    needs: NeedsValue
    payload: PayloadValue
    priority: Annotated[int, Meta(description="Tasks with a higher priority come first.")]
    state: CurrentTaskState
    attempt: AttemptsSoFar
    max_attempts: Annotated[
        int, Meta(description="After this many attempts without success, the task is `failed`.")
    ]
    retry_backoff_seconds: Annotated[
        float,
        Meta(description="Maximum delay before the second attempt, if the first one failed or timed out."),
    ]
    timeout_seconds: Annotated[
        float | None, Meta(description="Maximum duration of an attempt. Null: no limit.")
    ]
    not_before: Annotated[
        Moment | None, Meta(description="The task does not become available before this time.")
    ]
    created_at: CreatedAt
    work_id: Annotated[
        UUID | None, Meta(description="Id of the work in progress. Null if no tool has the task.")
    ]
    remark: CurrentRemark
    result: Annotated[JSON, Meta(description="The result of a task that has succeeded. Otherwise null.")]
    error: Annotated[str | None, Meta(description="The error of the last attempt that did not succeed.")]
    ended_at: Annotated[
        Moment | None, Meta(description="Time when the task ended or became `failed`. Otherwise null.")
    ]


class TaskPage(Struct, kw_only=True):
    """A page of the live tasks, in the order of their submission."""

    items: Annotated[list[Task], Meta(description="The tasks of this page.")]
    next: Next


class SubmittedTask(Struct, kw_only=True):
    """The result for one task of a batch."""

    id: TaskId
    status: Annotated[
        Literal["created", "exists"],
        Meta(description="`exists`: a task with this id was submitted before, and nothing has changed."),
    ]


class SubmittedTasks(Struct, kw_only=True):
    """The result for each task of a batch, in the order of the request."""

    items: Annotated[list[SubmittedTask], Meta(description="One result for each task.")]


VerdictWord = Annotated[Verdict, Meta(description="The reason in one word, for programs.")]


class Explanation(Struct, kw_only=True):
    """The reason why a task has not run yet."""

    state: CurrentTaskState
    verdict: VerdictWord
    detail: VerdictDetail
    remark: CurrentRemark
    available_tools: Annotated[int, Meta(description="Number of available tools.")]
    assigner_seen_at: AssignerSeenAt


class NewRemark(Request, kw_only=True):
    """The assigner's explanation why a task still waits."""

    text: Annotated[Text, Meta(description="The explanation, for people.")]


class TaskRemark(Request, kw_only=True):
    """A remark and the id of its task."""

    task_id: Annotated[Id, Meta(description="Id of the task.")]
    text: Annotated[Text, Meta(description="The explanation, for people.")]


class TaskRemarks(Request, kw_only=True):
    """A batch of remarks."""

    items: Annotated[
        list[TaskRemark],
        Meta(min_length=1, max_length=MOST_IN_BATCH, description=f"1 to {MOST_IN_BATCH:,} remarks."),
    ]


class Remarked(Struct, kw_only=True):
    """The result for one remark of a batch."""

    task_id: TaskId
    status: Annotated[
        Literal["ok", "task_not_found"],
        Meta(description="`task_not_found`: no task with this id exists. The other remarks are stored."),
    ]


class RemarkedTasks(Struct, kw_only=True):
    """The result for each remark of a batch, in the order of the request."""

    items: Annotated[list[Remarked], Meta(description="One result for each remark.")]
