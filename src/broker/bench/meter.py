"""Measure the cost of tasks: CPU time, write-ahead log (WAL) and dead tuples."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from broker.bench.database import connected
from broker.bench.figures import Figures
from broker.bench.process import cpu_seconds

SERVICE = "service CPU µs/task"
POSTGRES = "PostgreSQL CPU µs/task"
LOAD = "load CPU µs/task"
WAL = "WAL bytes/task"
DEAD_TUPLES = "dead tuples/task"
COSTS = (SERVICE, POSTGRES, LOAD, WAL, DEAD_TUPLES)

_WAL = "select cast(pg_current_wal_insert_lsn() - '0/0' as double precision)"
_OPEN = """
select count(*) from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""
_CLOSE_SECONDS = 10
# Each update and each deletion leaves a dead tuple. The tools are deleted only because the round ends.
_DEAD_TUPLES = """
select cast(sum(n_tup_upd) + sum(n_tup_del) filter (where relname not in ('tools', 'tool_leases'))
            as double precision)
       / nullif(sum(n_tup_ins) filter (where relname = 'tasks'), 0)
from pg_stat_user_tables
"""


class Meter:
    """Measures the cost of the tasks of a round.

    Args:
        processes: The ids of the measured processes.
        postmaster: The process id of the database server; 0 to measure nothing.
        database: The URL of the database.
    """

    def __init__(self, processes: Sequence[int] = (), postmaster: int = 0, database: str = "") -> None:
        self._processes = processes
        self._postmaster = postmaster
        self._database = database
        self._spent: Figures = defaultdict(float)
        self._tasks = 0
        self._dead_tuples: float | None = None

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        """Measure the block. Several blocks of a round add up."""
        if not self._postmaster:
            yield
            return
        wal = await self._wal()
        before = self._cpu_microseconds()
        yield
        for part, spent in self._cpu_microseconds().items():
            self._spent[part] += spent - before[part]
        self._spent[WAL] += await self._wal() - wal

    def count(self, tasks: int) -> None:
        """Add a number of tasks that ended while the meter measured."""
        self._tasks += tasks

    async def read_dead_tuples(self) -> None:
        """Read the number of dead tuples per task, of all tasks in the database.

        PostgreSQL counts the rows of a connection up to ten seconds late, but at once when the connection
        closes. So the measured processes must have ended.
        """
        if not self._postmaster:
            return
        async with connected(self._database) as connection, asyncio.timeout(_CLOSE_SECONDS):
            while await connection.fetchval(_OPEN):  # noqa: ASYNC110 - other processes close them
                await asyncio.sleep(0.01)
            self._dead_tuples = await connection.fetchval(_DEAD_TUPLES)

    def figures(self) -> Figures:
        """Return the costs per task, as far as they were measured."""
        if not self._tasks:
            return {}
        figures = {name: spent / self._tasks for name, spent in self._spent.items()}
        return figures if self._dead_tuples is None else figures | {DEAD_TUPLES: self._dead_tuples}

    def _cpu_microseconds(self) -> Figures:
        seconds = {
            SERVICE: sum(map(cpu_seconds, self._processes)),
            POSTGRES: cpu_seconds(self._postmaster),
            LOAD: time.process_time(),
        }
        return {name: value * 1e6 for name, value in seconds.items()}

    async def _wal(self) -> float:
        async with connected(self._database) as connection:
            return float(await connection.fetchval(_WAL))
