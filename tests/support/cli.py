"""The `broker` command as people run it: a process of its own."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.support.processes import clean_environment, start


class CommandResult(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


async def run(url: str, *arguments: str, stdin: str | bytes = b"", **environment: str) -> CommandResult:
    """Run `broker` with these arguments, on this broker, to its end."""
    process = start(
        *("broker.cli", *arguments),
        environment=clean_environment(BROKER_URL=url, **environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    given = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        out, err = await asyncio.to_thread(process.communicate, given, timeout=30)
    finally:
        process.kill()
    assert b"Traceback" not in err, err.decode()
    return CommandResult(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def running(url: str, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `broker` with these arguments, on this broker, for as long as the block takes at most."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.cli", *arguments),
        env=clean_environment(BROKER_URL=url, **environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
