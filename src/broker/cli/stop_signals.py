"""Stop commands on SIGTERM and Ctrl-C, such that they clean up first and print no traceback."""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import FrameType
from typing import Any, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")

# The main task of the running event loop.
_main_task: asyncio.Task[Any] | None = None


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the block can clean up.

    An exception from a signal handler would interrupt an event loop anywhere, and perhaps leave tasks behind.
    So SIGTERM cancels the main task of `run_async`. It raises an exception only outside of an event loop.

    Raises:
        SystemExit: The process received SIGTERM. The status is that which shells report for it.
    """
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if _main_task is None or received:
            received = True
            sys.exit(128 + number)
        received = True
        _main_task.cancel()
        # Wakes up the loop.
        _main_task.get_loop().call_soon_threadsafe(lambda: None)

    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not received:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if received:
        sys.exit(128 + signal.SIGTERM)


def run_async(
    function: Callable[Params, Coroutine[Any, Any, Result]], *args: Params.args, **kwargs: Params.kwargs
) -> Result:
    """Run a coroutine function as `asyncio.run` does, but let no signal interrupt the start of the loop.

    If a signal handler raised an exception while asyncio creates the loop or its first task, Python would
    print a traceback or a warning about the part that exists.
    """
    return run_async_in(asyncio.new_event_loop, function, *args, **kwargs)


def run_async_in(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop],
    function: Callable[Params, Coroutine[Any, Any, Result]],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> Result:
    """Do the same as `run_async` in an event loop of another kind."""

    async def main() -> Result:
        global _main_task  # noqa: PLW0603 - a signal handler needs it
        _main_task = asyncio.current_task()
        try:
            held_back.close()
            return await function(*args, **kwargs)
        finally:
            _main_task = None

    # A `with` statement would create the loop at once.
    runner = asyncio.Runner(loop_factory=new_event_loop)
    coroutine = None
    with contextlib.ExitStack() as held_back:
        held_back.enter_context(_held_back_signals(signal.valid_signals() - {signal.SIGINT}))
        try:
            # The runner handles SIGINT itself, but only if it finds the default handler.
            with _held_back_signals({signal.SIGINT}):
                runner.get_loop()
                coroutine = main()
            return runner.run(coroutine)
        finally:
            runner.close()
            if coroutine is not None:
                # Python would warn about a coroutine that never ran.
                coroutine.close()


@contextlib.contextmanager
def _held_back_signals(numbers: Iterable[int]) -> Iterator[None]:
    """Call no handlers of these signals during the block. Signals that come meanwhile follow after it."""
    received: list[int] = []
    handlers = {}
    # Python calls signal handlers only in the main thread.
    in_main_thread = threading.current_thread() is threading.main_thread()
    try:
        for number in numbers if in_main_thread else ():
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, lambda received_number, _: received.append(received_number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)
