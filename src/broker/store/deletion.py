"""Deleting tasks: at once where nothing runs, by asking the tool to stop where something does."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker.schemas import NULL
from broker.store import archive, completion
from broker.store.completion import Ending

WORK_OF = text("""
select t.id, t.work_id, w.state
from tasks t
left join work w on w.id = t.work_id
where t.id = any(cast(:ids as text[]))
""")

ASK = text("""
update work w
set cancel_requested = true, cancel_requeue = false, version = w.version + 1
where w.id = any(cast(:ids as uuid[])) and (w.cancel_requeue or not w.cancel_requested)
""")

_TRIES = 10


class Deletion(NamedTuple):
    """A task to delete; by force, its running work ends at once."""

    id: str
    force: bool = False


Deleted = Literal["deleted", "asked", "unknown"]


async def delete(session: AsyncSession, deletions: Sequence[Deletion]) -> list[Deleted]:
    """Delete tasks.

    Args:
        session: An open transaction.
        deletions: The tasks.

    Returns:
        For each `deleted` (an ended one, too), `asked` where its tool is asked to stop, or `unknown`.
    """
    answers: dict[str, Deleted] = {}
    wanted = {deletion.id: deletion for deletion in deletions}
    # A task may get work, or its work may start or end, between the look and the lock: look again.
    for _ in range(_TRIES):
        pending = [deletion for deletion in wanted.values() if deletion.id not in answers]
        if not pending:
            break
        answers |= await _delete_once(session, pending)
    return [answers.get(deletion.id, "asked") for deletion in deletions]


async def _delete_once(session: AsyncSession, pending: Sequence[Deletion]) -> dict[str, Deleted]:
    ids = {"ids": [deletion.id for deletion in pending]}
    seen = (await session.execute(WORK_OF, ids)).all()
    locked = {row[1] for row in seen if row[1]}
    await completion.lock(session, list(locked), ids["ids"])
    states = {row[0]: (row[1], row[2]) for row in await session.execute(WORK_OF, ids)}

    stopped: dict[str, Ending] = {}
    asked: dict[str, object] = {}
    for id_, force in pending:
        work_id, state = states.get(id_, (None, None))
        if work_id in locked and (force or state == "assigned"):
            stopped[id_] = Ending(work_id, "cancelled", NULL, None)
        elif work_id in locked:
            asked[id_] = work_id
    # Before it is stopped, too: a cancel that asked for another attempt is overruled.
    work_ids = [*asked.values(), *(ending.work_id for ending in stopped.values())]
    if work_ids:
        await session.execute(ASK, {"ids": work_ids})
    if stopped:
        await completion.end(session, list(stopped.values()))
    gone = await archive.record_deleted(session, [id_ for id_, (work_id, _) in states.items() if not work_id])
    unknown = [id_ for id_, _ in pending if id_ not in states]
    ended = await archive.has_ended(session, unknown) if unknown else set()

    answers: dict[str, Deleted] = {}
    answers |= dict.fromkeys([*stopped, *gone, *ended], "deleted")
    answers |= dict.fromkeys(asked, "asked")
    answers |= dict.fromkeys((id_ for id_ in unknown if id_ not in ended), "unknown")
    return answers
