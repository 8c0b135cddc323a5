"""Run Python modules in child processes, as `broker demo` and `broker bench` do."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

_STOP_SECONDS = 10.0


@contextlib.contextmanager
def child_process(module: str, *arguments: str, environment: Mapping[str, str]) -> Iterator[int]:
    """Run a Python module for the duration of a block, and yield its process id. SIGTERM stops it."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - our own modules
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
