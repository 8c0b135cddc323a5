"""Ownership: which key submitted a task, which key registered a tool, and which tool has a work item.

In this module, `key` is the name of a key. Tasks and tools that are older than the first key have no owner.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import text

from broker.store.ended_tasks import ENDED_TASKS_WITH_RECORDS
from broker.store.rows import column
from broker.store.sql_connection import SqlConnection

TASKS = text(f"""
select id, created_by from tasks where id = any(cast(:ids as text[]))
union all
select e.task_id, a.created_by
{ENDED_TASKS_WITH_RECORDS}
""")

TOOLS = text("select id, registered_by, token_hash from tools where id = any(cast(:ids as text[]))")

# Work that ends at this moment may be in both parts, with the same values.
WORKS = text("""
select w.id, w.tool_id, o.registered_by, t.created_by
from work w
join tools o
  on o.id = w.tool_id and o.id = any(array(select tool_id from work where id = any(cast(:ids as uuid[]))))
join tasks t
  on t.id = w.task_id and t.id = any(array(select task_id from work where id = any(cast(:ids as uuid[]))))
where w.id = any(cast(:ids as uuid[]))
union all
select work_id, tool_id, registered_by, created_by
from work_archive
where work_id = any(cast(:ids as uuid[]))
""")


# The columns of an item's token, for requests with the token of a tool.
HOLDERS = "cast(:token_tool as text[]), cast(:token_hash as bytea[])"


def is_current(item: str, tool_id: str, token_hash: str) -> str:
    """Return SQL that is true unless an item has an invalid token of this tool.

    The item has the columns of `HOLDERS`. The hash of the tool must come from a row that the statement has
    locked. For a token of another tool the SQL is true, because the access rules check that case.
    """
    return (
        f"({item}.token_hash is null or {item}.token_tool <> {tool_id} or {item}.token_hash = {token_hash})"
    )


#: The result of a step for an item with an invalid token.
VOID: Final = "void"
Void = Literal["void"]


class TaskOwner(NamedTuple):
    """The key that submitted a task, or None if no key did."""

    key: str | None


class ToolOwner(NamedTuple):
    """The key that registered a tool, or None if no key did, and the hash of the tool's token."""

    key: str | None
    token_hash: bytes | None


class Token(NamedTuple):
    """The hash of a tool's token, as the database stores it. It is invalid if the tool has another one."""

    tool_id: str
    hash: bytes


class WorkOwner(NamedTuple):
    """The tool of a work item, the key that registered the tool, and the key that submitted the task.

    The record of a task that was cancelled before it had work has no tool.
    """

    tool_id: str | None
    key: str | None
    submitter: str | None


def of_tasks(connection: SqlConnection, ids: Collection[str]) -> list[TaskOwner | None]:
    """Return the owner of each task, live or ended, or None for an unknown task."""
    owners = {row.id: TaskOwner(row.created_by) for row in connection.execute(TASKS, {"ids": list(ids)})}
    return [owners.get(id_) for id_ in ids]


def of_tools(connection: SqlConnection, ids: Sequence[str]) -> list[ToolOwner | None]:
    """Return the owner of each tool, or None for an unknown tool."""
    owners = {
        row.id: ToolOwner(row.registered_by, row.token_hash)
        for row in connection.execute(TOOLS, {"ids": ids})
    }
    return [owners.get(id_) for id_ in ids]


def of_works(connection: SqlConnection, ids: Sequence[UUID]) -> list[WorkOwner | None]:
    """Return the owner of each work item, under way or ended, or None for unknown work."""
    owners = {
        row.id: WorkOwner(row.tool_id, row.registered_by, row.created_by)
        for row in connection.execute(WORKS, {"ids": ids})
    }
    return [owners.get(id_) for id_ in ids]


def void(connection: SqlConnection, tokens: Collection[Token | None]) -> set[Token | None]:
    """Return the tokens that are not the current tokens of their tools."""
    present = {token for token in tokens if token is not None}
    if not present:
        return set()
    ids = list({token.tool_id for token in present})
    current = {
        id_: owner and owner.token_hash for id_, owner in zip(ids, of_tools(connection, ids), strict=True)
    }
    return {token for token in present if token.hash != current[token.tool_id]}


def is_void(token: Token | None, current: Token | None) -> bool:
    """Return whether a token belongs to the tool of the current token but differs from it."""
    return token is not None and current is not None and token.tool_id == current.tool_id and token != current


def token_columns(tokens: Iterable[Token | None]) -> dict[str, list[Any] | None]:
    """Return the tokens of requests as parameters for `HOLDERS`."""
    items = list(tokens)
    return {
        "token_tool": column(token and token.tool_id for token in items),
        "token_hash": column(token and token.hash for token in items),
    }
