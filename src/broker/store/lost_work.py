"""Lost work: what ends because its tool was registered again or deleted."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from broker.store import completion, rows
from broker.store.completion import Ending
from broker.store.database_errors import BeginAgain
from broker.store.locks import lock

OF_TOOLS = text(f"""
with found as materialized (
    select id, task_id, report_bytes
    from work
    where tool_id = any(cast(:tool_ids as text[])) and (state = 'running' or not :running_only)
)
select f.id, f.report_bytes + {rows.task_bytes("t")} as size
from found f
join tasks t on t.id = f.task_id and t.id = any(array(select task_id from found))
order by f.id
""")


def lose(
    connection: Connection,
    tool_ids: Collection[str],
    why: str,
    *,
    running_only: bool = False,
    beside: Collection[str] = (),
) -> None:
    """End the work of tools as lost; the tools stay locked, and get no more meanwhile.

    Args:
        connection: In an open transaction.
        tool_ids: The tools.
        why: For people.
        running_only: Whether work that was not started stays.
        beside: Other tools to be locked: all at once, so that they are in the order that everyone shares.

    Raises:
        BeginAgain: A tool got work behind our back, and work comes first in the order of locks.
    """

    def of_tools() -> Sequence[Row[Any]]:
        values = {"tool_ids": list(tool_ids), "running_only": running_only}
        return connection.execute(OF_TOOLS, values).all()

    seen = [row.id for row in of_tools()]
    lock(connection, seen, tool_ids=[*tool_ids, *beside])
    found = of_tools()
    if not {row.id for row in found} <= set(seen):
        raise BeginAgain
    for part in completion.parts(found):
        completion.end(connection, [Ending(row.id, "lost", error=why) for row in part])
