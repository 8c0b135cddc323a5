"""Stop commands on SIGTERM and Ctrl-C, such that they clean up first and print no traceback."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block, so that the block can clean up.

    An exception from a signal handler would interrupt an event loop anywhere, and perhaps leave tasks behind.
    So in an event loop, SIGTERM does what Ctrl-C does: asyncio cancels the running tasks. Elsewhere, or if
    Ctrl-C is ignored as in a command that a script starts with `&`, SIGTERM raises SystemExit.

    Raises:
        SystemExit: SIGTERM came. The status is the one that shells report for it.
    """
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.default_int_handler):
            sys.exit(128 + number)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if received:
        sys.exit(128 + signal.SIGTERM)


def run_async(
    function: Callable[Params, Coroutine[Any, Any, Result]], *args: Params.args, **kwargs: Params.kwargs
) -> Result:
    """Run a coroutine function as `asyncio.run` does, and hold back signals until its event loop is complete.

    If a signal handler raises an exception while asyncio creates the loop, a part of the loop remains. Its
    destructor prints a traceback.
    """
    return run_async_in(asyncio.new_event_loop, function, *args, **kwargs)


def run_async_in(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop],
    function: Callable[Params, Coroutine[Any, Any, Result]],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> Result:
    """Do the same as `run_async` in an event loop of another kind."""
    coroutine = None
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            with _held_back_signals():
                runner.get_loop()
                coroutine = function(*args, **kwargs)
            return runner.run(coroutine)
    finally:
        if coroutine is not None:
            # Python would warn of a coroutine that never ran.
            coroutine.close()


@contextlib.contextmanager
def _held_back_signals() -> Iterator[None]:
    """Call no signal handler during the block. Signals that come meanwhile follow after it."""
    received: list[int] = []
    handlers = {}
    try:
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, lambda received_number, _: received.append(received_number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for received_number in received:
        signal.raise_signal(received_number)
