"""Put load on a service."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from typing import Any

from broker.bench.figures import Figures, latencies
from broker.bench.http import BenchError, HttpConnection
from broker.bench.meter import Meter

_WARM_UP_SECONDS = 0.5


@asynccontextmanager
async def connections(*urls: str, number: int) -> AsyncIterator[list[HttpConnection]]:
    """Open a number of connections to a service, or to several services in turn."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(HttpConnection(url)) for url in islice(cycle(urls), number)]


async def closed_loop(
    url: str,
    clients: int,
    seconds: float,
    once: Callable[[HttpConnection, int], Awaitable[object]],
    meter: Meter | None = None,
) -> Figures:
    """Measure clients that each repeat an operation (`once`), after a short warm-up.

    Args:
        url: The URL of the service.
        clients: The number of clients.
        seconds: The duration, without the warm-up.
        once: The operation on one task.
        meter: Measures the cost of the tasks meanwhile.

    Returns:
        The rate per second, as `/s`, and the latencies: `p50 ms` and so on.

    Raises:
        BenchError: No operation began and ended within the time.
    """
    durations: list[float] = []
    meter = meter or Meter()
    async with connections(url, number=clients) as open_:
        begin = time.perf_counter() + _WARM_UP_SECONDS
        end = begin + seconds

        async def client(connection: HttpConnection, number: int) -> None:
            while (started_at := time.perf_counter()) < end:
                await once(connection, number)
                if begin <= (ended_at := time.perf_counter()) <= end:
                    meter.count(1)
                    if started_at >= begin:
                        durations.append(ended_at - started_at)

        async def measure() -> None:
            await asyncio.sleep(begin - time.perf_counter())
            async with meter.measuring():
                await asyncio.sleep(end - time.perf_counter())

        await asyncio.gather(measure(), *(client(open_[number], number) for number in range(clients)))
    if not durations:
        raise BenchError(f"No operation ended within {seconds:g} seconds. Measure longer, with --seconds.")
    return {"/s": len(durations) / seconds} | latencies(durations)


@asynccontextmanager
async def background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run jobs during the block. If one fails, the block fails with its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
