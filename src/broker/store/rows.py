"""From the database's rows to the API's objects, and back to the arrays that statements take."""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Raw

from broker.schemas.tasks import Task
from broker.schemas.tools import Tool
from broker.schemas.values import NULL
from broker.schemas.work import Report, Work

AnyRow = Sequence[Any]


def printed(value: str) -> str:
    """Return SQL for the number of bytes that a JSON value takes in a response; it prints the value."""
    return f"cast(octet_length(cast({value} as text)) as bigint)"


def estimated(*values: str) -> str:
    """Return SQL that estimates how many bytes JSON values take in a response; it prints only small ones.

    PostgreSQL does not compress a row of less than 2,000 bytes, and hardly ever compresses one a hundredfold.

    Args:
        values: SQL for the values; null takes nothing.
    """
    return " + ".join(
        f"""coalesce(case when pg_column_size({value}) < 2000 then {printed(value)}
                      else 100 * cast(pg_column_size({value}) as bigint) end, 0)"""
        for value in values
    )


def task_bytes(task: str) -> str:
    """Return SQL for the size of a task's JSON values in a response: as it was stored, else estimated.

    Args:
        task: The name of the row.
    """
    return f"coalesce({task}.bytes, {estimated(f'{task}.needs', f'{task}.payload', f'{task}.result')})"


def task_size(task: str) -> str:
    """Return SQL for the size of a task in a response: its JSON values, and its texts.

    Args:
        task: The name of the row.
    """
    texts = f"coalesce(octet_length({task}.remark), 0) + coalesce(octet_length({task}.error), 0)"
    return f"{task_bytes(task)} + {texts}"


def tool_bytes(tool: str) -> str:
    """Return SQL for the size of a tool's skills in a response: as it was stored, else estimated.

    Args:
        tool: The name of the row.
    """
    return f"coalesce({tool}.bytes, {estimated(f'{tool}.skills')})"


# What a Task is made of, in the order of its fields; `t` is the task, `w` its work (left join).
TASK = """
    t.id, t.needs, t.payload, t.priority, coalesce(w.state, t.state) as state, t.attempt, t.max_attempts,
    t.retry_backoff_seconds, t.timeout_seconds, t.not_before, t.created_at, t.work_id, t.remark,
    t.result, t.error, t.ended_at"""
TASK_WIDTH = 16

# `t` is the tool, `l` its lease.
TOOL_STATE = """
    case when t.offline then 'offline' when t.draining then 'draining'
         when t.load < t.capacity then 'idle' else 'busy' end"""
TOOL = f"""
    t.id, t.skills, t.capacity, t.load, {TOOL_STATE} as state,
    l.lease_seconds, l.expires_at as lease_expires_at, t.registered_at, l.seen_at"""
TOOL_WIDTH = 9

# `w` is the work, `t` its task.
WORK = """
    w.id, w.task_id, w.tool_id, w.attempt, w.state, t.needs, t.payload, w.progress, w.cancel_requested,
    w.version, w.assigned_at, w.started_at, w.deadline_at"""
WORK_WIDTH = 13

# The same as JSON, for the archive: a task and a tool `as it was`. Here `o` is the tool.
TASK_JSON = """json_build_object(
        'id', t.id, 'needs', t.needs, 'payload', t.payload, 'priority', t.priority,
        'state', coalesce(w.state, t.state), 'attempt', t.attempt, 'max_attempts', t.max_attempts,
        'retry_backoff_seconds', t.retry_backoff_seconds, 'timeout_seconds', t.timeout_seconds,
        'not_before', t.not_before, 'created_at', t.created_at, 'work_id', t.work_id,
        'remark', t.remark, 'result', t.result, 'error', t.error, 'ended_at', t.ended_at)"""
TOOL_JSON = """json_build_object(
        'id', o.id, 'skills', o.skills, 'capacity', o.capacity, 'load', o.load,
        'state', case when o.offline then 'offline' when o.draining then 'draining'
                      when o.load < o.capacity then 'idle' else 'busy' end,
        'lease_seconds', l.lease_seconds, 'lease_expires_at', l.expires_at,
        'registered_at', o.registered_at, 'seen_at', l.seen_at)"""


def raw(value: Raw | None) -> Raw:
    """A JSON value that goes out as it came; SQL's null is JSON's."""
    return NULL if value is None else value


def task(row: AnyRow) -> Task:
    """A Task from the columns of `TASK`."""
    return Task(
        id=row[0],
        needs=raw(row[1]),
        payload=raw(row[2]),
        priority=row[3],
        state=row[4],
        attempt=row[5],
        max_attempts=row[6],
        retry_backoff_seconds=row[7],
        timeout_seconds=row[8],
        not_before=row[9],
        created_at=row[10],
        work_id=row[11],
        remark=row[12],
        result=raw(row[13]),
        error=row[14],
        ended_at=row[15],
    )


def tool(row: AnyRow) -> Tool:
    """A Tool from the columns of `TOOL`."""
    return Tool(
        id=row[0],
        skills=raw(row[1]),
        capacity=row[2],
        load=row[3],
        state=row[4],
        lease_seconds=row[5],
        lease_expires_at=row[6],
        registered_at=row[7],
        seen_at=row[8],
    )


def work(row: AnyRow) -> Work:
    """A Work from the columns of `WORK`."""
    return Work(
        id=row[0],
        task_id=row[1],
        tool_id=row[2],
        attempt=row[3],
        state=row[4],
        needs=raw(row[5]),
        payload=raw(row[6]),
        progress=row[7],
        cancel_requested=row[8],
        version=row[9],
        assigned_at=row[10],
        started_at=row[11],
        deadline_at=row[12],
    )


def report(row: AnyRow) -> Report:
    """A Report from id, at, progress, message and data."""
    return Report(id=row[0], at=row[1], progress=row[2], message=row[3], data=raw(row[4]))


def columns(items: Iterable[Any], *names: str) -> dict[str, list[Any] | None]:
    """The items turned on their side: for each name a column."""
    items = list(items)
    return {name: column(getattr(item, name) for item in items) for name in names}


def column(values: Iterable[Any]) -> list[Any] | None:
    """A list as `unnest` takes it; of nothing but nulls none, as it fills up what is missing with those.

    asyncpg takes as long for a null as for a value, and most of what may be given is left out.
    """
    found = list(values)
    return None if found and found.count(None) == len(found) else found
