"""Tools, and what they are at."""

from typing import Any

from sqlalchemy import Connection, Row, text

from broker.store import rows
from broker.store.overview.texts import clipped, last_message
from broker.store.pages import cut, unseal
from broker.summaries import ToolSummary, ToolSummaryPage, WorkSummary

#: How much work of one tool is told.
MOST_WORK = 16

# `w` is the work, `said` its last message.
WORK_SUMMARY = """
    w.id as work_id, w.task_id, w.tool_id, w.attempt, w.state as work_state, w.progress, said.message,
    w.cancel_requested, w.assigned_at, w.started_at, w.deadline_at"""

PAGE = text(f"""
with page as materialized (
    select * from tools where id > :after order by id limit :limit
)
select t.id, {rows.TOOL_STATE} as state, t.load, t.capacity, {clipped("t.skills")} as skills, l.seen_at,
       {WORK_SUMMARY}
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
left join lateral (
    select * from work where tool_id = t.id order by id limit {MOST_WORK}
) w on true
left join lateral ({last_message("w.id")}) said on true
order by t.id, w.id
""")


def page(connection: Connection, *, limit: int, after: str | None) -> ToolSummaryPage:
    """Some of the tools, in the order of their ids, each with the first of its work."""
    begin = unseal(after, str, field="after") if after is not None else ""
    found: dict[str, ToolSummary] = {}
    for row in connection.execute(PAGE, {"after": begin, "limit": limit + 1}):
        tool = found.setdefault(row.id, _tool(row))
        if row.work_id is not None:
            tool.work.append(work_summary(row))
    items, onward = cut(list(found.values()), limit, key=lambda tool: tool.id)
    return ToolSummaryPage(items=list(items), next=onward)


def work_summary(row: Row[Any]) -> WorkSummary:
    """A summary from the columns of `WORK_SUMMARY`."""
    return WorkSummary(
        id=row.work_id,
        task_id=row.task_id,
        tool_id=row.tool_id,
        attempt=row.attempt,
        state=row.work_state,
        progress=row.progress,
        message=row.message,
        cancel_requested=row.cancel_requested,
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        deadline_at=row.deadline_at,
    )


def _tool(row: Row[Any]) -> ToolSummary:
    return ToolSummary(
        id=row.id,
        state=row.state,
        load=row.load,
        capacity=row.capacity,
        skills=row.skills,
        seen_at=row.seen_at,
        work=[],
    )
