"""Long polls: register, read, wait for a notification, and read again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from broker.wake.departure import Departure
from broker.wake.waiters import Waiters

State = TypeVar("State")


class Seen(NamedTuple, Generic[State]):
    """A state that the caller has read already, and a moment of the topic before it did."""

    state: State
    since: int


async def long_poll(
    waiters: Waiters,
    read_state: Callable[[], Awaitable[State]],
    *,
    until: Callable[[State], bool],
    seconds: float,
    topic: str,
    key: str = "",
    read_last: bool = True,
    departure: Departure | None = None,
    accept: Callable[[Any], Awaitable[State]] | None = None,
    seen: Seen[State] | None = None,
) -> State:
    """Read the state until there is something to return, or the wait times out.

    If a notification is lost, the sweep wakes the requests that missed it.

    Args:
        waiters: The register of waiting requests.
        read_state: Reads the current state. It holds no connection between two calls.
        until: Returns whether a state is worth returning.
        seconds: The maximum time to wait. With 0, read once.
        topic: The channel of the notifications.
        key: The id to wait for, or empty for any.
        read_last: Whether to read again when the wait times out, because the state may change without a
            notification.
        departure: Ends the wait when the client disconnects.
        accept: Returns the state for a value that was handed over with `Waiters.hand_over`.
        seen: Replaces the first read.

    Returns:
        The last state.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    with waiters.register(topic, key, since=seen.since if seen else None) as waiter:
        departure = departure or Departure()
        departure.watch(waiter.wake)
        try:
            state = seen.state if seen else await read_state()
            while True:
                remaining = end - loop.time()
                if until(state) or remaining <= 0 or waiters.released:
                    return state
                was_woken = await waiter.wait(remaining)
                if departure.has_left or waiters.released or not (was_woken or read_last):
                    return state
                handed = waiter.pop_handed()
                state = await (read_state() if accept is None or handed is None else accept(handed))
        finally:
            departure.watch(None)
