"""Tools and their work."""

from sqlalchemy import text

from broker.schemas.overview import ToolSummary, ToolSummaryPage, WorkEvent
from broker.store import rows, summaries
from broker.store.pages import cut, unseal
from broker.store.sql_connection import SqlConnection

#: The maximum number of work items to return for each tool.
MOST_WORK = 16

# `t` is the tool, and `l` its lease.
_TOOL = rows.Columns(
    id="t.id",
    state=rows.TOOL_STATE,
    load="t.load",
    capacity="t.capacity",
    skills=summaries.cut("t.skills"),
    seen_at="l.seen_at",
)

PAGE = text(f"""
with page as materialized (
    select * from tools where id > :after order by id limit :limit
)
select {_TOOL}, {summaries.WORK}
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
left join lateral (
    select * from work where tool_id = t.id order by id limit {MOST_WORK}
) w on true
order by t.id, w.id
""")


def page(connection: SqlConnection, *, limit: int, after: str | None) -> ToolSummaryPage:
    """Return a page of the tools, in the order of their ids, each with its oldest work items."""
    begin = unseal(after, str, field="after") if after is not None else ""
    by_id: dict[str, ToolSummary] = {}
    for row in connection.execute(PAGE, {"after": begin, "limit": limit + 1}):
        columns, work = _TOOL.of(row), summaries.WORK.of(row[len(_TOOL) :])
        tool = by_id.setdefault(columns["id"], ToolSummary(**columns, work=[]))
        if work["id"] is not None:
            tool.work.append(WorkEvent(**work))
    items, onward = cut(list(by_id.values()), limit, key=lambda tool: tool.id)
    return ToolSummaryPage(items=list(items), next=onward)
