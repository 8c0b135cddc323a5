"""Long polls: register, read, wait for a notification, and read again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.wake.waiters import Waiters

State = TypeVar("State")


async def long_poll(
    waiters: Waiters,
    read_state: Callable[[], Awaitable[State]],
    *,
    until: Callable[[State], bool],
    seconds: float,
    topic: str,
    key: str = "",
    read_last: bool = True,
    disconnected: Callable[[], Awaitable[object]] | None = None,
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
        disconnected: Returns when the client has disconnected.

    Returns:
        The last state.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    with waiters.register(topic, key) as waiter:
        watch = None if disconnected is None else asyncio.ensure_future(disconnected())
        if watch is not None:
            watch.add_done_callback(waiter.wake)
        try:
            while True:
                state = await read_state()
                remaining = end - loop.time()
                if until(state) or remaining <= 0 or waiters.released:
                    return state
                was_woken = await waiter.wait(remaining)
                has_left = watch is not None and watch.done()
                if has_left or waiters.released or not (was_woken or read_last):
                    return state
        finally:
            if watch is not None:
                watch.cancel()
