"""Lists: reads for people and dashboards, over connections of their own, from a copy if there is one."""

import asyncio
import math
import time
from typing import Any, Protocol, TypeVar

import structlog

from broker.errors import Overloaded, Unavailable
from broker.store import Store
from broker.store.sessions import Answer, Do, Given

log = structlog.get_logger(__name__)

# A copy that does not answer is not asked again for so long; who lists does not wait for it.
_PAUSE_SECONDS = 10.0
#: How many reads may wait for a connection; the next one gets 503.
MOST_WAITING = 100
# How long a list looks for its first item. An empty page that has a next one comes after that.
_FIRST_ITEM_SECONDS = 1.0


class Page(Protocol):
    """A page of a list, and where the next one begins."""

    items: Any
    next: Any


SomePage = TypeVar("SomePage", bound=Page)


class Reader(Protocol):
    """Whatever reads."""

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """What something that needs no transaction finds."""


class Reads:
    """Reads over a few connections, which no write uses: each waits for its turn, and not too many do.

    Args:
        store: The database, with connections that no write uses.
        at_once: How many of its connections the reads may use at once.
    """

    def __init__(self, store: Store, *, at_once: int) -> None:
        self.store = store
        self._turns = asyncio.Semaphore(at_once)
        #: How many reads wait for a connection.
        self.waiting = 0

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """Read when a connection is free.

        Raises:
            Overloaded: Too many reads wait already.
            Unavailable: The database did not answer.
            BadRequest: PostgreSQL refuses a value.
        """
        if self.waiting >= MOST_WAITING:
            raise Overloaded
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        try:
            return await self.store.read(do, *args, **kwargs)
        finally:
            self._turns.release()

    def break_off(self) -> None:
        """End every connection."""
        self.store.break_off()

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()


class Lists:
    """Reads from the copy, or from the database itself where there is none, or it does not answer.

    Args:
        itself: Reads of the database.
        copy: Reads of a hot standby of it.
    """

    def __init__(self, itself: Reads, copy: Reads | None = None) -> None:
        self._itself = itself
        self._copy = copy
        self._again_at = -math.inf
        #: How often the database itself was read though there is a copy.
        self.missed = 0

    async def read(self, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        """What a reading finds.

        Raises:
            Overloaded: Too many reads wait already.
            Unavailable: The database does not answer, either.
            BadRequest: PostgreSQL refuses a value.
        """
        if self._copy is not None:
            if time.monotonic() >= self._again_at:
                try:
                    return await self._copy.read(do, *args, **kwargs)
                except Overloaded:
                    # It answers, to others first: the database itself is not to have what is too much for it.
                    raise
                except Unavailable as error:
                    self._again_at = time.monotonic() + _PAUSE_SECONDS
                    log.warning("lists are read from the database itself", error=repr(error.__cause__))
            self.missed += 1
        return await self._itself.read(do, *args, **kwargs)

    @property
    def waiting(self) -> int:
        """How many reads wait for a connection, to the database itself or to the copy."""
        return self._itself.waiting + (self._copy.waiting if self._copy is not None else 0)

    def break_off(self) -> None:
        """End every connection to the copy."""
        if self._copy is not None:
            self._copy.break_off()

    async def close(self) -> None:
        """Let go of the copy."""
        if self._copy is not None:
            await self._copy.close()


async def page(
    reader: Reader, do: Do[..., SomePage], *args: Any, after: str | None, **kwargs: Any
) -> SomePage:
    """Read a page of a list: the first that has an item, or the one that was reached after a second.

    A page examines a bounded number of rows, and is empty if none of them matches. Each is a read of its own,
    so that others have their turn in between.

    Args:
        reader: Where to read.
        do: Reads a page.
        args: What it takes.
        after: Where to begin.
        kwargs: What it takes, too.

    Raises:
        Overloaded: Too many reads wait already.
        Unavailable: The database does not answer.
        BadRequest: PostgreSQL refuses a value.
    """
    until = time.monotonic() + _FIRST_ITEM_SECONDS
    while True:
        found = await reader.read(do, *args, after=after, **kwargs)
        if found.items or found.next is None or time.monotonic() >= until:
            return found
        after = found.next
