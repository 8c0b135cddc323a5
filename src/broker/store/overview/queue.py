"""The queue by needs and priority: tasks that others overtake, and tools that get no work."""

from sqlalchemy import text

from broker.schemas.overview import IdleTool, Queue, QueuedKind
from broker.store import rows, summaries
from broker.store.pages import bounded
from broker.store.sql_connection import SqlConnection

# The maximum number of tasks to read, in the order of available tasks.
MOST_LOOKED_AT = 100_000
# The maximum number of kinds, and of tools, to return.
_MOST_RETURNED = 100
#: The number of latest attempts under way, and of latest ended ones, to compare with waiting tasks.
LATELY = 2_000
# A tool without work for this long is listed as `unasked`.
_IDLE_MINUTES = 10

_LOOKED_AT = f"""
    select id, seq, needs, priority, created_at
    from tasks
    where state = 'available' and id not in (select task_id from work)
    order by {rows.offer_order()}
    limit {MOST_LOOKED_AT + 1}"""

_KIND = rows.Columns(
    needs=summaries.cut("k.needs"),
    priority="k.priority",
    tasks="k.tasks",
    oldest_id="o.id",
    oldest_at="o.created_at",
    passed_by="(select count(*) from had_their_turn h where h.submitted_at > o.created_at)",
)
KINDS = text(f"""
with looked_at as materialized (
    {bounded(_LOOKED_AT, size=rows.estimated("r.needs"), order=rows.offer_order())}
    limit {MOST_LOOKED_AT}
),
kinds as materialized (
    select needs, priority, count(*) as tasks, min(seq) as oldest
    from looked_at
    group by needs, priority
    order by count(*) desc, min(seq)
    limit {_MOST_RETURNED}
),
had_their_turn as materialized (
    (select t.created_at as submitted_at
     from (select task_id, id from work order by id desc limit {LATELY}) w
     join tasks t on t.id = w.task_id and t.id = any(array(
         select task_id from work order by id desc limit {LATELY})))
    union all
    (select submitted_at
     from work_archive
     where tool_id is not null
     order by ended_at desc, work_id desc
     limit {LATELY})
)
select {_KIND}, looked.now, looked.tasks as counted, looked.met > looked.tasks as more
from (select now() as now, count(*) as tasks, coalesce(max(met), 0) as met from looked_at) looked
left join kinds k on true
left join looked_at o on o.seq = k.oldest
order by k.tasks desc, k.oldest
""")

# A tool's last work may be in any partition. Each partition has an index by tool.
UNASKED = text(f"""
select t.id, {summaries.cut("t.skills")} as skills, idle.since
from tools t
left join lateral (
    select ended_at
    from work_archive
    where tool_id = t.id
    order by ended_at desc
    limit 1
) last on true
cross join lateral (select greatest(t.registered_at, last.ended_at) as since) idle
where t.available and t.load = 0 and idle.since < now() - interval '{_IDLE_MINUTES} minutes'
order by idle.since, t.id
limit {_MOST_RETURNED}
""")


def read(connection: SqlConnection) -> Queue:
    """Return the kinds of available tasks, the largest first, and the tools that have long been idle."""
    read = connection.execute(KINDS).all()
    kinds = [QueuedKind(**_KIND.of(row)) for row in read if row.tasks is not None]
    unasked = [IdleTool(**row._asdict()) for row in connection.execute(UNASKED)]
    first = read[0]
    return Queue(at=first.now, counted=first.counted, more=first.more, kinds=kinds, unasked=unasked)
