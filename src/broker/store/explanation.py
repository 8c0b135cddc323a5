"""Explanations: read the facts about a task, and explain why it has not run yet."""

from msgspec.json import decode
from sqlalchemy import text

from broker.schemas.tasks import Explanation, Task
from broker.store import ended_tasks, rows
from broker.store.sql_connection import SqlConnection
from broker.store.summaries import LAST_REPORTS
from broker.store.verdicts import MOST_BEFORE, TaskFacts, ToolsByState, WorkFacts, verdict

# The number of tasks that come before the task `t`, if it is available.
BEFORE = f"""
       (select count(*) from (
            select from tasks a
            where a.state = 'available' and t.state = 'available' and {rows.without_work("a")}
              and ({rows.offer_order("a")}) < ({rows.offer_order("t")})
            order by {rows.offer_order("a")}
            limit {MOST_BEFORE + 1}
        ) before) as before"""
# The number of tools, by state.
TOOLS = """
       (select count(*) from tools where available) as available_tools,
       case when not exists (select from tools where available) then (
           select json_build_object('busy', count(*) filter (where not draining and not offline),
                                    'draining', count(*) filter (where draining and not offline),
                                    'offline', count(*) filter (where offline))
           from tools
       ) end as other_tools"""

# One statement, so that all facts are of the same moment. It reads facts that only matter for a waiting task,
# or if no tool is available, only in that case.
FACTS = text(f"""
with its as materialized (
    select * from tasks where id = :id
),
its_work as materialized (
    select * from work where task_id = :id
)
select {rows.TASK},
       now() as now, t.due_at, (select seen_at from assigner where id) as assigner_seen_at,
       {BEFORE},
       {TOOLS},
       w.tool_id, w.assigned_at, w.started_at, w.deadline_at, w.progress, w.cancel_requested,
       w.cancel_requeue, r.at as reported_at, r.message
from (select) always
left join its t on true
left join its_work w on true
left join (
    select at, message
    from (select seq, at, message from work_reports where work_id = (select id from its_work)
          order by seq desc limit {LAST_REPORTS}) last
    order by message is not null desc, seq desc
    limit 1
) r on true
""")


def facts_of(row: rows.AnyRow, task: Task, work: WorkFacts | None = None) -> TaskFacts:
    """Return the facts about a task from a row that includes the columns of `BEFORE` and `TOOLS`."""
    return TaskFacts(
        task=task,
        now=row.now,
        due_at=row.due_at,
        assigner_seen_at=row.assigner_seen_at,
        tools=ToolsByState(row.available_tools, **decode(row.other_tools or b"{}")),
        before=row.before,
        work=work,
    )


def explain(connection: SqlConnection, id_: str) -> Explanation | None:
    """Return the explanation why a task has not run yet, or None if the task is unknown."""
    row = connection.execute(FACTS, {"id": id_}).one()
    task = rows.task(row) if row.id is not None else ended_tasks.find(connection, [id_]).get(id_)
    if task is None:
        return None
    work = None
    if row.tool_id is not None:
        work = WorkFacts(**{name: getattr(row, name) for name in WorkFacts._fields})
    facts = facts_of(row, task, work)
    word, detail = verdict(facts)
    return Explanation(
        state=task.state,
        verdict=word,
        detail=detail,
        remark=task.remark,
        available_tools=facts.tools.available,
        assigner_seen_at=facts.assigner_seen_at,
    )
