"""Deleting tasks: at once where nothing runs, by asking the tool to stop where something does."""

from collections.abc import Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from broker.store import cancellation, completion, ended_tasks, locks
from broker.store.cancellation import Cancellation
from broker.store.completion import Ending
from broker.store.database_errors import BeginAgain

WORK_OF = text("""
select t.id, t.work_id, w.state
from tasks t
left join work w
  on w.id = t.work_id and w.id = any(array(select work_id from tasks where id = any(cast(:ids as text[]))))
where t.id = any(cast(:ids as text[]))
""")


class TaskDeletion(NamedTuple):
    """A task to delete; by force, its running work ends at once."""

    id: str
    force: bool = False


TaskDeleted = Literal["deleted", "asked", "unknown"]


def delete(connection: Connection, deletions: Sequence[TaskDeletion]) -> list[TaskDeleted]:
    """Delete tasks; one that is to be deleted with and without force, is deleted by force.

    Args:
        connection: In an open transaction.
        deletions: The tasks.

    Returns:
        For each `deleted` (an ended one, too), `asked` where its tool is asked to stop, or `unknown`.

    Raises:
        BeginAgain: A task got work behind our back, and work comes first in the order of locks.
    """
    ids = list({deletion.id for deletion in deletions})
    forced = {deletion.id for deletion in deletions if deletion.force}
    seen = _work_of(connection, ids)
    locked = {work_id for work_id, _ in seen.values() if work_id}
    locks.lock(connection, list(locked), task_ids=ids)
    states = _work_of(connection, ids)
    if any(work_id and work_id not in locked for work_id, _ in states.values()):
        raise BeginAgain

    stopped: dict[str, Ending] = {}
    asked: dict[str, UUID] = {}
    for id_, (work_id, state) in states.items():
        if work_id and (id_ in forced or state == "assigned"):
            stopped[id_] = Ending(work_id, "cancelled")
        elif work_id:
            asked[id_] = work_id
    # Before it is stopped, too: a cancel that asked for another attempt is overruled.
    work_ids = [*asked.values(), *(ending.work_id for ending in stopped.values())]
    if work_ids:
        cancellation.cancel(connection, [Cancellation(work_id) for work_id in work_ids])
    if stopped:
        completion.end(connection, list(stopped.values()))
    idle = [id_ for id_, (work_id, _) in states.items() if not work_id]
    gone = ended_tasks.record_deleted(connection, idle) if idle else set()
    if len(gone) < len(idle):
        # Submitted after the lock and assigned before it could be deleted.
        raise BeginAgain
    unknown = [id_ for id_ in ids if id_ not in states]
    ended = ended_tasks.has_ended(connection, unknown) if unknown else set()

    answers: dict[str, TaskDeleted] = dict.fromkeys(unknown, "unknown")
    answers |= dict.fromkeys([*stopped, *gone, *ended], "deleted")
    answers |= dict.fromkeys(asked, "asked")
    return [answers[deletion.id] for deletion in deletions]


def _work_of(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[UUID | None, str | None]]:
    """For each of the tasks that is live, its work and that work's state."""
    return {row.id: (row.work_id, row.state) for row in connection.execute(WORK_OF, {"ids": ids})}
