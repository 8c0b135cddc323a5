"""Cancel tasks. If a task's work is running, the broker asks the tool to stop first."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import text

from broker.store import cancellation, completion, ended_tasks, locks
from broker.store.cancellation import Cancellation
from broker.store.completion import Ending
from broker.store.database_errors import RetryTransaction
from broker.store.sql_connection import SqlConnection

WORK_OF = text("""
select t.id, w.id as work_id, w.state
from tasks t
left join work w on w.task_id = t.id and w.task_id = any(cast(:ids as text[]))
where t.id = any(cast(:ids as text[]))
""")


class TaskDeletion(NamedTuple):
    """A request to cancel a task. With `force`, its running work ends at once."""

    id: str
    force: bool = False


TaskDeleted = Literal["deleted", "asked", "unknown"]


def delete(connection: SqlConnection, deletions: Sequence[TaskDeletion]) -> list[TaskDeleted]:
    """Cancel tasks. If a task comes with and without force, cancel it with force.

    Returns:
        For each task `deleted` (also if it had ended before), `asked` if its tool must stop first, or
        `unknown`.

    Raises:
        RetryTransaction: A task got work before it was locked. Work must be locked before tasks.
    """
    ids = list({deletion.id for deletion in deletions})
    forced = {deletion.id for deletion in deletions if deletion.force}
    locked = {work_id for work_id, _ in _work_of(connection, ids).values() if work_id}
    locks.lock(connection, list(locked), task_ids=ids)
    states = _work_of(connection, ids)
    if any(work_id and work_id not in locked for work_id, _ in states.values()):
        raise RetryTransaction

    stopped: dict[str, Ending] = {}
    asked: dict[str, UUID] = {}
    for id_, (work_id, state) in states.items():
        if work_id and (id_ in forced or state == "assigned"):
            stopped[id_] = Ending(work_id, "cancelled")
        elif work_id:
            asked[id_] = work_id
    # Request the cancellation even of work that ends at once, to override an earlier request with `requeue`.
    work_ids = [*asked.values(), *(ending.work_id for ending in stopped.values())]
    if work_ids:
        cancellation.cancel(connection, [Cancellation(work_id) for work_id in work_ids])
    if stopped:
        completion.end(connection, list(stopped.values()))
    idle = [id_ for id_, (work_id, _) in states.items() if not work_id]
    deleted = ended_tasks.record_deleted(connection, idle) if idle else set()
    if len(deleted) < len(idle):
        # A task was submitted after the lock and assigned before its cancellation.
        raise RetryTransaction
    unknown = [id_ for id_ in ids if id_ not in states]
    ended = ended_tasks.has_ended(connection, unknown) if unknown else set()

    results: dict[str, TaskDeleted] = dict.fromkeys(unknown, "unknown")
    results |= dict.fromkeys([*stopped, *deleted, *ended], "deleted")
    results |= dict.fromkeys(asked, "asked")
    return [results[deletion.id] for deletion in deletions]


def _work_of(connection: SqlConnection, ids: Sequence[str]) -> dict[str, tuple[UUID | None, str | None]]:
    """Return the work of each live task, and that work's state."""
    return {row.id: (row.work_id, row.state) for row in connection.execute(WORK_OF, {"ids": ids})}
