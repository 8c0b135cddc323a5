"""Errors of requests that do not fit the state of a task, tool, work item or key."""

from typing import ClassVar

from broker.errors.base import BrokerError
from broker.schemas.problems import ErrorCode


class NotFound(BrokerError):
    """No resource has this path. Check its spelling. The page `/docs` lists all paths.

    The path is not part of the API. Compare it with the operations at `/docs`.
    """

    status = 404
    code: ClassVar[ErrorCode] = "not_found"


class TaskNotFound(NotFound):
    """No task has this id, and the archive has no record of it. Check the id.

    The task was never submitted, or its archive records were deleted. If `BROKER_ARCHIVE_RETENTION_DAYS` is
    set, the broker deletes old records.
    """

    code = "task_not_found"


class ToolNotFound(NotFound):
    """No tool has this id. Register the tool first.

    The tool was never registered, or somebody deleted it. A program that runs the tool registers it with
    `POST /v1/tools`. Registering with the same id again is safe.
    """

    code = "tool_not_found"


class WorkNotFound(NotFound):
    """No work has this id, and the archive has no record of it. Check the id.

    The id is wrong, or the archive record of the work was deleted. If a tool gets this error, it should stop
    the attempt and request its next work.
    """

    code = "work_not_found"


class KeyNotFound(NotFound):
    """No key has this name, or it is already revoked. Check the name.

    `GET /v1/keys` lists the keys that are not revoked.
    """

    code = "key_not_found"


class Conflict(BrokerError):
    """The request conflicts with the current state. Read the resource again.

    If the request still makes sense in the current state, repeat it.
    """

    status = 409
    code: ClassVar[ErrorCode] = "conflict"


class TaskUnavailable(Conflict):
    """The task is not available: it is assigned, has ended, has failed or is not due yet.

    After you read the candidates, another assigner assigned the task, or the task changed. Skip this task. If
    it becomes available again, `GET /v1/candidates` returns it again.
    """

    code = "task_unavailable"


class ToolUnavailable(Conflict):
    """The tool is not available: it has no free capacity, is draining or is offline.

    After you read the candidates, the tool changed. Choose another tool for the task. When this tool becomes
    available again, `GET /v1/candidates` returns it again.
    """

    code = "tool_unavailable"


class ToolBusy(Conflict):
    """The tool has unfinished work. Wait until it ends, or add `?force=true`.

    A tool with unfinished work cannot be deleted. Set `draining` first, and delete the tool when its `load`
    is 0. With `?force=true`, the broker deletes the tool at once and archives its work as `lost`. The tasks
    become available to other tools.
    """

    code = "tool_busy"


class WorkEnded(Conflict):
    """The work has already ended.

    The attempt has ended with another outcome than the one in this request. For example, somebody cancelled
    the work, it timed out, or its tool was offline. The problem has the `outcome`. Stop the attempt. If the
    tool nevertheless has a result, complete the work as `succeeded`. The archive record then keeps this late
    result, and an operator can accept it.
    """

    code = "work_ended"

    def __init__(self, outcome: str, *, late: str | None = None) -> None:
        self.outcome = outcome
        detail = f"The work has already ended as {outcome}."
        if late:
            detail += (
                f" The archive record keeps the late result. An operator can accept it with POST {late}."
            )
        super().__init__(detail)


class TaskEnded(Conflict):
    """The task has already ended. Submit a task with another id instead.

    You cannot retry a task that has succeeded or was cancelled.
    """

    code = "task_ended"


class NothingToAccept(Conflict):
    """The record of this work has no late result. If the task has failed, retry it instead.

    A late result is a `succeeded` that arrived after the work had ended with another outcome. None has
    arrived, or the work had already succeeded.
    """

    code = "nothing_to_accept"


class KeyExists(Conflict):
    """A key with this name already exists. Choose another name, or send `"replace": true`.

    `"replace": true` revokes the key that has the name, and gives its tasks and tools to the key that
    replaces it.
    """

    code = "key_exists"


class CursorExpired(BrokerError):
    """The cursor is no longer valid. Read all candidates again, without a cursor.

    The cursor comes from another database, or the database was restored or restarted after the broker
    returned it. Discard all candidates that you have, and read them again without `?cursor=`.
    """

    status = 410
    code = "cursor_expired"
