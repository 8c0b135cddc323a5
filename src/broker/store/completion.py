"""Completion: one statement ends work and moves it, with its reports, to the archive.

If the task succeeded or was cancelled, the statement also deletes the task. Otherwise the task becomes
available, scheduled (for a delay) or failed. The tool's load decreases.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast
from uuid import UUID

from msgspec import Raw
from sqlalchemy import TextClause, text

from broker.schemas.archive import ArchiveRecord
from broker.schemas.states import Outcome
from broker.schemas.values import NULL
from broker.store import archive, ended_work, ownership, rows
from broker.store.group_commit import LATER
from broker.store.observer import EndedWork
from broker.store.ownership import Token
from broker.store.pages import bounded
from broker.store.rows import Columns, alike
from broker.store.sql_connection import SqlConnection, SqlRow
from broker.store.steps import one_statement

# The most work that one statement ends on behalf of the broker: in rows, and in bytes of records as in a
# response. The last record may exceed the bytes.
_MOST_ROWS = 1_000
_MOST_RECORD_BYTES = 16 * 2**20

# In the order of the fields of `EndedWork`, because a row becomes such a tuple.
_ENDED_WORK = Columns(
    **alike("e", "work_id", "task_id", "tool_id", "outcome"),
    waited_seconds="""case when e.attempt = 1
         then cast(extract(epoch from e.assigned_at - e.waiting_since) as double precision) end""",
    started_after_seconds="cast(extract(epoch from e.started_at - e.assigned_at) as double precision)",
    ran_seconds="cast(extract(epoch from e.ended_at - e.started_at) as double precision)",
)
_OF_ENDED_WORK = (
    "work_id, task_id, tool_id, outcome, attempt, assigned_at, waiting_since, started_at, ended_at"
)

# PostgreSQL finds and locks the leases in the order of their ids. If it waits for a lock, it reads the clock
# again afterwards.
_RENEW = """,
renewed as (
    update tool_leases
    set seen_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => lease_seconds)
    where tool_id = any(array(select tool_id from ending))
)"""


# How each ending changes its task. Work that was released, or lost before it was started, does not count as
# an attempt. The delay doubles with every attempt, up to a day. A task waits a random 50 to 100 % of it.
# Otherwise tasks that failed together would all become available together.
_EFFECTS = """
           final.outcome, nullif(requested.outcome, final.outcome) as said,
           t.attempt + cast(counting.counts as integer) as attempts,
           final.outcome in ('succeeded', 'cancelled') as ends_task,
           counting.counts and (not requested.retry or t.attempt + 1 >= t.max_attempts) as fails_task,
           case when final.outcome in ('failed', 'timed_out')
                then now() + make_interval(secs => (0.5 + random() / 2)
                     * least(t.retry_backoff_seconds * power(2, least(t.attempt, 30)), 86400))
           end as due_at"""
_JUDGED = """
    cross join lateral (
        select case when not w.cancel_requested or requested.outcome = 'succeeded' then requested.outcome
                    when w.cancel_requeue then 'released'
                    else 'cancelled' end as outcome
    ) final
    cross join lateral (
        select final.outcome in ('succeeded', 'failed', 'timed_out')
               or final.outcome = 'lost' and w.state = 'running' as counts
    ) counting"""
_RETURN_TASKS = f""",
returned_tasks as (
    update tasks t
    set state = case when e.fails_task then 'failed' when e.due_at > now() then 'scheduled'
                     else 'available' end,
        due_at = case when not e.fails_task and e.due_at > now() then e.due_at end,
        ended_at = case when e.fails_task then now() end,
        result = case when e.fails_task then e.result end,
        bytes = t.bytes + case when e.fails_task then {rows.printed("e.result")} else 0 end,
        error = e.error, attempt = e.attempts, remark = null, remark_at = null,
        changed = pg_current_xact_id()
    from ending e
    where t.id = e.task_id and not e.ends_task
      and t.id = any(array(select task_id from ending where not ends_task))
)"""
# A success always ends the task. Most sets contain only successes, and need a tenth less time without the
# parts of the statement that judge other outcomes.
_EFFECTS_OF_SUCCESS = "requested.outcome, cast(null as text) as said, true as ends_task"


def _end(returning: str, *, successes: bool = False) -> str:
    """Return the CTEs of a statement that ends work.

    Args:
        returning: The columns that the CTE `archived` returns.
        successes: Whether all of the work has succeeded.
    """
    return f"""
with requested as (
    select *
    from unnest(cast(:work_id as uuid[]), cast(:outcome as text[]), cast(:result as json[]),
                cast(:error as text[]), cast(:retry as boolean[]), {ownership.HOLDERS})
         as u (work_id, outcome, result, error, retry, token_tool, token_hash)
),
-- The statement reads locked rows in their latest version, and all other rows as they were when it began.
locked_work as materialized (
    select * from work where id = any(cast(:work_id as uuid[])) order by id for update
),
locked_tasks as materialized (
    select * from tasks where id = any(array(select task_id from locked_work)) order by id for update
),
locked_tools as materialized (
    select *
    from tools
    where id = any(array(select tool_id from locked_work)) and (select count(*) from locked_tasks) >= 0
    order by id
    for no key update
),
ending as materialized (
    select w.*, requested.result, requested.error, w.state as task_state,
           {archive.KEPT_TASK}, {archive.KEPT_TOOL},
           {rows.task_size("t")} + {rows.tool_bytes("o")} + {rows.printed("requested.result")} as bytes,
           {_EFFECTS_OF_SUCCESS if successes else _EFFECTS}
    from requested
    join locked_work w on w.id = requested.work_id
    join locked_tasks t on t.id = w.task_id
    join locked_tools o on o.id = w.tool_id and {ownership.is_current("requested", "o.id", "o.token_hash")}
    join tool_leases l on l.tool_id = o.id and l.tool_id = any(array(select id from locked_tools))
    {"" if successes else _JUDGED}
),
archived as (
    insert into work_archive (work_id, task_id, tool_id, attempt, outcome, said, result, error, reports,
                              version, cancel_requested, assigned_at, started_at, deadline_at, bytes,
                              task_state, {archive.KEPT_TASK.names}, {archive.KEPT_TOOL.names})
    select e.id, e.task_id, e.tool_id, e.attempt, e.outcome, e.said, e.result, e.error,
           coalesce(r.reports, '[]'), e.version + 1, e.cancel_requested, e.assigned_at, e.started_at,
           e.deadline_at, e.bytes + e.report_bytes, task_state, {archive.KEPT_TASK.names},
           {archive.KEPT_TOOL.names}
    from ending e
    left join take_reports(array(select id from ending where report_count > 0)) r on r.of_work = e.id
    returning {returning}
),
deleted_work as (
    delete from work where id = any(array(select id from ending))
),
deleted_tasks as (
    delete from tasks where id = any(array(select task_id from ending where ends_task))
),
ended as (
    insert into ended_tasks (task_id, work_id)
    select task_id, id from ending where ends_task order by task_id
),
relieved_tools as (
    update tools t
    set load = t.load - n.works, changed = pg_current_xact_id()
    from (select tool_id, cast(count(*) as integer) as works from ending group by tool_id) n
    where t.id = n.tool_id and t.id = any(array(select tool_id from ending))
    returning t.id, t.load = 0 and not t.offline as is_idle
){"" if successes else _RETURN_TASKS}"""


# The statement ends all of the work, and reads the records that fit in one response. Records may be very
# large, so the statement sorts only their sizes, which new records store.
_SIZES = "select work_id, bytes + coalesce(octet_length(error), 0) as size from archived"
END, END_SUCCESSES = (
    text(f"""{_end("*", successes=successes)}{_RENEW}
select {_ENDED_WORK}, {archive.RECORD}, t.is_idle
from archived e
left join relieved_tools t on t.id = e.tool_id
left join ({bounded(_SIZES, size="size", order="work_id")}) read on read.work_id = e.work_id
left join lateral (select e.*) a on read.work_id is not null
""")
    for successes in (False, True)
)
# For clients that do not read the records, which may be large.
END_BRIEFLY, END_SUCCESSES_BRIEFLY = (
    text(f"{_end(_OF_ENDED_WORK, successes=successes)}{_RENEW} select {_ENDED_WORK} from archived e")
    for successes in (False, True)
)
# For work that the broker ends. It does not renew the tool's lease.
END_WITHOUT_TOOL = text(f"{_end(_OF_ENDED_WORK)} select {_ENDED_WORK} from archived e")


class Ending(NamedTuple):
    """A request to end work: its outcome, and the token of the request."""

    work_id: UUID
    outcome: Outcome
    result: Raw = NULL
    error: str | None = None
    retry: bool = True
    token: Token | None = None


# `ended`: this request ended the work. `same` or `other`: the work had already ended with this outcome or
# with another one. `unknown`: the work does not exist. `void`: the token of the request is void.
EndingStatus = Literal["ended", "same", "other", "unknown", "void"]


class Ended(NamedTuple):
    """The result of an ending, and the archive record; None for `unknown` and `void`.

    With `is_tool_idle`, the tool is online and had no further work at the time of the ending.
    """

    status: EndingStatus
    record: ArchiveRecord | None
    is_tool_idle: bool = False


@one_statement()
def complete(connection: SqlConnection, endings: Sequence[Ending]) -> list[Ended]:
    """End work as its tool reports it, and return the result and the record of each ending.

    If several endings name the same work, the first one counts.
    """
    first = _first(connection, endings)
    records: dict[UUID, ArchiveRecord | None] = {}
    idle: set[UUID] = set()
    for work, row in _execute(connection, END_SUCCESSES if _are_successes(first) else END, first):
        record = row[len(_ENDED_WORK) :]
        if row.is_idle:
            idle.add(work.work_id)
        records[work.work_id] = LATER if record[0] is None else archive.record(record)
    statuses = _statuses(connection, endings, first, records.keys())
    if missing := list(first.keys() - records.keys()):
        records |= zip(missing, archive.find(connection, missing), strict=True)
    return [
        _ended(status, records[ending.work_id], is_tool_idle=ending.work_id in idle)
        for ending, status in zip(endings, statuses, strict=True)
    ]


def _ended(status: EndingStatus, record: ArchiveRecord | None, *, is_tool_idle: bool) -> Ended:
    if status in ("unknown", "void"):
        return Ended(status, None)
    # If the record did not fit in the response, the ending runs again and finds the record in the archive.
    if record is LATER:
        return cast("Ended", LATER)
    # An admin may have deleted the record in the meantime.
    return Ended("unknown" if record is None else status, record, is_tool_idle)


@one_statement()
def complete_briefly(connection: SqlConnection, endings: Sequence[Ending]) -> list[EndingStatus]:
    """End work as its tool reports it, and return only the status of each ending."""
    first = _first(connection, endings)
    statement = END_SUCCESSES_BRIEFLY if _are_successes(first) else END_BRIEFLY
    ended = {work.work_id for work, _ in _execute(connection, statement, first)}
    return _statuses(connection, endings, first, ended)


def end(connection: SqlConnection, endings: Sequence[Ending]) -> None:
    """End work on behalf of the broker."""
    _execute(connection, END_WITHOUT_TOOL, _first(connection, endings))


def _first(connection: SqlConnection, endings: Sequence[Ending]) -> dict[UUID, Ending]:
    """Return the first ending of each work. An ending with an invalid token counts only if it is alone."""
    first = {ending.work_id: ending for ending in reversed(endings)}
    if any(ending.token != first[ending.work_id].token for ending in endings):
        void = ownership.void(connection, [ending.token for ending in endings])
        first |= {ending.work_id: ending for ending in reversed(endings) if ending.token not in void}
    return first


def _are_successes(endings: Mapping[UUID, Ending]) -> bool:
    return all(ending.outcome == "succeeded" for ending in endings.values())


def _execute(
    connection: SqlConnection, statement: TextClause, endings: Mapping[UUID, Ending]
) -> list[tuple[EndedWork, rows.AnyRow]]:
    """End the work that is under way, and return it, each with its row of the statement."""
    values = rows.columns(endings.values(), "work_id", "outcome", "error", "retry")
    values["result"] = [ending.result for ending in endings.values()]
    values |= ownership.token_columns(ending.token for ending in endings.values())
    width = len(_ENDED_WORK)
    ended = [(EndedWork._make(row[:width]), row) for row in connection.execute(statement, values)]
    connection.noted.extend(work for work, _ in ended)
    return ended


def _statuses(
    connection: SqlConnection,
    endings: Sequence[Ending],
    first: Mapping[UUID, Ending],
    ended: Collection[UUID],
) -> list[EndingStatus]:
    """Return the status of each ending, and store late successes.

    For each work, the ending in `first` counts. This request has ended the work in `ended`.
    """

    def is_ours(ending: Ending) -> bool:
        return ending.work_id in ended and first[ending.work_id] is ending

    again = [ending.work_id for ending in endings if not is_ours(ending)]
    if not again:
        return ["ended"] * len(endings)
    earlier = ended_work.outcomes(connection, again)
    void = ownership.void(connection, [ending.token for ending in endings])

    def status(ending: Ending) -> EndingStatus:
        if is_ours(ending):
            return "ended"
        if ending.token in void:
            return "void"
        if ending.work_id not in earlier:
            return "unknown"
        return "same" if ending.outcome in earlier[ending.work_id] else "other"

    statuses = [status(ending) for ending in endings]
    late = {
        ending.work_id: (ending.result, ending.error)
        for ending, status in reversed(list(zip(endings, statuses, strict=True)))
        if status == "other" and ending.outcome == "succeeded"
    }
    if late:
        ended_work.keep_late(connection, late)
    return statuses


def parts(works: Sequence[SqlRow]) -> Iterator[list[SqlRow]]:
    """Split rows of work, each with the `size` of its record, into parts small enough for one statement."""
    part: list[SqlRow] = []
    room = _MOST_RECORD_BYTES
    for row in works:
        part.append(row)
        room -= row.size
        if room <= 0 or len(part) == _MOST_ROWS:
            yield part
            part, room = [], _MOST_RECORD_BYTES
    if part:
        yield part
