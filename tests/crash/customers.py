"""Customers: they submit tasks of several kinds, wait for what becomes of each, and remember it."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from broker.client import AsyncBroker, AsyncHandle

CUSTOMERS = 20
# Longer than a killed tool's lease and every retry of a client; far shorter than a look of one's own.
PATIENCE_SECONDS = 40


class Kind(NamedTuple):
    """A kind of task.

    Args:
        share: How many there are of it, beside the others.
        at_first: What the tool does at the first attempt.
        reports: How many reports the first attempt sends, every tenth of them large.
        options: The task's fields.
        deleted: Whether the customer takes it back, soon after.
    """

    share: int
    at_first: Literal["succeeds", "fails", "hangs"] = "succeeds"
    reports: int = 0
    options: Mapping[str, Any] = MappingProxyType({})
    deleted: bool = False


KINDS = (
    Kind(17),
    Kind(2, at_first="fails", options={"retry_backoff_seconds": 0.05}),
    Kind(1, deleted=True),
)
# Its first attempt is over time before the tool is through, and its result then comes too late.
HANGS = Kind(1, at_first="hangs", options={"retry_backoff_seconds": 0.05, "timeout_seconds": 1})
# Its first attempt sends many reports, of which some are large.
REPORTS = Kind(1, reports=100)


class Customers:
    """A crowd of customers.

    Args:
        urls: The brokers; customers are shared out among them.
        kinds: What they submit.
    """

    def __init__(self, urls: Sequence[str], kinds: Sequence[Kind] = KINDS) -> None:
        self._urls = urls
        self._kinds = kinds
        self._enough = asyncio.Event()
        self._working: list[asyncio.Task[None]] = []
        #: The tasks that were acknowledged; and how those ended of which the customers heard.
        self.acknowledged: set[str] = set()
        self.answered: dict[str, str] = {}

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They submit and wait during the block, and know at its end how every task has ended."""
        async with AsyncExitStack() as stack:
            brokers = [
                await stack.enter_async_context(AsyncBroker(url, patience_seconds=None)) for url in self._urls
            ]
            self._working = [
                asyncio.create_task(self._be_customer(number, brokers[number % len(brokers)]))
                for number in range(CUSTOMERS)
            ]
            stack.push_async_callback(self._go_home)
            await self.more()
            yield
            self._enough.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*self._working)

    async def more(self, count: int = 20) -> None:
        """Return when so many more tasks have ended: all is well, or well again."""
        goal = len(self.answered) + count
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.answered) < goal:
                for customer in self._working:
                    if customer.done():
                        customer.result()
                await asyncio.sleep(0.01)

    async def _go_home(self) -> None:
        for customer in self._working:
            customer.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _be_customer(self, number: int, broker: AsyncBroker) -> None:
        rounds = 0
        while not self._enough.is_set():
            rounds += 1
            [kind] = random.choices(self._kinds, [kind.share for kind in self._kinds])
            name = f"c{number}.{rounds}"
            payload = {"name": name, "at_first": kind.at_first, "reports": kind.reports}
            handle = await broker.submit({}, payload, id=name, max_attempts=1000, **kind.options)
            self.acknowledged.add(name)
            if kind.deleted:
                await asyncio.sleep(random.uniform(0, 0.03))
                await broker.connection.call("DELETE", f"/v1/tasks/{name}", object)
            self.answered[name] = await _end_of(handle, kind)


async def _end_of(handle: AsyncHandle, kind: Kind) -> str:
    task = await handle.wait(timeout=PATIENCE_SECONDS)
    if task.state == "succeeded":
        assert await handle.result() == handle.id
    else:
        assert (task.state, kind.deleted) == ("cancelled", True), task
    return task.state
