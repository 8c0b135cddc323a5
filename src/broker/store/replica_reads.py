"""Reads for people and dashboards: over separate connections, from the standby if there is one."""

import asyncio
import math
import time
from typing import Any, Protocol, TypeVar

import structlog

from broker.errors import Overloaded, Unavailable
from broker.store import Store
from broker.store.sessions import Params, Query, Result

log = structlog.get_logger(__name__)

# When the standby has not responded, reads go directly to the primary for this long.
_PAUSE_SECONDS = 10.0
#: The maximum number of reads that wait for a connection. The next one gets 503.
MOST_WAITING = 100
# How long to search a list for its first item. After that, the response is an empty page with a next page.
_FIRST_ITEM_SECONDS = 1.0


class AnyPage(Protocol):
    """A page of a list, and the cursor of the next page."""

    items: Any
    next: Any


SomePage = TypeVar("SomePage", bound=AnyPage)


class ReadPool:
    """A few connections that only reads use. A bounded number of reads may wait for a connection.

    Args:
        store: The database, with connections that no write uses.
        at_once: The maximum number of its connections that reads use at the same time.
    """

    def __init__(self, store: Store, *, at_once: int) -> None:
        self.store = store
        self._turns = asyncio.Semaphore(at_once)
        #: The number of reads that wait for a connection.
        self.waiting = 0

    async def read(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query when a connection is free.

        Raises:
            Overloaded: Too many reads already wait.
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
    """Reads from the standby. Without a standby, or if it does not respond, reads go to the primary.

    Args:
        primary: Reads from the primary.
        replica: Reads from the primary's hot standby, if there is one.
    """

    def __init__(self, primary: ReadPool, replica: ReadPool | None = None) -> None:
        self._primary = primary
        self._replica = replica
        self._try_again_at = -math.inf
        #: The number of reads that went to the primary because the standby did not respond.
        self.missed = 0

    async def read(self, query: Query[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Run a query.

        Raises:
            Overloaded: Too many reads already wait.
            Unavailable: The primary does not respond either.
        """
        if self._replica is not None:
            if time.monotonic() >= self._try_again_at:
                try:
                    return await self._replica.read(query, *args, **kwargs)
                except Overloaded:
                    # The standby is alive but busy. Its load must not move to the primary.
                    raise
                except Unavailable as error:
                    self._try_again_at = time.monotonic() + _PAUSE_SECONDS
                    log.warning("standby did not respond, reading primary", error=repr(error.__cause__))
            self.missed += 1
        return await self._primary.read(query, *args, **kwargs)

    @property
    def waiting(self) -> int:
        """Return the number of reads that wait for a connection to the primary or to the standby."""
        return self._primary.waiting + (self._replica.waiting if self._replica is not None else 0)

    def abort_connections(self) -> None:
        """Abort every connection to the standby."""
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
    """Read a page of a list: the first page with an item, or the page reached after a second.

    A query for a page examines a bounded number of rows. If none of them matches, the page is empty. Other
    reads can run between two such queries.
    """
    until = time.monotonic() + _FIRST_ITEM_SECONDS
    while True:
        result = await reader.read(query, *args, after=after, **kwargs)
        if result.items or result.next is None or time.monotonic() >= until:
            return result
        after = result.next
