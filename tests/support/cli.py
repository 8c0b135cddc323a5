"""The `broker` command, run in a process as on the command line."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.support.processes import clean_environment, start


class CommandResult(NamedTuple):
    """The exit status of a command and its output."""

    status: int
    out: str
    err: str


async def run(url: str, *arguments: str, stdin: str | bytes = b"", **environment: str) -> CommandResult:
    """Run `broker` with these arguments against a broker, and wait until it exits."""
    process = start(
        *("broker.cli", *arguments),
        environment=clean_environment(BROKER_URL=url, **environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    content = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        out, err = await asyncio.to_thread(process.communicate, content, timeout=30)
    finally:
        process.kill()
    assert b"Traceback" not in err, err.decode()
    return CommandResult(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def running(url: str, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `broker` with these arguments against a broker, and kill it at the end of the block."""
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
