"""Show a broker on a terminal until a key or a signal ends it, and then restore the terminal."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.top.reader import Snapshot, TopReader
from broker.top.texts import span
from broker.top.view import View

try:
    import termios
    import tty
except ImportError:  # on Windows the program reads no keys, but Ctrl-C ends it
    termios = None  # type: ignore[assignment]

_HINT = "q: quit, n: next page, p: previous page"
# After this long without a response the screen says so.
_SILENCE_SECONDS = 2.0
# The time between two redraws of the screen during the read of a snapshot.
_REDRAW_SECONDS = 1.0
# The pause after each snapshot is at least as long as the snapshot took, to avoid a high load on the broker.
_PAUSES_PER_SNAPSHOT = 1.0

_QUIT = frozenset({b"q", b"Q"})
_NEXT = frozenset({b"n", b"N", b" ", b"\x1b[6~"})
_PREVIOUS = frozenset({b"p", b"P", b"b", b"\x1b[5~"})
# The broker or a proxy is overloaded or restarts, so the next request may succeed.
_TEMPORARY = {408, 429, 500, 502, 503, 504}


class TopScreen:
    """A terminal that shows a new snapshot of a broker at a regular interval."""

    def __init__(self, console: Console, connection: Connection, *, url: str, every_seconds: float) -> None:
        self._console = console
        self._url = url
        self._every_seconds = every_seconds
        self._reader = TopReader(connection)
        self._snapshot: Snapshot | None = None
        self._reason: str | None = None
        self._loop = asyncio.get_running_loop()
        self._responded_at = self._loop.time()
        self._pressed = asyncio.Event()
        # The page to show: 1 for the next one, -1 for the previous one.
        self._turn = 0
        self._status = 0
        self._live = Live(
            console=console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._view,
        )
        self._input = _keyboard()
        self._modes: list[Any] | None = None
        self._watching = asyncio.create_task(self._watch())

    async def show(self) -> int:
        """Show the broker until a key or a signal ends it, and return the status to exit with.

        Raises:
            ProblemError: The broker refused a request.
        """
        self._handle_signals()
        try:
            self._enter()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        finally:
            self._leave()
        return self._status

    async def _watch(self) -> None:
        while True:
            started_at = self._loop.time()
            await self._read()
            self._live.refresh()
            duration = self._loop.time() - started_at
            pause = max(self._every_seconds - duration, _PAUSES_PER_SNAPSHOT * duration)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._pressed.wait()
            self._pressed.clear()

    async def _read(self) -> None:
        """Read a snapshot. If that fails for now, store the reason."""
        reading = asyncio.create_task(self._next_snapshot())
        try:
            while not (await asyncio.wait({reading}, timeout=_REDRAW_SECONDS))[0]:
                self._live.refresh()
            self._snapshot, self._reason = reading.result(), None
            self._responded_at = self._loop.time()
        except httpx.TransportError as error:
            self._reason = str(error) or type(error).__name__
        except ProblemError as error:
            if error.problem.status not in _TEMPORARY:
                raise
            self._reason = error.problem.detail
        finally:
            reading.cancel()

    async def _next_snapshot(self) -> Snapshot:
        turn, self._turn = self._turn, 0
        layout = self._view().layout(self._console.size.height)
        if turn > 0 and layout is not None:
            await self._reader.turn(len(layout.tools))
        elif turn < 0:
            self._reader.turn_back()
        return await self._reader.read(self._console.size.height)

    def _view(self) -> View:
        silence = self._loop.time() - self._responded_at
        trouble = None
        if self._reason is not None or silence > _SILENCE_SECONDS:
            reason = (self._reason or "no response yet").rstrip(".")
            trouble = f"No response for {span(silence)}: {reason}. Retrying."
        return View(self._url, self._snapshot, trouble=trouble, hint=_HINT, on_screen=True)

    # The terminal

    def _enter(self) -> None:
        self._live.start(refresh=True)
        if self._input is not None:
            self._modes = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
            self._loop.add_reader(self._input, self._press, self._input)

    def _leave(self) -> None:
        try:
            if self._input is not None and self._modes is not None:
                self._loop.remove_reader(self._input)
                termios.tcsetattr(self._input, termios.TCSAFLUSH, self._modes)
        finally:
            self._live.stop()

    def _press(self, keyboard: int) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(keyboard, 64)
        keys = {data} if data.startswith(b"\x1b") else {bytes([key]) for key in data}
        if not data:  # the terminal was closed
            self._loop.remove_reader(keyboard)
        elif not keys.isdisjoint(_QUIT):
            self._end(0)
        elif not keys.isdisjoint(_NEXT | _PREVIOUS):
            self._turn = -1 if keys.isdisjoint(_NEXT) else 1
            self._pressed.set()

    def _handle_signals(self) -> None:
        handlers: dict[str, Callable[[], None]] = {
            "SIGINT": partial(self._end, 0),
            "SIGTERM": partial(self._end, 128 + signal.SIGTERM),
            "SIGHUP": partial(self._end, 128 + 1),
            "SIGWINCH": self._live.refresh,
            "SIGTSTP": self._suspend,
        }
        for name, handler in handlers.items():
            with contextlib.suppress(
                AttributeError, NotImplementedError
            ):  # Windows lacks most of these signals
                self._loop.add_signal_handler(getattr(signal, name), handler)

    def _end(self, status: int) -> None:
        self._status = status
        self._watching.cancel()

    def _suspend(self) -> None:
        """Restore the terminal, stop the process, and take the terminal again when the process continues."""
        if self._live.is_started:
            self._leave()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._enter()


def _keyboard() -> int | None:
    """Return the file descriptor of the terminal to read keys from, or None if there is none."""
    if termios is None or sys.stdin is None or not sys.stdin.isatty():
        return None
    return sys.stdin.fileno()
