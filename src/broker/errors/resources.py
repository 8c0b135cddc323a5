"""Errors of requests that do not fit the state of a task, tool, work item or key."""

from typing import ClassVar

from broker.errors.base import BrokerError
from broker.schemas.problems import ErrorCode


class NotFound(BrokerError):
    """No resource has this path.

    The path is not part of the API. Check its spelling, and compare it with the operations at `/docs`.
    """

    status = 404
    code: ClassVar[ErrorCode] = "not_found"


class TaskNotFound(NotFound):
    """No task has this id, neither live nor in the archive.

    The task was never submitted, or its archive records were deleted. Check the id. Retention deletes old
    archive records if it is set.
    """

    code = "task_not_found"


class ToolNotFound(NotFound):
    """No tool has this id. Register the tool first.

    The tool was never registered, or somebody deleted it. A program that runs the tool registers it with
    `POST /v1/tools`. Registering with the same id again is safe.
    """

    code = "tool_not_found"


class WorkNotFound(NotFound):
    """No work has this id, neither in progress nor in the archive.

    The id is wrong, or the archive record of the work was deleted. A tool that gets this error stops the
    attempt and asks for its next work.
    """

    code = "work_not_found"


class KeyNotFound(NotFound):
    """No key in use has this name.

    The key does not exist, or it is revoked already. `GET /v1/keys` lists the keys in use.
    """

    code = "key_not_found"


class Conflict(BrokerError):
    """The request conflicts with the current state.

    Read the resource again, and decide from its current state whether the request still makes sense.
    """

    status = 409
    code: ClassVar[ErrorCode] = "conflict"


class TaskUnavailable(Conflict):
    """The task is not available: it is assigned, has ended, has failed or is not due yet.

    Between reading the candidates and assigning, another assigner was faster, or the task changed. Skip this
    task. `GET /v1/candidates` returns it again if it becomes available.
    """

    code = "task_unavailable"


class ToolUnavailable(Conflict):
    """The tool is not available: it has no free capacity, is draining or is offline.

    Between reading the candidates and assigning, the tool changed. Choose another tool for the task.
    `GET /v1/candidates` returns this tool again when it becomes available.
    """

    code = "tool_unavailable"


class ToolBusy(Conflict):
    """The tool has unfinished work. Wait until it ends, or add `?force=true`.

    A tool with unfinished work cannot be deleted. Set `draining` first, and delete the tool when its `load`
    is 0. With `?force=true` the broker deletes the tool at once, archives its work as `lost` and offers the
    tasks to other tools.
    """

    code = "tool_busy"


class WorkEnded(Conflict):
    """The work has already ended.

    The attempt has ended with another outcome than the one in this request: somebody cancelled the work, its
    time was up, or its tool was offline for too long. The problem has the `outcome`. Stop the attempt. If the
    tool has a result nevertheless, the broker keeps a `succeeded` that arrives late in the archive record,
    and an operator can accept it.
    """

    code = "work_ended"

    def __init__(self, outcome: str, *, late: str | None = None) -> None:
        self.outcome = outcome
        detail = f"The work has already ended as {outcome}."
        if late:
            detail += f" Its record keeps the late result. An operator can accept it with POST {late}."
        super().__init__(detail)


class TaskEnded(Conflict):
    """The task has already ended.

    A task that has succeeded or was cancelled cannot be retried. Submit a task with another id instead.
    """

    code = "task_ended"


class NothingToAccept(Conflict):
    """The record of this work has no late result.

    Only a `succeeded` that arrived after the work had ended otherwise can be accepted. None has arrived, or
    the work had succeeded already. Retry the task instead.
    """

    code = "nothing_to_accept"


class KeyExists(Conflict):
    """A key with this name exists. Choose another name, or send `"replace": true`.

    `"replace": true` revokes the key that has the name, and gives its tasks and tools to the key that
    replaces it.
    """

    code = "key_exists"


class CursorExpired(BrokerError):
    """The cursor is no longer valid. Start again without a cursor.

    The cursor comes from another database, or from before the database was restored from a backup. Discard
    what you know about candidates, and read them again without `?cursor=`.
    """

    status = 410
    code = "cursor_expired"
