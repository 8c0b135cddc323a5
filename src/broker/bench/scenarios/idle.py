"""`idle`: what tools cost that wait for work."""

import asyncio

import asyncpg

from broker.bench.clients import keep_polling, registered
from broker.bench.figures import Figures
from broker.bench.http import BenchError
from broker.bench.load import background, connections
from broker.bench.process import cpu_seconds, memory
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage

_TOOLS = 10_000
_WATCHED_SECONDS = 25.0
# PostgreSQL counts a connection's last transactions up to ten seconds late.
_SETTLE_SECONDS = 12.0
_AT_A_TIME = 200

_TRANSACTIONS = """
select (select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()),
       (select xact_commit + xact_rollback from pg_stat_database where datname = current_database())
"""


async def _round(stage: Stage, size: Size) -> Figures:
    """Have the tools wait, let them settle, and measure for a while."""
    if not stage.ours:
        raise BenchError(
            "`idle` looks at the service's process, so it takes one of its own; leave out --url."
        )
    async with stage.service() as service, registered(service.url, size.of(_TOOLS)) as tools:
        before = memory(_pid(service))
        async with connections(service.url, many=len(tools)) as open_:
            parked = []
            for first in range(0, len(tools), _AT_A_TIME):
                some = zip(open_[first : first + _AT_A_TIME], tools[first:], strict=False)
                parked += [asyncio.create_task(keep_polling(connection, tool)) for connection, tool in some]
                await asyncio.sleep(0.02)
            async with background(*parked):
                await asyncio.sleep(_SETTLE_SECONDS)
                return await _watch(service, len(tools), before)


async def _watch(service: BenchService, tools: int, before: int) -> Figures:
    pid = _pid(service)
    database = await asyncpg.connect(service.database)
    try:
        _, transactions = await database.fetchrow(_TRANSACTIONS)
        cpu = cpu_seconds(pid)
        await asyncio.sleep(_WATCHED_SECONDS)
        cpu = cpu_seconds(pid) - cpu
        connected, since = await database.fetchrow(_TRANSACTIONS)
    finally:
        await database.close()
    return {
        "KiB a tool": (memory(pid) - before) / tools / 1024,
        "% of a core": 100 * cpu / _WATCHED_SECONDS,
        "database connections": connected,
        "transactions/s": (since - transactions) / _WATCHED_SECONDS,
    }


def _pid(service: BenchService) -> int:
    if service.pid is None:
        raise BenchError("The service's process is not known.")
    return service.pid


SCENARIO = Scenario(
    name="idle",
    says=f"{_TOOLS:,} parked tools and nothing to do",
    round=_round,
    wanted={"KiB a tool": "≤ 16", "% of a core": "≤ 1", "database connections": "≤ 5"},
)
