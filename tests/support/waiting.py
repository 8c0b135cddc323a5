"""Waiting for what notifies nobody."""

import asyncio
import inspect
from collections.abc import Callable


async def wait_until(holds: Callable[[], object], within: float = 20) -> None:
    """Return when a condition holds.

    Args:
        holds: Looks whether it does. A coroutine function may ask the database or the broker.
        within: How many seconds it may take; then `TimeoutError`.
    """
    async with asyncio.timeout(within):
        while True:
            answer = holds()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.005)
