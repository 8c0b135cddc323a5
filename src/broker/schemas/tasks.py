"""Requests and responses about tasks."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from broker.schemas.limits import MOST_ATTEMPTS, MOST_IN_BATCH
from broker.schemas.states import TaskState, Verdict
from broker.schemas.values import JSON, NULL_DEFAULT, Id, Moment, Next, Request, Text, Time

AttemptsSoFar = Annotated[int, Meta(description="How many attempts have counted so far.")]
LastWord = Annotated[str | None, Meta(description="The assigner's word on why the task still waits.")]
Priority = Annotated[int, Meta(ge=-32768, le=32767, description="Higher is offered first.")]
MaxAttempts = Annotated[
    int, Meta(ge=1, le=MOST_ATTEMPTS, description="So many attempts; then the task has failed.")
]
TimeoutSeconds = Annotated[float, Meta(gt=0, le=31_536_000, description="The longest an attempt may run.")]
BackoffSeconds = Annotated[float, Meta(ge=0, le=86_400, description="The wait before the second attempt.")]


class NewTask(Request, kw_only=True):
    """Something that needs doing."""

    needs: JSON
    id: Id | None = None
    payload: JSON = NULL_DEFAULT
    priority: Priority = 0
    not_before: Time | None = None
    timeout_seconds: TimeoutSeconds | None = None
    max_attempts: MaxAttempts = 3
    retry_backoff_seconds: BackoffSeconds = 1.0


class NewTasks(Request, kw_only=True):
    """Many tasks in one call: all of them are written, or none."""

    items: Annotated[list[NewTask], Meta(min_length=1, max_length=MOST_IN_BATCH)]


class Task(Struct, kw_only=True):
    """A task, live or ended."""

    id: str
    needs: JSON
    payload: JSON
    priority: int
    state: TaskState
    attempt: AttemptsSoFar
    max_attempts: int
    retry_backoff_seconds: float
    timeout_seconds: float | None
    not_before: Moment | None
    created_at: Moment
    work_id: Annotated[UUID | None, Meta(description="The work under way.")]
    remark: LastWord
    result: JSON
    error: str | None
    ended_at: Annotated[Moment | None, Meta(description="When it ended, or failed for good.")]


class TaskPage(Struct, kw_only=True):
    """Some of the live tasks; `next` goes into `?after=`, null at the end."""

    items: list[Task]
    next: Next


class SubmittedTask(Struct, kw_only=True):
    """What became of one task of a batch."""

    id: str
    status: Literal["created", "exists"]


class SubmittedTasks(Struct, kw_only=True):
    """What became of each task of a batch, in its order."""

    items: list[SubmittedTask]


class Explanation(Struct, kw_only=True):
    """Why a task has not run yet: a word for programs, and a sentence for people."""

    state: TaskState
    verdict: Annotated[Verdict, Meta(description="Why it has not run yet, in a word.")]
    detail: str
    remark: LastWord
    available_tools: int
    assigner_seen_at: Annotated[Moment | None, Meta(description="When an assigner last asked.")]


class NewRemark(Request, kw_only=True):
    """The assigner's word on why a task still waits."""

    text: Text


class TaskRemark(Request, kw_only=True):
    """A remark, and the task it is about."""

    task_id: Id
    text: Text


class TaskRemarks(Request, kw_only=True):
    """Many remarks in one call."""

    items: Annotated[list[TaskRemark], Meta(min_length=1, max_length=MOST_IN_BATCH)]


class Remarked(Struct, kw_only=True):
    """What became of one remark."""

    task_id: str
    status: Literal["ok", "task_not_found"]


class RemarkedTasks(Struct, kw_only=True):
    """What became of each remark, in their order."""

    items: list[Remarked]
