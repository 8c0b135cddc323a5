"""SIGTERM for commands that clean up before they end."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that the block can clean up.

    asyncio handles Ctrl-C: it cancels the running tasks. An exception from a handler of our own would leave
    its loop in the middle, and perhaps tasks behind. So the handler raises one only if Ctrl-C is ignored, as
    it is in what a script starts with `&`.

    Raises:
        SystemExit: SIGTERM came; the status is the one that shells report for it.
    """
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if received:
        sys.exit(128 + signal.SIGTERM)
