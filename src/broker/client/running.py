"""Running until told to stop: what a program of its own does with the client."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any


def run(doing: Coroutine[Any, Any, None]) -> None:
    """Run something until it ends, or SIGTERM or Ctrl-C cancels it.

    Args:
        doing: What to run; cancelled, it finishes what it has in hand.
    """

    async def until_signalled() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(doing)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(until_signalled())
