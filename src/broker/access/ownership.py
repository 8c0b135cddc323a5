"""Look up and briefly cache the owner of a task, tool or work item."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import TypeVar
from uuid import UUID

from cachetools import LRUCache, TTLCache

from broker.store import Store, ownership
from broker.store.ownership import TaskOwner, ToolOwner, WorkOwner
from broker.store.sql_connection import SqlConnection

Id = TypeVar("Id")
Owner = TypeVar("Owner")

#: How long a key or token stays valid after it was read, even if it is revoked meanwhile.
FRESH_SECONDS = 2.0

_MOST_CACHED = 20_000


class Owners:
    """Compares the owners of resources with the caller. Each result is None if the resource does not exist.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tools: TTLCache[str, ToolOwner] = TTLCache(_MOST_CACHED, FRESH_SECONDS)
        # Work never changes its tool, and its id is never reused.
        self._works: LRUCache[UUID, WorkOwner] = LRUCache(_MOST_CACHED)

    async def task_is(self, id_: str, expected: Callable[[TaskOwner], bool]) -> bool | None:
        """Return whether the owner of a task, live or ended, is the expected one."""
        owner = await self._store.read_one(ownership.of_tasks, id_)
        return None if owner is None else expected(owner)

    async def tool_is(self, id_: str, expected: Callable[[ToolOwner], bool]) -> bool | None:
        """Return whether the owner of a tool, or its token, is the expected one."""
        return await self._is(self._tools, ownership.of_tools, id_, expected)

    async def work_is(self, id_: UUID, expected: Callable[[WorkOwner], bool]) -> bool | None:
        """Return whether the owner of work, live or ended, is the expected one."""
        return await self._is(self._works, ownership.of_works, id_, expected)

    async def _is(
        self,
        cache: MutableMapping[Id, Owner],
        read: Callable[[SqlConnection, Sequence[Id]], list[Owner | None]],
        id_: Id,
        expected: Callable[[Owner], bool],
    ) -> bool | None:
        """Return the comparison. Only True may come from the cache, otherwise the owner is read again."""
        if (owner := cache.get(id_)) is not None and expected(owner):
            return True
        owner = await self._store.read_one(read, id_)
        if owner is None:
            cache.pop(id_, None)
            return None
        cache[id_] = owner
        return expected(owner)

    async def of_works(self, ids: Sequence[UUID]) -> list[WorkOwner | None]:
        """Return the owners of many work items. None stands for an item that does not exist."""
        return await self._store.read(ownership.of_works, ids)

    def forget_tool(self, id_: str) -> None:
        """Remove a tool from the cache, because its token has changed or it was deleted."""
        self._tools.pop(id_, None)
