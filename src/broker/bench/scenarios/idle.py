"""`idle`: the cost of tools that wait for work."""

import asyncio

from broker.bench.clients import keep_polling, registered
from broker.bench.database import connected
from broker.bench.figures import Figures
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import background, connections
from broker.bench.process import cpu_seconds, memory
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage

_TOOLS = 10_000
_WATCHED_SECONDS = 25.0
# PostgreSQL counts the last transactions of a connection up to ten seconds late.
_SETTLE_SECONDS = 12.0
# The pause between the first requests of two tools.
_PAUSE_SECONDS = 0.0001

_TRANSACTIONS = """
select (select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()),
       (select xact_commit + xact_rollback from pg_stat_database where datname = current_database())
"""


async def _round(stage: Stage, size: Size) -> Figures:
    if not stage.is_own:
        raise BenchError("`idle` measures the process of its own service. Omit --url.")
    async with stage.service() as service, registered(service.url, size.of(_TOOLS)) as tools:
        before = memory(service.pid)
        async with connections(service.url, number=len(tools)) as open_:
            waiting = enumerate(zip(open_, tools, strict=True))
            async with background(*(_wait(number, *pair) for number, pair in waiting)):
                await asyncio.sleep(_SETTLE_SECONDS)
                return await _watch(service, len(tools), before)


async def _wait(number: int, connection: HttpConnection, tool: str) -> None:
    await asyncio.sleep(number * _PAUSE_SECONDS)
    await keep_polling(connection, tool)


async def _watch(service: BenchService, tools: int, before: int) -> Figures:
    async with connected(service.database) as database:
        _, transactions = await database.fetchrow(_TRANSACTIONS)
        cpu = cpu_seconds(service.pid)
        await asyncio.sleep(_WATCHED_SECONDS)
        cpu = cpu_seconds(service.pid) - cpu
        in_use, since = await database.fetchrow(_TRANSACTIONS)
    return {
        "KiB a tool": (memory(service.pid) - before) / tools / 1024,
        "% of a core": 100 * cpu / _WATCHED_SECONDS,
        "database connections": in_use,
        "transactions/s": (since - transactions) / _WATCHED_SECONDS,
    }


SCENARIO = Scenario(
    name="idle",
    says=f"{_TOOLS:,} tools wait in long polls, and there is no work",
    round=_round,
    wanted={"KiB a tool": "≤ 14", "database connections": "≤ 5"},
)
