"""Ways to put load on a service."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice

from broker.bench.figures import Round, latencies
from broker.bench.http import Connection

_WARM_UP_SECONDS = 0.5


@asynccontextmanager
async def connections(*urls: str, many: int) -> AsyncIterator[list[Connection]]:
    """So many connections to a service, or to several in turn."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Connection(url)) for url in islice(cycle(urls), many)]


async def closed_loop(
    url: str, clients: int, seconds: float, once: Callable[[Connection, int], Awaitable[object]]
) -> Round:
    """Have clients do something over and over, each as soon as it has done it; after a short warm-up.

    Args:
        url: The service.
        clients: How many, each with a connection of its own.
        seconds: How long.
        once: What to do; it is given the connection and the client's number.

    Returns:
        How often a second it was done, as `/s`, and how long it took: `p50 ms` and so on.
    """
    took: list[float] = []
    async with connections(url, many=clients) as open_:
        begin = time.perf_counter() + _WARM_UP_SECONDS
        end = begin + seconds

        async def client(connection: Connection, number: int) -> None:
            while (began := time.perf_counter()) < end:
                await once(connection, number)
                if (done := time.perf_counter()) <= end and began >= begin:
                    took.append(done - began)

        await asyncio.gather(*(client(connection, number) for number, connection in enumerate(open_)))
    return {"/s": len(took) / seconds} | latencies(took)
