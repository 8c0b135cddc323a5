"""Tools, and what they are at."""

from sqlalchemy import Connection, text

from broker.schemas.overview import ToolSummary, ToolSummaryPage
from broker.store import rows, summaries
from broker.store.pages import cut, unseal

#: How much work of one tool is told.
MOST_WORK = 16

_TOOL_WIDTH = 6

PAGE = text(f"""
with page as materialized (
    select * from tools where id > :after order by id limit :limit
)
select t.id, {rows.TOOL_STATE} as state, t.load, t.capacity, {summaries.cut("t.skills")} as skills, l.seen_at,
       {summaries.WORK}
from page t
join tool_leases l on l.tool_id = t.id and l.tool_id = any(array(select id from page))
left join lateral (
    select * from work where tool_id = t.id order by id limit {MOST_WORK}
) w on true
order by t.id, w.id
""")


def page(connection: Connection, *, limit: int, after: str | None) -> ToolSummaryPage:
    """Some of the tools, in the order of their ids, each with the first of its work."""
    begin = unseal(after, str, field="after") if after is not None else ""
    found: dict[str, ToolSummary] = {}
    for row in connection.execute(PAGE, {"after": begin, "limit": limit + 1}):
        tool = found.setdefault(row[0], _tool(row))
        if (work := row[_TOOL_WIDTH:])[0] is not None:
            tool.work.append(summaries.work(work))
    items, onward = cut(list(found.values()), limit, key=lambda tool: tool.id)
    return ToolSummaryPage(items=list(items), next=onward)


def _tool(row: rows.AnyRow) -> ToolSummary:
    return ToolSummary(
        id=row[0], state=row[1], load=row[2], capacity=row[3], skills=row[4], seen_at=row[5], work=[]
    )
