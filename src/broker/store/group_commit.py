"""Group commit: calls of one step that arrive during a transaction share the next one.

There is no artificial delay: if no transaction is under way, a call starts one at once, alone. The more calls
arrive, the more of them share a statement, a flush to disk and a notification, and the less each of them
costs. Calls run in order of arrival.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from broker.batches import halves
from broker.errors import Locked, Overloaded, RowFailed, Stopping, TooSlow, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

# Two: while one set is in the database, the broker prepares another one or returns its results.
_UNDER_WAY = 2
# The largest set in a transaction. A larger set would use more memory and not lower the cost of an item.
_LARGEST_SET = 500
_LARGEST_BYTES = 4 * 2**20
# The maximum number of waiting calls. More could not be processed within a few seconds.
_MOST_WAITING = 10_000
_MOST_WAITING_BYTES = 64 * 2**20
# The number of slow items in a set after which the rest fails as unavailable. If no item has succeeded, the
# database itself is slow, and the lower number applies.
_MOST_SLOW = 4
_MOST_SLOW_OF_ALL = 2


#: A step returns this for an item whose result does not fit in memory together with the others of its set.
#: The item then becomes part of the next set. A step must return another result for at least one item.
LATER: Final[Any] = object()


class _Call(NamedTuple, Generic[Item, Result]):
    item: Item
    size: int
    future: "asyncio.Future[Result]"

    def resolve(self, result: Result) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class GroupCommit(Generic[Item, Result]):
    """Runs the calls of one step in sets.

    Args:
        run: Runs the step with a set of items in one transaction, and returns a result for each, in order.
        run_longer: Does the same with more time, for an item that is too slow even alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[list[Result]]],
        run_longer: Callable[[Sequence[Item]], Awaitable[list[Result]]] | None = None,
    ) -> None:
        self._run = run
        self._run_longer = run_longer
        self._waiting: deque[_Call[Item, Result]] = deque()
        self._waiting_bytes = 0
        self._under_way: set[asyncio.Task[None]] = set()
        # Items that need more time do not block the others.
        self._longer: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        return len(self._waiting)

    async def call(self, item: Item, size: int) -> Result:
        """Run the step with one item of about `size` bytes, and return its result after the commit.

        If the caller is cancelled before its set begins, the item is not written. If it is cancelled later,
        the item is written and the result is lost.

        Raises:
            Overloaded: Too many calls already wait.
            Unavailable: The database did not respond.
        """
        if len(self._waiting) >= _MOST_WAITING or self._waiting_bytes > _MOST_WAITING_BYTES:
            raise Overloaded
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(item, size, future))
        self._waiting_bytes += size
        if len(self._under_way) < _UNDER_WAY:
            # A new context, because the set also has calls of other requests.
            self._under_way.add(asyncio.create_task(self._work_off(), context=Context()))
        return await future

    async def settle(self, items: Sequence[Item]) -> list[Result]:
        """Run the step with items that are too slow together, and return their results in order.

        Raises:
            Unavailable: The database did not respond for an item. The others are written.
            TooHeavy: An item is too slow even alone. The others are written.
        """
        loop = asyncio.get_running_loop()
        calls = [_Call(item, 0, loop.create_future()) for item in items]
        await self._one_by_one(calls)
        results = await asyncio.gather(*(call.future for call in calls), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[Result]", results)

    async def close(self) -> None:
        """Fail all waiting and running calls. Their clients may repeat them at another process."""
        for call in self._waiting:
            call.fail(Stopping())
        self._waiting.clear()
        self._waiting_bytes = 0
        under_way = [*self._under_way, *self._longer]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _work_off(self) -> None:
        try:
            while calls := self._next_set():
                try:
                    await self._run_set(calls)
                except asyncio.CancelledError:
                    for call in calls:
                        call.fail(Stopping())
                    raise
        finally:
            # Immediately, because a call that arrives before this task is done must start a new one.
            self._under_way.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next_set(self) -> list[_Call[Item, Result]]:
        calls: list[_Call[Item, Result]] = []
        size = 0
        while self._waiting and len(calls) < _LARGEST_SET:
            if calls and size + self._waiting[0].size > _LARGEST_BYTES:
                break
            call = self._waiting.popleft()
            self._waiting_bytes -= call.size
            if not call.future.cancelled():
                calls.append(call)
                size += call.size
        return calls

    async def _run_set(self, calls: Sequence[_Call[Item, Result]]) -> Exception | None:
        """Run the step with the calls, resolve their futures, and return the error of the set, if any."""
        try:
            results = await self._run([call.item for call in calls])
            settled = list(zip(calls, results, strict=True))
        except Exception as error:  # noqa: BLE001 - the futures raise it
            if len(calls) == 1:
                self._fail_alone(calls[0], error)
            elif isinstance(error, (Locked, TooSlow)):
                await self._one_by_one(calls)
            elif isinstance(error, Unavailable) and not isinstance(error, RowFailed):
                _fail(calls, error)
            else:
                # The database refuses a value. Split the set until only the call with this value fails.
                for half in halves(calls):
                    await self._run_set(half)
            return error
        for call, result in reversed(settled):
            if result is LATER:
                self._waiting.appendleft(call)
                self._waiting_bytes += call.size
            else:
                call.resolve(result)
        return None

    async def _one_by_one(self, calls: Sequence[_Call[Item, Result]]) -> None:
        """Run each call alone, because each half of a slow set could take the full time limit again."""
        slow = 0
        for place, call in enumerate(calls):
            error = await self._run_set([call])
            is_slow = isinstance(error, (Locked, TooSlow))
            slow += is_slow
            most = _MOST_SLOW if slow <= place else _MOST_SLOW_OF_ALL
            of_all = isinstance(error, Unavailable) and not is_slow and not isinstance(error, RowFailed)
            if of_all or (is_slow and slow >= most):
                _fail(calls[place + 1 :], Unavailable())
                return

    def _fail_alone(self, call: _Call[Item, Result], error: Exception) -> None:
        """Fail a call, or give it more time if it is only too slow."""
        if not isinstance(error, TooSlow) or self._run_longer is None:
            call.fail(error)
            return
        task = asyncio.create_task(self._run_later(call), context=Context())
        self._longer.add(task)
        task.add_done_callback(self._longer.discard)

    async def _run_later(self, call: _Call[Item, Result]) -> None:
        """Run a call that needs more time than the others."""
        assert self._run_longer is not None  # noqa: S101
        try:
            [result] = await self._run_longer([call.item])
        except asyncio.CancelledError:
            call.fail(Stopping())
            raise
        except Exception as error:  # noqa: BLE001 - the futures raise it
            call.fail(error)
        else:
            call.resolve(result)


def _fail(calls: Sequence[_Call[Item, Result]], error: Unavailable) -> None:
    """Fail calls, each with its own exception, because an exception has only one traceback."""
    for call in calls:
        call.fail(Unavailable(error.detail))
