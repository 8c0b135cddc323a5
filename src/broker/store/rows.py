"""Rows: convert the columns of statements to structs of responses, and items to arrays."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from msgspec import Struct

from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.work import Work
from broker.store.sql_connection import SqlRow

AnyRow = SqlRow
SomeStruct = TypeVar("SomeStruct", bound=Struct)


def printed(value: str) -> str:
    """Return SQL for the size of a JSON value in a response, in bytes. PostgreSQL must print the value."""
    return f"cast(octet_length(cast({value} as text)) as bigint)"


def estimated(*values: str) -> str:
    """Return SQL that estimates the size of JSON values in a response, in bytes. It prints only small values.

    PostgreSQL does not compress rows of less than 2,000 bytes, and rarely compresses a row to less than a
    hundredth. A null counts as 0.
    """
    return " + ".join(
        f"""coalesce(case when pg_column_size({value}) < 2000 then {printed(value)}
                      else 100 * cast(pg_column_size({value}) as bigint) end, 0)"""
        for value in values
    )


def task_bytes(task: str) -> str:
    """Return SQL for the size of the JSON values of the row `task` in a response, stored or estimated."""
    return f"coalesce({task}.bytes, {estimated(f'{task}.needs', f'{task}.payload', f'{task}.result')})"


def task_size(task: str) -> str:
    """Return SQL for the size of the row `task` in a response: its JSON values and its texts."""
    texts = f"coalesce(octet_length({task}.remark), 0) + coalesce(octet_length({task}.error), 0)"
    return f"{task_bytes(task)} + {texts}"


def tool_bytes(tool: str) -> str:
    """Return SQL for the size of the skills of the row `tool` in a response, stored or estimated."""
    return f"coalesce({tool}.bytes, {estimated(f'{tool}.skills')})"


def without_work(task: str) -> str:
    """Return an SQL condition: no tool has the task of the row `task`. It searches work for each row.

    A task with work keeps the state `available` in its row.
    """
    return f"(select w.id from work w where w.task_id = {task}.id) is null"


def offer_order(task: str | None = None) -> str:
    """Return SQL for the order of available tasks: by priority, then by order of submission.

    The index `tasks_available` has this order, and `matching.Matcher` follows it.

    Args:
        task: The alias of the row; not needed if the query has only one table.
    """
    row = f"{task}." if task else ""
    return f"-cast({row}priority as integer), {row}seq"


def counted(column: str, values: Iterable[str]) -> str:
    """Return SQL that counts the rows by the value of a column. Each count is named after its value."""
    return ", ".join(f"count(*) filter (where {column} = '{value}') as {value}" for value in values)


class Columns:
    """The first columns of a statement's rows. In an f-string, it is the SQL of the select list.

    A row needs 60 ns to look up one column by its name. `of` needs 600 ns for sixteen columns.

    Args:
        expressions: The SQL expression of each name.
    """

    def __init__(self, **expressions: str) -> None:
        self._expressions = expressions
        self._names = tuple(expressions)
        #: The names, and the expressions, as SQL lists.
        self.names, self.values = ", ".join(expressions), ", ".join(expressions.values())

    def __str__(self) -> str:
        return ", ".join(f"{sql} as {name}" for name, sql in self._expressions.items())

    def __len__(self) -> int:
        return len(self._names)

    def of(self, row: Sequence[Any]) -> dict[str, Any]:
        """Return these columns of a row as a dict. The row may be a slice that begins with them."""
        return dict(zip(self._names, row, strict=False))


def alike(table: str, *names: str) -> dict[str, str]:
    """Return columns of a table under their own names."""
    return {name: f"{table}.{name}" for name in names}


#: The columns of a `Task`: `t` is the task, and `w` its work (left join). An assigned task needs no remark on
#: why it waits.
TASK = Columns(
    **alike("t", "id", "needs", "payload", "priority"),
    state="coalesce(w.state, t.state)",
    **alike("t", "attempt", "max_attempts", "retry_backoff_seconds", "timeout_seconds", "not_before"),
    created_at="t.created_at",
    work_id="w.id",
    remark="case when w.id is null then t.remark end",
    result="coalesce(t.result, 'null')",
    **alike("t", "error", "ended_at"),
)


def tool_state(tool: str) -> str:
    """Return SQL for the state of the row `tool`."""
    return f"""case when {tool}.offline then 'offline' when {tool}.draining then 'draining'
         when {tool}.load < {tool}.capacity then 'idle' else 'busy' end"""


def tool_columns(tool: str) -> Columns:
    """Return the columns of a `ToolStatus`: `tool` is the alias of its row, and `l` that of its lease."""
    return Columns(
        **alike(tool, "id", "skills", "capacity", "load"),
        state=tool_state(tool),
        lease_seconds="l.lease_seconds",
        lease_expires_at="l.expires_at",
        registered_at=f"{tool}.registered_at",
        seen_at="l.seen_at",
    )


TOOL_STATE = tool_state("t")
TOOL = tool_columns("t")

#: The columns of `Work`: `w` is the work, and `t` its task.
WORK = Columns(
    **alike("w", "id", "task_id", "tool_id", "attempt", "state"),
    **alike("t", "needs", "payload"),
    **alike("w", "progress", "cancel_requested", "version", "assigned_at", "started_at", "deadline_at"),
)


def task(row: AnyRow) -> Task:
    """Return the task of a row that begins with the columns of `TASK`."""
    return Task(**TASK.of(row))


def tool(row: AnyRow) -> ToolStatus:
    """Return the tool of a row that begins with the columns of `TOOL`."""
    return ToolStatus(**TOOL.of(row))


def work(row: AnyRow) -> Work:
    """Return the work of a row that begins with the columns of `WORK`."""
    return Work(**WORK.of(row))


def fill(struct: type[SomeStruct], row: AnyRow, **values: object) -> SomeStruct:
    """Return a struct with these values, and with the columns of a row as its other fields."""
    names = (name for name in struct.__struct_fields__ if name not in values)
    return struct(**{name: getattr(row, name) for name in names}, **values)


def columns(items: Iterable[Any], *names: str) -> dict[str, list[Any] | None]:
    """Return the arrays of these attributes of all items, by attribute name."""
    items = list(items)
    return {name: column(map(attrgetter(name), items)) for name in names}


def column(values: Iterable[Any]) -> list[Any] | None:
    """Return an array for `unnest`, or None if all values are None, because `unnest` adds missing nulls.

    asyncpg needs as much time for a null as for a value, and most requests omit most optional fields.
    """
    items = list(values)
    return None if items and items.count(None) == len(items) else items
