"""Run a program of the client until a signal stops it."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from broker.client.errors import ProblemError, SettingError, explained

log = logging.getLogger(__name__)


def run_until_signal(
    coroutine: Coroutine[Any, Any, None], *, at_once: Callable[[], object] = lambda: None
) -> None:
    """Run a coroutine until it ends, or until SIGTERM or Ctrl-C cancels it.

    A second signal ends the process at once. If the program has not configured logging, this function sends
    log records to standard error.

    Args:
        coroutine: The coroutine. When it is cancelled, it finishes its jobs or releases them.
        at_once: A function to call before a second signal ends the process. If it raises an exception, the
            process ends all the same.

    Raises:
        SystemExit: The broker refused the program, or a setting is not valid. The message says what to do.
    """

    async def until_signalled() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(coroutine)

        def stop(number: signal.Signals) -> None:
            if task.cancelling():
                log.warning("received a second signal, %s; stopping at once", number.name)
                try:
                    at_once()
                finally:
                    os._exit(128 + number)
            task.cancel()

        def handle_signal(number: int, _: object) -> None:
            loop.call_soon_threadsafe(stop, signal.Signals(number))

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, stop, number)
            except NotImplementedError:  # on Windows
                signal.signal(number, handle_signal)
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
