"""Running until told to stop: what a program of its own does with the client."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from broker.client.errors import ProblemError, SettingError, explained

log = logging.getLogger(__name__)


def run(doing: Coroutine[Any, Any, None], *, at_once: Callable[[], object] = lambda: None) -> None:
    """Run something until it ends, or SIGTERM or Ctrl-C cancels it.

    A second signal ends the process at once.

    Unless the program has its own way to log, what happens is told on standard error.

    Args:
        doing: What to run; cancelled, it finishes what it has in hand, or gives it back.
        at_once: Is called when a second signal ends the process; what it raises does not hinder that.

    Raises:
        SystemExit: The broker refuses it; the message says why, and what to do.
    """

    async def until_signalled() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(doing)

        def stop(number: signal.Signals) -> None:
            if task.cancelling():
                log.warning("%s again: stopping at once", number.name)
                try:
                    at_once()
                finally:
                    os._exit(128 + number)
            task.cancel()

        def heed(number: int, _: object) -> None:
            loop.call_soon_threadsafe(stop, signal.Signals(number))

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, stop, number)
            except NotImplementedError:  # on Windows
                signal.signal(number, heed)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        logging.getLogger("broker").setLevel(logging.INFO)
    try:
        asyncio.run(until_signalled())
    except ProblemError as error:
        raise SystemExit(f"Error: {explained(error)}") from error
    except SettingError as error:
        raise SystemExit(f"Error: {error}") from error
