"""Calls of many things: what comes while one is under way goes with the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Raw

from broker.client.connection import ProblemError

Answer = TypeVar("Answer")

_MOST = 1_000
# That something is wrong with one item, or that they are too large together.
_ONE_IS_TO_BLAME = (400, 413, 422)
# The broker takes bodies of 32 MiB, unless it is set otherwise; what is bigger than this has its own call.
_MOST_BYTES = 2**20


class Together(Generic[Answer]):
    """Makes one call at a time, and with it for all that has come since the last one; nothing waits for more.

    Args:
        call: Makes a call for these items, as JSON, and answers for each of them, in their order. When it
            is refused because of one of them, it is made again with half of them, and so on.
    """

    def __init__(self, call: Callable[[list[Raw]], Awaitable[Sequence[Answer]]]) -> None:
        self._call = call
        self._waiting: list[tuple[Raw, asyncio.Future[Answer]]] = []
        self._calling: asyncio.Task[None] | None = None

    async def put(self, item: Raw) -> Answer:
        """What is answered for an item; raises what the call for it alone does."""
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, told))
        if self._calling is None:
            self._calling = asyncio.create_task(self._go_on())
        return await told

    async def _go_on(self) -> None:
        try:
            while batch := self._next():
                await self._answer(batch)
        finally:
            self._calling = None

    def _next(self) -> list[tuple[Raw, asyncio.Future[Answer]]]:
        """As much as a call takes; what nobody waits for any more is left out."""
        waiting = [(item, told) for item, told in self._waiting if not told.done()]
        size, count = 0, 0
        for item, _ in waiting[:_MOST]:
            size += len(bytes(item))
            if count and size > _MOST_BYTES:
                break
            count += 1
        self._waiting = waiting[count:]
        return waiting[:count]

    async def _answer(self, batch: list[tuple[Raw, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._call([item for item, _ in batch])
        except ProblemError as error:
            if len(batch) > 1 and error.problem.status in _ONE_IS_TO_BLAME:
                middle = len(batch) // 2
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            _fail(batch, error)
            return
        except Exception as error:  # noqa: BLE001 - it is told to whoever waits
            _fail(batch, error)
            return
        for (_, told), answer in zip(batch, answers, strict=True):
            if not told.done():
                told.set_result(answer)


def _fail(batch: list[tuple[Raw, asyncio.Future[Answer]]], error: Exception) -> None:
    for _, told in batch:
        if not told.done():
            told.set_exception(error)
