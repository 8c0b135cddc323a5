"""Shared queries: requests that need the same slow query at the same time share one run of it."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVarTuple, cast

from cachetools import LRUCache

from broker.store.replica_reads import Reader
from broker.store.sessions import Result
from broker.store.sql_connection import SqlConnection

Arguments = TypeVarTuple("Arguments")

# Counting takes longer with more rows. After a query, the next one waits this many times as long as the query
# took. So all dashboards together keep one connection busy for a tenth of the time.
_PAUSES_PER_QUERY = 9
# No request waits longer than this for the next query to begin.
_LONGEST_PAUSE_SECONDS = 2.0
# The maximum number of distinct queries, each with its arguments, to remember.
_MOST_QUERIES = 100


class SharedQueries:
    """Runs queries for requests. Requests at the same time share one run."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._queries: LRUCache[Hashable, _SharedQuery] = LRUCache(_MOST_QUERIES)
        self._turns: dict[Hashable, asyncio.Lock] = {}

    async def read(
        self, query: Callable[[SqlConnection, *Arguments], Result], *arguments: *Arguments
    ) -> Result:
        """Return the result of a query, which includes all writes that were committed before this call.

        Requests with the same arguments share a run. Runs of one query with different arguments do not
        overlap.
        """
        key = (query, *arguments)
        if (shared := self._queries.get(key)) is None:
            turns = self._turns.setdefault(query, asyncio.Lock())
            shared = _SharedQuery(self._reader, lambda connection: query(connection, *arguments), turns)
            self._queries[key] = shared
        return cast("Result", await shared.share())


class _SharedQuery:
    """A query with its arguments, which runs repeatedly. `turns` is the lock of all queries of its kind."""

    def __init__(self, reader: Reader, query: Callable[[SqlConnection], Any], turns: asyncio.Lock) -> None:
        self._reader = reader
        self._query = query
        self._turns = turns
        self._run: asyncio.Task[tuple[Any, float]] | None = None
        # The time when the next run may begin, by the loop's clock.
        self._next_at = -math.inf

    async def share(self) -> Any:
        """Return the result of a run that begins now, or of a later run together with other requests."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while True:
            if self._run is None or self._run.done():
                if (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                    continue
                self._run = asyncio.create_task(self._read(), name="shared query")
            result, began = await asyncio.shield(self._run)
            if began >= asked_at:
                return result

    async def _read(self) -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        async with self._turns:
            began = loop.time()
            try:
                return await self._reader.read(self._query), began
            finally:
                now = loop.time()
                self._next_at = now + min(_PAUSES_PER_QUERY * (now - began), _LONGEST_PAUSE_SECONDS)
