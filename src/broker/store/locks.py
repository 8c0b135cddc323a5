"""Locks: all transactions lock work, then tasks, then tools, then leases, each kind in the order of ids."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from broker.store.sql_connection import SqlConnection

LOCK = text("""
with locked_work as materialized (
    select id, task_id, tool_id from work where id = any(cast(:ids as uuid[])) order by id for update
),
locked_tasks as materialized (
    select id
    from tasks
    where id = any(cast(:task_ids as text[]) || array(select task_id from locked_work))
    order by id
    for update
),
locked_tools as materialized (
    select id
    from tools
    where id = any(cast(:tool_ids as text[]) || array(select tool_id from locked_work))
      and (select count(*) from locked_tasks) >= 0
    order by id
    for no key update
)
select tool_id
from tool_leases
where tool_id = any(cast(:tool_ids as text[])) and (select count(*) from locked_tools) >= 0
order by tool_id
for no key update
""")


def lock(
    connection: SqlConnection,
    work_ids: Sequence[UUID],
    *,
    task_ids: Sequence[str] = (),
    tool_ids: Sequence[str] = (),
) -> None:
    """Lock work with its tasks and tools, then further tasks, and further tools with their leases."""
    values = {"ids": list(work_ids), "task_ids": list(task_ids), "tool_ids": list(tool_ids)}
    connection.execute(LOCK, values)
