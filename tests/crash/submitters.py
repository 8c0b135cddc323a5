"""Submitters: they submit tasks of several kinds, wait for each, and record its outcome."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from broker.client import AsyncBroker, AsyncHandle

SUBMITTERS = 20
# Longer than the lease of a killed tool and every pause of a client, and far below BROKER_FALLBACK_SECONDS.
PATIENCE_SECONDS = 40


class Kind(NamedTuple):
    """A kind of task.

    Args:
        share: The relative number of tasks of this kind.
        at_first: The behaviour of the tool at the first attempt.
        reports: The number of reports that the first attempt sends. Every tenth report is large.
        options: Further fields of the task.
        deleted: Whether the submitter deletes the task soon after its submission.
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
# The first attempt times out before the tool has finished. Its result is then late.
HANGS = Kind(1, at_first="hangs", options={"retry_backoff_seconds": 0.05, "timeout_seconds": 1})
# The first attempt sends many reports, some of them large.
REPORTS = Kind(1, reports=100)


class Submitters:
    """A group of submitters that work at the same time.

    Args:
        urls: The URLs of the brokers. The submitters are spread over them.
        kinds: The kinds of tasks that they submit.
    """

    def __init__(self, urls: Sequence[str], kinds: Sequence[Kind] = KINDS) -> None:
        self._urls = urls
        self._kinds = kinds
        self._enough = asyncio.Event()
        self._working: list[asyncio.Task[None]] = []
        #: The acknowledged tasks.
        self.acknowledged: set[str] = set()
        #: The outcome of each task whose end a submitter has received.
        self.outcomes: dict[str, str] = {}

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Submit tasks while the block runs, and wait after it until every task has ended."""
        async with AsyncExitStack() as stack:
            brokers = [
                await stack.enter_async_context(AsyncBroker(url, patience_seconds=None)) for url in self._urls
            ]
            self._working = [
                asyncio.create_task(self._run_submitter(number, brokers[number % len(brokers)]))
                for number in range(SUBMITTERS)
            ]
            stack.push_async_callback(self._stop)
            await self.wait_for_outcomes()
            yield
            self._enough.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*self._working)

    async def wait_for_outcomes(self, count: int = 20) -> None:
        """Wait until `count` more tasks have ended, which shows that the service works."""
        goal = len(self.outcomes) + count
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.outcomes) < goal:
                for submitter in self._working:
                    if submitter.done():
                        submitter.result()
                await asyncio.sleep(0.01)

    async def _stop(self) -> None:
        for submitter in self._working:
            submitter.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _run_submitter(self, number: int, broker: AsyncBroker) -> None:
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
            self.outcomes[name] = await _end_of(handle, kind)


async def _end_of(handle: AsyncHandle, kind: Kind) -> str:
    task = await handle.wait(timeout=PATIENCE_SECONDS)
    if task.state == "succeeded":
        assert await handle.result() == handle.id
    else:
        assert (task.state, kind.deleted) == ("cancelled", True), task
    return task.state
