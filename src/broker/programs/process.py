"""A program at work: a process group of its own, what it writes, and its end."""

import asyncio
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from broker.programs import groups

# How long what a program has left running may go on writing when the program has ended.
_MOMENT_SECONDS = 1.0
# How often it is looked whether the group is gone.
_LOOK_SECONDS = 0.05

Take = Callable[[bytes], None]


class Process:
    """A program that runs, with all that it starts: a session and a process group of its own.

    Args:
        take_output: Is given what it writes to stdout, as it comes.
        take_errors: Is given what it writes to stderr.
    """

    def __init__(self, take_output: Take, take_errors: Take) -> None:
        self._protocol = _Protocol(take_output, take_errors)
        self._transport: asyncio.SubprocessTransport | None = None
        self._group: int | None = None
        # When its group has had its time, after the program itself has ended; by the loop's clock.
        self._until = 0.0

    async def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path | None, stdin: BinaryIO
    ) -> int:
        """Start it.

        Args:
            command: The program and its arguments.
            environment: All of its environment.
            folder: Where it runs; None: where we do.
            stdin: What it reads.

        Returns:
            The number of its process.

        Raises:
            OSError: It cannot be started.
        """
        self._transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: self._protocol,
            *command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self._group = self._transport.get_pid()
        return self._group

    async def wait(self) -> int:
        """Wait until it has ended, and all that it wrote is taken.

        What it has left running has a moment to end, or as long as `terminate` gave it; then it is killed.

        Returns:
            Its exit status; negative the signal that has killed it.
        """
        if self._transport is None or self._group is None:
            raise RuntimeError("the program was not started")
        loop, closed = asyncio.get_running_loop(), self._protocol.closed
        await self._protocol.exited.wait()
        self._until = max(self._until, loop.time() + _MOMENT_SECONDS)
        await _within(self._until - loop.time(), closed)
        # A group tells nobody of its end.
        while loop.time() < self._until and groups.is_alive(self._group):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        self.kill()
        # What has left the group may hold the pipes for ever.
        await _within(_MOMENT_SECONDS, closed)
        # From now on its number may be another's.
        self._group = None
        self._transport.close()
        return self._transport.get_returncode() or 0

    def terminate(self, grace_seconds: float) -> None:
        """Tell it to end, with all that it has started; what is there so many seconds later is killed."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + grace_seconds
        # One that is stopped would not hear of it.
        self._send(signal.SIGTERM, signal.SIGCONT)
        loop.call_later(grace_seconds, self.kill)

    def kill(self) -> None:
        """Kill it, with all that it has started."""
        self._send(signal.SIGKILL)

    def _send(self, *numbers: signal.Signals) -> None:
        if self._group is not None:
            groups.send(self._group, *numbers)


class _Protocol(asyncio.SubprocessProtocol):
    """Hears what happens to a process."""

    def __init__(self, take_output: Take, take_errors: Take) -> None:
        self._take = {1: take_output, 2: take_errors}
        #: Set when it has ended.
        self.exited = asyncio.Event()
        #: Set when, besides, nobody can write to its pipes any more.
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._take[fd](data)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, for so many seconds at most."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([waiting], timeout=max(0.0, seconds))
    finally:
        waiting.cancel()
