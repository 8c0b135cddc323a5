"""Combine items that arrive at the same time into one request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

from msgspec import Raw

from broker.batches import batches, halves
from broker.client import tracing
from broker.client.errors import ProblemError
from broker.schemas.limits import MOST_COMPLETIONS

Result = TypeVar("Result")

#: The maximum number of items in one request. It is the broker's limit for completions, its lowest one.
MOST_ITEMS = MOST_COMPLETIONS
#: The maximum size of all items of a request together. It keeps the body below 1 MiB, the default limit of
#: nginx. A larger item gets its own request.
MOST_BYTES = 2**20 - 2**12

# With these statuses, the broker refuses one of the items, or all items together are too large.
_ONE_IS_REFUSED = (400, 413, 422)


class _Waiting(NamedTuple, Generic[Result]):
    """An item that waits for its request, the future of its result, and the headers of its trace."""

    item: Raw
    future: asyncio.Future[Result]
    trace: Mapping[str, str]


async def at_once() -> None:
    """Return without waiting."""


class Batcher(Generic[Result]):
    """Sends one request at a time, with all items that arrived during the previous one.

    If the broker refuses a request because of one item, the batcher sends each half of the items again,
    until only that item fails.

    Args:
        send: Sends a list of items, as JSON, and returns their results in order. All items belong to the same
            trace. Its second argument is the headers of that trace.
        until_due: Waits before each request, so that more items can join it. Default: it does not wait.
    """

    def __init__(
        self,
        send: Callable[[list[Raw], Mapping[str, str]], Awaitable[Sequence[Result]]],
        until_due: Callable[[], Awaitable[None]] = at_once,
    ) -> None:
        self._send = send
        self._until_due = until_due
        self._waiting: list[_Waiting[Result]] = []
        self._sending: asyncio.Task[None] | None = None

    async def put(self, item: Raw) -> Result:
        """Send an item with the next request, and return the result of this item or raise its error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, future, tracing.current()))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return await future

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._until_due()
                if batch := self._next_batch():
                    await self._send_batch(batch)
        finally:
            self._sending = None

    def _next_batch(self) -> list[_Waiting[Result]]:
        """Remove the items of the next request from the queue and return them; drop cancelled items."""
        waiting = [each for each in self._waiting if not each.future.done()]
        of_one_trace = takewhile(lambda each: each.trace == waiting[0].trace, waiting)
        batch = next(batches(of_one_trace, MOST_ITEMS, size=_size, most_bytes=MOST_BYTES), [])
        self._waiting = waiting[len(batch) :]
        return batch

    async def _send_batch(self, batch: Sequence[_Waiting[Result]]) -> None:
        try:
            results = await self._send([each.item for each in batch], batch[0].trace)
        except Exception as error:  # noqa: BLE001 - the futures raise it
            is_of_one = isinstance(error, ProblemError) and error.problem.status in _ONE_IS_REFUSED
            if is_of_one and len(batch) > 1:
                for half in halves(batch):
                    await self._send_batch(half)
                return
            for each in batch:
                if not each.future.done():
                    each.future.set_exception(error)
            return
        for each, result in zip(batch, results, strict=True):
            if not each.future.done():
                each.future.set_result(result)


def _size(waiting: _Waiting[Result]) -> int:
    return len(bytes(waiting.item))
