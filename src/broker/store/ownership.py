"""Ownership: which key submitted a task, which key registered a tool, and which tool has a work.

Keys are known by their names here; what was submitted or registered while there were no keys is nobody's.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

TASKS = text("""
select id, created_by from tasks where id = any(cast(:ids as text[]))
union all
select e.task_id, a.created_by
from ended_tasks e
join work_archive a
  on a.work_id = e.work_id
 and a.work_id = any(array(select work_id from ended_tasks where task_id = any(cast(:ids as text[]))))
where e.task_id = any(cast(:ids as text[]))
""")

TOOLS = text("select id, registered_by, token_hash from tools where id = any(cast(:ids as text[]))")

# Work that ends meanwhile is in both, and the same in both.
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


class TaskOwner(NamedTuple):
    """The key that submitted a task; None: nobody's."""

    key: str | None


class ToolOwner(NamedTuple):
    """The key that registered a tool, None: nobody's; and the hash of the tool's token."""

    key: str | None
    token_hash: bytes | None


class WorkOwner(NamedTuple):
    """The tool that has or had a work, the key that registered it, and the key that submitted its task.

    What a task without work has left has no tool.
    """

    tool_id: str | None
    key: str | None
    submitter: str | None


def of_tasks(connection: Connection, ids: Collection[str]) -> list[TaskOwner | None]:
    """For each of these tasks, live or ended, whose it is; None: unknown."""
    found = {row[0]: TaskOwner(row[1]) for row in connection.execute(TASKS, {"ids": list(ids)})}
    return [found.get(id_) for id_ in ids]


def of_tools(connection: Connection, ids: Sequence[str]) -> list[ToolOwner | None]:
    """For each of these tools whose it is; None: unknown."""
    found = {row[0]: ToolOwner(*row[1:]) for row in connection.execute(TOOLS, {"ids": ids})}
    return [found.get(id_) for id_ in ids]


def of_works(connection: Connection, ids: Sequence[UUID]) -> list[WorkOwner | None]:
    """For each of these works, under way or ended, whose it is; None: unknown."""
    found = {row[0]: WorkOwner(*row[1:]) for row in connection.execute(WORKS, {"ids": ids})}
    return [found.get(id_) for id_ in ids]
