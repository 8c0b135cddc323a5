"""Start a program, read its output, and end it with all its child processes."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from broker.programs import process_groups

# How long child processes may continue after the program has ended.
_MOMENT_SECONDS = 1.0
# How often to check whether the group has ended.
_CHECK_SECONDS = 0.05

Feed = Callable[[bytes], None]


class Process:
    """A program that runs with its child processes in its own session and process group.

    Args:
        feed_output: Called with the bytes of stdout as they arrive.
        feed_errors: Called with the bytes of stderr as they arrive.
    """

    def __init__(self, feed_output: Feed, feed_errors: Feed) -> None:
        self._protocol = _Protocol(feed_output, feed_errors)
        self._transport: asyncio.SubprocessTransport | None = None
        self._group: int | None = None
        # The time on the loop's clock until which its group may run.
        self._until = 0.0

    async def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path | None, stdin: BinaryIO
    ) -> int:
        """Start the program, and return the id of its process.

        Args:
            command: The program and its arguments.
            environment: All its environment variables.
            folder: Its working folder; None for the current one.
            stdin: Its standard input.

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
        """Wait until the program has ended and all its output is read, and return its exit status.

        Child processes may run for a second longer, or for the time that `terminate` allowed. Then they are
        killed. A negative exit status is the number of the signal that killed the program.
        """
        if self._transport is None or self._group is None:
            raise RuntimeError("the program was not started")
        loop, closed = asyncio.get_running_loop(), self._protocol.closed
        await self._protocol.exited.wait()
        self._until = max(self._until, loop.time() + _MOMENT_SECONDS)
        await _within(self._until - loop.time(), closed)
        # No event announces the end of a group.
        while loop.time() < self._until and process_groups.is_alive(self._group):  # noqa: ASYNC110
            await asyncio.sleep(_CHECK_SECONDS)
        self.kill()
        # A process that has left the group may keep the pipes open forever.
        await _within(_MOMENT_SECONDS, closed)
        # Another process may get the id from now on.
        self._group = None
        self._transport.close()
        return self._transport.get_returncode() or 0

    def terminate(self, grace_seconds: float) -> None:
        """Ask the program and its child processes to end, and kill them after a grace period."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + grace_seconds
        # A stopped process does not handle SIGTERM before SIGCONT.
        self._send(signal.SIGTERM, signal.SIGCONT)
        loop.call_later(grace_seconds, self.kill)

    def kill(self) -> None:
        """Kill the program and its child processes."""
        self._send(signal.SIGKILL)

    def _send(self, *numbers: signal.Signals) -> None:
        if self._group is not None:
            process_groups.send(self._group, *numbers)


class _Protocol(asyncio.SubprocessProtocol):
    """Receives the output and the end of a process."""

    def __init__(self, feed_output: Feed, feed_errors: Feed) -> None:
        self._feed = {1: feed_output, 2: feed_errors}
        self.exited = asyncio.Event()
        #: Set when the process has ended and the pipes are closed.
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._feed[fd](data)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, for a number of seconds at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
