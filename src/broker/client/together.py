"""Calls of many things: what comes while one is under way goes with the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from msgspec import Raw

from broker.client import tracing
from broker.client.errors import ProblemError

Answer = TypeVar("Answer")

_MOST = 1_000
# That something is wrong with one item, or that they are too large together.
_ONE_IS_TO_BLAME = (400, 413, 422)
#: A larger item has a request of its own. With what is between the items, the body of a request for several
#: of them has less than 1 MiB: that is the default limit of nginx, and the broker accepts more.
MOST_BYTES = 2**20 - 2**12


class _Waiting(NamedTuple, Generic[Answer]):
    """An item, who is told what is answered for it, and the headers of the trace that it belongs to."""

    item: Raw
    told: asyncio.Future[Answer]
    trace: Mapping[str, str]


class Together(Generic[Answer]):
    """Makes one call at a time, and with it for all that has come since the last one; nothing waits for more.

    Args:
        call: Makes a call for these items, as JSON, and answers for each of them, in their order. When it
            is refused because of one of them, it is made again with half of them, and so on. All of them
            belong to one trace, whose headers it is given.
    """

    def __init__(self, call: Callable[[list[Raw], Mapping[str, str]], Awaitable[Sequence[Answer]]]) -> None:
        self._call = call
        self._waiting: list[_Waiting[Answer]] = []
        self._calling: asyncio.Task[None] | None = None

    async def put(self, item: Raw) -> Answer:
        """What is answered for an item; raises what the call for it alone does."""
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, told, tracing.current()))
        if self._calling is None:
            self._calling = asyncio.create_task(self._go_on())
        return await told

    async def _go_on(self) -> None:
        try:
            while batch := self._next():
                await self._answer(batch)
        finally:
            self._calling = None

    def _next(self) -> list[_Waiting[Answer]]:
        """As much as a call takes; what nobody waits for any more is left out."""
        waiting = [each for each in self._waiting if not each.told.done()]
        size, count = 0, 0
        for each in waiting[:_MOST]:
            size += len(bytes(each.item))
            if count and (size > MOST_BYTES or each.trace != waiting[0].trace):
                break
            count += 1
        self._waiting = waiting[count:]
        return waiting[:count]

    async def _answer(self, batch: list[_Waiting[Answer]]) -> None:
        try:
            answers = await self._call([each.item for each in batch], batch[0].trace)
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
        for each, answer in zip(batch, answers, strict=True):
            if not each.told.done():
                each.told.set_result(answer)


def _fail(batch: list[_Waiting[Answer]], error: Exception) -> None:
    for each in batch:
        if not each.told.done():
            each.told.set_exception(error)
