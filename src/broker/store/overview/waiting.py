"""Waiting tasks, each with the verdict why it waits."""

from sqlalchemy import text

from broker.schemas.overview import WaitingTask, WaitingTasks
from broker.schemas.tasks import Task
from broker.schemas.values import NULL
from broker.store import rows, summaries
from broker.store.explanation import BEFORE, TOOLS, facts_of
from broker.store.sql_connection import SqlConnection, SqlRow
from broker.store.verdicts import verdict

# `seq` is the order of submission.
READ = text(f"""
select now() as now, (select seen_at from assigner where id) as assigner_seen_at, {TOOLS},
       t.id, {summaries.cut("t.needs")} as needs, t.priority, t.state, t.attempt, t.max_attempts,
       t.retry_backoff_seconds, t.not_before, t.due_at, t.created_at, t.remark, t.error, {BEFORE}
from (select) always
left join (
    select *
    from tasks
    where state in ('available', 'scheduled') and id not in (select task_id from work)
    order by seq
    limit :limit
) t on true
order by t.seq
""")


def read(connection: SqlConnection, limit: int) -> WaitingTasks:
    """Return the waiting tasks, in the order of their submission."""
    read = connection.execute(READ, {"limit": limit}).all()
    return WaitingTasks(
        assigner_seen_at=read[0].assigner_seen_at,
        available_tools=read[0].available_tools,
        items=[_waiting(row) for row in read if row.id is not None],
    )


def _waiting(row: SqlRow) -> WaitingTask:
    word, detail = verdict(facts_of(row, _task(row)))
    return rows.fill(WaitingTask, row, verdict=word, detail=detail)


def _task(row: SqlRow) -> Task:
    """Return a task with the fields that a verdict needs. The statement does not read large fields."""
    return rows.fill(
        Task,
        row,
        needs=NULL,
        payload=NULL,
        timeout_seconds=None,
        work_id=None,
        result=NULL,
        ended_at=None,
    )
