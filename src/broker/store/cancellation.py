"""Cancellation of work: the broker asks the tool to stop, and the work ends when the tool completes it."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from broker.schemas.work import Work
from broker.store import rows
from broker.store.group_commit import LATER
from broker.store.pages import bounded, is_cut
from broker.store.sql_connection import SqlConnection
from broker.store.steps import one_statement

_WORK = f"""
select {rows.WORK}, {rows.task_bytes("t")} as bytes
from (select * from cancelled union all select * from locked where id not in (select id from cancelled)) w
join tasks_of_work t on t.id = w.task_id"""
# After a request to cancel the task as well, a later request with `requeue` changes nothing.
CANCEL = text(f"""
with requested as (
    select u.id, bool_and(u.requeue) as requeue
    from unnest(cast(:ids as uuid[]), cast(:requeue as boolean[])) as u (id, requeue)
    group by u.id
),
locked as materialized (
    select * from work where id = any(cast(:ids as uuid[])) order by id for no key update
),
tasks_of_work as materialized (
    select * from tasks where id = any(array(select task_id from locked))
),
cancelled as (
    update work w
    set cancel_requested = true, version = w.version + 1,
        cancel_requeue = requested.requeue and (locked.cancel_requeue or not locked.cancel_requested)
    from locked join requested on requested.id = locked.id
    where w.id = locked.id and w.id = any(cast(:ids as uuid[]))
      and (not locked.cancel_requested or locked.cancel_requeue and not requested.requeue)
    returning w.*
)
{bounded(_WORK, size="r.bytes", order="id")}
""")


class Cancellation(NamedTuple):
    """A request to cancel work. Its task is cancelled too, or with `requeue` available again."""

    work_id: UUID
    requeue: bool = False


@one_statement()
def cancel(connection: SqlConnection, cancellations: Sequence[Cancellation]) -> list[Work | None]:
    """Request the cancellation of work, and return its current state, or None if it is not under way."""
    values = {
        "ids": [cancellation.work_id for cancellation in cancellations],
        "requeue": [cancellation.requeue for cancellation in cancellations],
    }
    page = connection.execute(CANCEL, values).all()
    by_id = {work.id: work for work in map(rows.work, page)}
    missing = LATER if is_cut(page) else None
    return [by_id.get(cancellation.work_id, missing) for cancellation in cancellations]
