"""From the database's rows to summaries: short texts, no payloads, no results."""

from broker.schemas.overview import MOST_CHARS, ArchiveEvent, WorkEvent
from broker.store.rows import AnyRow

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
WORK = f"""
    w.id, w.task_id, w.tool_id, w.attempt, w.state, w.progress, {LAST_MESSAGE} as message, w.cancel_requested,
    w.assigned_at, w.started_at, w.deadline_at"""

# `a` is the record.
RECORD = f"""
    a.work_id, a.task_id, a.tool_id, a.attempt, a.outcome, {cut_in_the_middle("a.error")} as error,
    a.assigned_at, a.started_at, a.ended_at"""


def work(row: AnyRow) -> WorkEvent:
    """A WorkEvent, which is a WorkSummary, from the columns of `WORK`."""
    return WorkEvent(
        id=row[0],
        task_id=row[1],
        tool_id=row[2],
        attempt=row[3],
        state=row[4],
        progress=row[5],
        message=row[6],
        cancel_requested=row[7],
        assigned_at=row[8],
        started_at=row[9],
        deadline_at=row[10],
    )


def record(row: AnyRow) -> ArchiveEvent:
    """An ArchiveEvent from the columns of `RECORD`."""
    return ArchiveEvent(
        work_id=row[0],
        task_id=row[1],
        tool_id=row[2],
        attempt=row[3],
        outcome=row[4],
        error=row[5],
        assigned_at=row[6],
        started_at=row[7],
        ended_at=row[8],
    )
