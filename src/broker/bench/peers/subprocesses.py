"""Run the programs of a peer, and end them in every case."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO
from urllib.parse import parse_qs, urlsplit

from broker.bench.peers.peer import PeerError

# A line contains a number for each task.
_LONGEST_LINE = 2**24


class Program:
    """A running program that writes lines."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    async def read_line(self) -> str:
        """Return the next line of the program.

        Raises:
            PeerError: The program ended instead.
        """
        assert self._process.stdout is not None  # noqa: S101 - `running` opens the pipe
        if line := await self._process.stdout.readline():
            return line.decode().strip()
        self._errors.seek(0)
        raise PeerError(f"Its program ended: {_reason(self._errors.read().decode(errors='replace'))}")

    def write_line(self) -> None:
        """Write an empty line, for which the program waits."""
        assert self._process.stdin is not None  # noqa: S101 - `running` opens the pipe
        self._process.stdin.write(b"\n")


@asynccontextmanager
async def running(command: Sequence[str], database: str) -> AsyncIterator[Program]:
    """Run a program on a database during the block.

    The program ends at the end of its input. So it also ends if this process is killed.

    Raises:
        PeerError: The program cannot be started.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=_environment(database),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise PeerError(f"Its program cannot be started: {error}") from error
        async with ended(process):
            yield Program(process, errors)


@asynccontextmanager
async def ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Kill a process and its children when the block ends. They have nothing to clean up.

    Args:
        process: The process, which must have a session of its own.
    """
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _reason(output: str) -> str:
    """Return the line of a traceback that names the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), (lines or ["no output"])[-1])


def _environment(database: str) -> Mapping[str, str]:
    """Return the environment of a program, in which the variables of libpq name a database."""
    url = urlsplit(database)
    parameters = parse_qs(url.query)
    # Variables of the broker may contain a key, and those of libpq may belong to another server.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "PG"))
    }
    return environment | {
        "PGHOST": parameters["host"][0],
        "PGPORT": parameters["port"][0],
        "PGUSER": url.username or "",
        "PGDATABASE": url.path.removeprefix("/"),
        "PGSSLMODE": "disable",
    }
