"""Reads for people and dashboards: over connections of their own, from the standby if there is one."""

import asyncio
import math
import time
from typing import Any, Protocol, TypeVar

import structlog

from broker.errors import Overloaded, Unavailable
from broker.store import Store
from broker.store.sessions import Params, Query, Result

log = structlog.get_logger(__name__)

# After a standby did not respond, reads go to the primary for this long without trying it.
_PAUSE_SECONDS = 10.0
#: How many reads may wait for a connection; the next one gets 503.
MOST_WAITING = 100
# How long a list is searched for its first item. After that the response is an empty page with a next one.
_FIRST_ITEM_SECONDS = 1.0


class AnyPage(Protocol):
    """A page of a list, and the position where the next one begins."""

    items: Any
    next: Any


SomePage = TypeVar("SomePage", bound=AnyPage)


class ReadPool:
    """A few connections for reads, which no write uses: a read waits for one, and a bounded number wait.

    Args:
        store: The database, with connections that no write uses.
        at_once: How many of its connections the reads may use at once.
    """

    def __init__(self, store: Store, *, at_once: int) -> None:
        self.store = store
        self._turns = asyncio.Semaphore(at_once)
        #: How many reads wait for a connection.
        self.waiting = 0

    async def read(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query when a connection is free.

        Raises:
            Overloaded: Too many reads wait already.
        """
        if self.waiting >= MOST_WAITING:
            raise Overloaded
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        try:
            return await self.store.read(query, *args, **kwargs)
        finally:
            self._turns.release()


class ReplicaReads:
    """Reads from the standby, or from the primary if there is no standby or it does not respond.

    Args:
        primary: Reads from the primary.
        replica: Reads from a hot standby of it.
    """

    def __init__(self, primary: ReadPool, replica: ReadPool | None = None) -> None:
        self._primary = primary
        self._replica = replica
        self._try_again_at = -math.inf
        #: How many reads went to the primary although there is a standby.
        self.missed = 0

    async def read(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query.

        Raises:
            Overloaded: Too many reads wait already.
            Unavailable: The primary does not respond, either.
        """
        if self._replica is not None:
            if time.monotonic() >= self._try_again_at:
                try:
                    return await self._replica.read(query, *args, **kwargs)
                except Overloaded:
                    # It is alive and busy. The primary must not get what is too much for it.
                    raise
                except Unavailable as error:
                    self._try_again_at = time.monotonic() + _PAUSE_SECONDS
                    log.warning("lists are read from the database itself", error=repr(error.__cause__))
            self.missed += 1
        return await self._primary.read(query, *args, **kwargs)

    @property
    def waiting(self) -> int:
        """Return how many reads wait for a connection, to the primary or to the standby."""
        return self._primary.waiting + (self._replica.waiting if self._replica is not None else 0)

    def abort_connections(self) -> None:
        """End every connection to the standby."""
        if self._replica is not None:
            self._replica.store.abort_connections()

    async def close(self) -> None:
        """Close the connections to the standby."""
        if self._replica is not None:
            await self._replica.store.close()


Reader = ReadPool | ReplicaReads


async def read_page(
    reader: Reader, query: Query[..., SomePage], *args: Any, after: str | None, **kwargs: Any
) -> SomePage:
    """Read a page of a list: the first that has an item, or the one that was reached after a second.

    A query for a page examines a bounded number of rows, and the page is empty if none of them matches. Other
    reads can run between two such queries.
    """
    until = time.monotonic() + _FIRST_ITEM_SECONDS
    while True:
        result = await reader.read(query, *args, after=after, **kwargs)
        if result.items or result.next is None or time.monotonic() >= until:
            return result
        after = result.next
