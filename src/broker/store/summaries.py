"""Summaries of work and records: their columns with shortened texts, without payloads and results."""

from broker.schemas.overview import MOST_CHARS, ArchiveEvent, WorkEvent
from broker.store.rows import AnyRow, Columns, alike

#: The number of latest reports in which to search for the last message.
LAST_REPORTS = 100


def cut(column: str) -> str:
    """Return SQL for a text, or JSON as text, that is cut if it is long."""
    return f"left(cast({column} as text), {MOST_CHARS})"


def cut_in_the_middle(column: str) -> str:
    """Return SQL that shortens an error as `shorten_in_the_middle` of `broker.texts` does."""
    first = MOST_CHARS // 3
    return f"""case when length({column}) <= {MOST_CHARS} then {column}
                else left({column}, {first}) || ' … ' || right({column}, {MOST_CHARS - first - 3}) end"""


# `w` is the work. This is a subquery, because a hash join would read the reports on all work.
LAST_MESSAGE = cut(f"""(
        select message
        from (select seq, message from work_reports r where r.work_id = w.id
              order by seq desc limit {LAST_REPORTS}) last
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
