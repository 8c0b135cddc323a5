"""Commands that are told to stop: they end in order, whichever signal says so."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that it clears away what it has begun.

    asyncio knows Ctrl-C: it cancels what runs. An exception that a handler of our own raises comes out of the
    middle of its loop, and may leave tasks behind; so that is done only where Ctrl-C is ignored, as it is by
    what a script starts with `&`.

    Raises:
        SystemExit: SIGTERM came; the status is the one that shells tell of it.
    """
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if not told:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        sys.exit(128 + signal.SIGTERM)
