"""What tests of programs as tools need: small programs, and whether they live."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil


def executable(path: Path, content: str = "#!/bin/sh\n") -> Path:
    """A file that may be run."""
    path.write_bytes(content.encode())
    path.chmod(0o755)
    return path


def lives(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(holds: Callable[[], bool], within: float = 10) -> None:
    """Return when something holds that nobody tells us of."""
    async with asyncio.timeout(within):
        while not holds():
            await asyncio.sleep(0.005)
