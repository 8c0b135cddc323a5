"""Wait for conditions that send no notification."""

import asyncio
import inspect
from collections.abc import Callable


async def wait_until(holds: Callable[[], object], within: float = 20) -> None:
    """Wait until a condition holds.

    Args:
        holds: Returns whether the condition holds. It may be a coroutine function.
        within: The timeout in seconds.

    Raises:
        TimeoutError: The condition did not hold in time.
    """
    async with asyncio.timeout(within):
        while True:
            result = holds()
            if inspect.isawaitable(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.005)
