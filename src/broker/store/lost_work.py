"""Lost work: work that ends because its tool was registered again or deleted."""

from collections.abc import Collection, Sequence

from sqlalchemy import text

from broker.store import completion, rows
from broker.store.completion import Ending
from broker.store.database_errors import RetryTransaction
from broker.store.locks import lock
from broker.store.sql_connection import SqlConnection, SqlRow

OF_TOOLS = text(f"""
with works as materialized (
    select id, task_id, report_bytes
    from work
    where tool_id = any(cast(:tool_ids as text[])) and (state = 'running' or not :running_only)
)
select w.id, w.report_bytes + {rows.task_bytes("t")} as size
from works w
join tasks t on t.id = w.task_id and t.id = any(array(select task_id from works))
order by w.id
""")


def end_as_lost(
    connection: SqlConnection,
    tool_ids: Collection[str],
    why: str,
    *,
    running_only: bool = False,
    beside: Collection[str] = (),
) -> None:
    """End the work of tools as lost. The tools stay locked and get no more work during the transaction.

    Args:
        connection: The database, in a transaction.
        tool_ids: The tools.
        why: The error of the lost work, a sentence for people.
        running_only: Whether to keep work that was not started.
        beside: Other tools to lock at the same time, because tools must be locked in the order of their ids.

    Raises:
        RetryTransaction: A tool got work before it was locked. Work must be locked before tools.
    """

    def works_of_tools() -> Sequence[SqlRow]:
        values = {"tool_ids": list(tool_ids), "running_only": running_only}
        return connection.execute(OF_TOOLS, values).all()

    before = [row.id for row in works_of_tools()]
    lock(connection, before, tool_ids=[*tool_ids, *beside])
    works = works_of_tools()
    if not {row.id for row in works} <= set(before):
        raise RetryTransaction
    for part in completion.parts(works):
        completion.end(connection, [Ending(row.id, "lost", error=why) for row in part])
