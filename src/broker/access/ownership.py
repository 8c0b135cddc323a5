"""Whose a task, a tool or a work is, and what is remembered of that for a moment."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import TypeVar
from uuid import UUID

from cachetools import LRUCache, TTLCache
from sqlalchemy import Connection

from broker.store import Store, ownership
from broker.store.ownership import TaskOwner, ToolOwner, WorkOwner

Id = TypeVar("Id")
Owner = TypeVar("Owner")

#: How long what was read is taken to be so: a void token, or a revoked key, is good for no longer.
FRESH_SECONDS = 2.0

_MOST_REMEMBERED = 20_000


class Owners:
    """Knows whose things are; None is said of what is not there.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tools: TTLCache[str, ToolOwner] = TTLCache(_MOST_REMEMBERED, FRESH_SECONDS)
        # A work stays with its tool, and its id is never given again.
        self._works: LRUCache[UUID, WorkOwner] = LRUCache(_MOST_REMEMBERED)

    async def task_is(self, id_: str, expected: Callable[[TaskOwner], bool]) -> bool | None:
        """Of a task, live or ended."""
        owner = await self._store.read_one(ownership.of_tasks, id_)
        return None if owner is None else expected(owner)

    async def tool_is(self, id_: str, expected: Callable[[ToolOwner], bool]) -> bool | None:
        """Of a tool, or of its token."""
        return await self._is(self._tools, ownership.of_tools, id_, expected)

    async def work_is(self, id_: UUID, expected: Callable[[WorkOwner], bool]) -> bool | None:
        """Of work under way or ended."""
        return await self._is(self._works, ownership.of_works, id_, expected)

    async def _is(
        self,
        remembered: MutableMapping[Id, Owner],
        read: Callable[[Connection, Sequence[Id]], list[Owner | None]],
        id_: Id,
        expected: Callable[[Owner], bool],
    ) -> bool | None:
        """What is remembered may only say yes; else it is looked up whether that has changed."""
        if (owner := remembered.get(id_)) is not None and expected(owner):
            return True
        owner = await self._store.read_one(read, id_)
        if owner is None:
            remembered.pop(id_, None)
            return None
        remembered[id_] = owner
        return expected(owner)

    async def of_works(self, ids: Sequence[UUID]) -> list[WorkOwner | None]:
        """The owners of many works; None: there is no such work."""
        return await self._store.read(ownership.of_works, ids)

    def forget_tool(self, id_: str) -> None:
        """Remember nothing of a tool: it has another token, or is gone."""
        self._tools.pop(id_, None)
