"""Start and stop processes, and prepare their ports, environments and programs."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support import fork_server


def free_port() -> int:
    """Return a TCP port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def clean_environment(**options: str) -> dict[str, str]:
    """Return this process's environment without variables of the broker, plus the given ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return clean | options


def start(
    module: str, *arguments: str, environment: dict[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    """Run a module in a new process, as `python -m` does.

    The fork server forks the process, unless an environment variable may influence the imports. A service
    with `--workers` needs a new Python, because the metrics library decides during its import whether
    processes share their metrics.

    Args:
        module: The name of the module.
        arguments: The arguments of the command line.
        environment: All environment variables of the process.
        options: The streams and the folder, as for `Popen`.
    """
    command = [module, *arguments]
    if "--workers" not in arguments and fork_server.can_serve(environment):
        return fork_server.ForkedProcess(command, environment, **options)
    return subprocess.Popen([sys.executable, "-m", *command], env=environment, **options)


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `broker serve` on a free port. Yield its process and its URL."""
    port = free_port()
    command = ("broker.cli", "serve", "--port", str(port), *arguments)
    process = start(*command, environment=clean_environment(**environment), stderr=subprocess.PIPE)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


async def wait_until_ready(url: str, within: float = 30) -> None:
    """Wait until the service at a URL is ready."""
    async with asyncio.timeout(within), httpx.AsyncClient(base_url=url) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def wait_for_exit(process: subprocess.Popen[bytes], within: float) -> int:
    """Wait at most `within` seconds until a process exits, and return its exit status."""
    async with asyncio.timeout(within):
        return await asyncio.to_thread(process.wait)


def kill_group(pid: int) -> None:
    """Kill a process that leads a process group, and all other processes of the group."""
    os.killpg(pid, signal.SIGKILL)


def make_executable(path: Path, content: str = "#!/bin/sh\n") -> Path:
    """Write an executable file, and return its path."""
    path.write_bytes(content.encode())
    path.chmod(0o755)
    return path


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [each.name for each in folder.iterdir()]
