"""From the database's rows to summaries: short texts, no payloads, no results."""

from broker.schemas.overview import MOST_CHARS, ArchiveEvent, WorkEvent
from broker.store.rows import AnyRow, Columns, alike

# Of so many reports the last one that says something in words is looked for.
_LAST_REPORTS = 100


def cut(column: str) -> str:
    """SQL for a text of others, or JSON as one, cut where it is long."""
    return f"left(cast({column} as text), {MOST_CHARS})"


def cut_in_the_middle(column: str) -> str:
    """SQL for an error, cut where it is long: what it is stands at the end of a traceback, or in front."""
    third = MOST_CHARS // 3
    return f"""case when length({column}) <= {MOST_CHARS} then {column}
                else left({column}, {third}) || ' … ' || right({column}, {2 * third - 3}) end"""


# `w` is the work. A column, and no join: joins are by hash, of all with all.
LAST_MESSAGE = cut(f"""(
        select message
        from (select seq, message from work_reports r where r.work_id = w.id
              order by seq desc limit {_LAST_REPORTS}) last
        where message is not null
        order by seq desc
        limit 1)""")
WORK = Columns(
    **alike("w", "id", "task_id", "tool_id", "attempt", "state", "progress"),
    message=LAST_MESSAGE,
    **alike("w", "cancel_requested", "assigned_at", "started_at", "deadline_at"),
)

# `a` is the record.
RECORD = Columns(
    **alike("a", "work_id", "task_id", "tool_id", "attempt", "outcome"),
    error=cut_in_the_middle("a.error"),
    **alike("a", "assigned_at", "started_at", "ended_at"),
)


def work(row: AnyRow) -> WorkEvent:
    """Return the event, which is a `WorkSummary`, of a row that begins with the columns of `WORK`."""
    return WorkEvent(**WORK.of(row))


def record(row: AnyRow) -> ArchiveEvent:
    """Return the event of a row that begins with the columns of `RECORD`."""
    return ArchiveEvent(**RECORD.of(row))
