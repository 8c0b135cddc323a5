"""`crowd`: the effect of a client with many slow and waiting requests on another client."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from broker.bench.clients import keep_polling, registered
from broker.bench.figures import Figures, latencies
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import SUCCEEDED, BenchItem, BenchItems, encode_task
from broker.schemas.candidates import Pair

_SLOW = 1_000
_WAITING = 2_000
_LIVES = 500
_SETTLE_SECONDS = 3.0

# The first bytes of slow connections: none, half of the headers, half of a body, or requests for a large page
# whose response the client never reads. Then the client sends a byte per second.
_BEGINNINGS = (
    b"",
    b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b'POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"needs": "',
    b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
)


async def _round(stage: Stage, size: Size) -> Figures:
    async with stage.service() as service, registered(service.url, 2) as [ours, theirs]:
        alone = await _lives(service.url, ours, size.of(_LIVES))
        async with _crowd(service.url, theirs, size):
            crowded = await _lives(service.url, ours, size.of(_LIVES))
    return latencies(alone, "alone ") | latencies(crowded, "in the crowd ")


async def _lives(url: str, tool: str, cycles: int) -> list[float]:
    """Return the durations of a number of life cycles, in seconds."""
    durations = []
    async with connections(url, number=1) as [connection]:
        for number in range(cycles):
            started_at = time.perf_counter()
            await _life(connection, tool, number)
            durations.append(time.perf_counter() - started_at)
    return durations


async def _life(connection: HttpConnection, tool: str, number: int) -> None:
    call = connection.call
    task = await call("POST", "/v1/tasks", encode_task(number), BenchItem)
    await call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), into=None)
    [work] = (await call("GET", f"/v1/tools/{tool}/work?wait=10", into=BenchItems)).items
    await call("POST", f"/v1/work/{work.id}/complete", SUCCEEDED, into=None)


@asynccontextmanager
async def _crowd(url: str, tool: str, size: Size) -> AsyncIterator[None]:
    """Run a client with many waiting requests, and many slow connections."""
    async with connections(url, number=size.of(_WAITING)) as open_:
        load = [keep_polling(connection, tool) for connection in open_]
        load += [_dawdle(url, number) for number in range(size.of(_SLOW))]
        async with background(*load):
            await asyncio.sleep(_SETTLE_SECONDS)
            yield


async def _dawdle(url: str, number: int) -> None:
    """Send slowly, and reconnect when the service closes the connection."""
    parts = urlsplit(url)
    while True:
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
        try:
            writer.write(_BEGINNINGS[number % len(_BEGINNINGS)])
            while not writer.is_closing():
                await asyncio.sleep(1)
                if number % len(_BEGINNINGS):
                    writer.write(b"x")
        except ConnectionError:
            continue
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


SCENARIO = Scenario(
    name="crowd",
    says=f"one client has {_SLOW:,} slow connections and {_WAITING:,} long polls, another client works",
    round=_round,
    ratios={
        "p50, in the crowd : alone": ("in the crowd p50 ms", "alone p50 ms"),
        "p99, in the crowd : alone": ("in the crowd p99 ms", "alone p99 ms"),
    },
    wanted={"p50, in the crowd : alone": "≤ 1.5"},
)
