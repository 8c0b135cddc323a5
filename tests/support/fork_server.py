"""A fork server, which has imported the modules of the commands and forks a process for each command.

A command spends half a second of CPU on imports, which the fork saves. A forked command is still a separate
process, with its own environment, streams, signals and exit status, and runs a module as `python -m` does.
Each test process starts a server when it first needs one.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT

# None of these modules reads the environment during its import.
IMPORTED = (
    *(f"broker.cli.{name}" for name in ("archive", "assign", "backup", "cancel", "explain", "keys")),
    *(f"broker.cli.{name}" for name in ("migrate", "restore", "retry", "serve", "submit", "tool")),
    "broker.client",
    # The commands import these only when they run.
    "anyio._backends._asyncio",
    "encodings.idna",
    "litestar._kwargs.kwargs_model",
    "litestar.exceptions.responses",
    "litestar.plugins.pydantic.plugins.init",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
)
_NUMBER = struct.Struct("i")


def _import_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may influence an import: all but those of the broker and of pytest."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("BROKER_") and name != "PYTEST_CURRENT_TEST"
    }


class _Server(NamedTuple):
    """The server of this test process.

    Args:
        channel: The socket for requests. When the test process ends, it closes, and the server exits.
        environment: The environment variables during the imports.
    """

    channel: socket.socket
    environment: dict[str, str]


@functools.cache
def _server() -> _Server:
    our_end, its_end = socket.socketpair()
    environment = _import_environment(os.environ)
    with its_end:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its_end.fileno())],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[its_end.fileno()],
        )
    atexit.register(_end, our_end, process)
    return _Server(our_end, environment)


def _end(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    channel.close()
    process.wait()


def can_serve(environment: Mapping[str, str]) -> bool:
    """Return whether the server's imports are valid for a process with these variables."""
    return _import_environment(environment) == _server().environment


class ForkedProcess(subprocess.Popen[bytes]):
    """A process that the server has forked to run a module. It is not a child of the test process.

    The class overrides the methods by which `Popen` starts a child and waits for it. Their signatures are the
    same in Python 3.11 to 3.14.

    Args:
        command: The module and its arguments.
        environment: All environment variables of the process.
        options: `stdin`, `stdout`, `stderr` and `cwd`, as for `Popen`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], **options: Any) -> None:
        super().__init__(command, env=environment, **options)

    def _execute_child(self, args: Any, *arguments: Any) -> None:
        cwd, env, *_ = arguments[4:]
        stdin, _, _, stdout, _, stderr = pipes = arguments[9:15]
        streams = [number if pipe == -1 else pipe for number, pipe in enumerate((stdin, stdout, stderr))]
        self._reading = threading.Lock()
        self._status, status = os.pipe()
        with tempfile.TemporaryFile() as request:
            request.write(json.dumps([args, dict(env), str(cwd or Path.cwd())]).encode())
            request.seek(0)
            socket.send_fds(_server().channel, [b"!"], [request.fileno(), status, *streams])
        os.close(status)
        [self.pid] = _NUMBER.unpack(os.read(self._status, _NUMBER.size))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        return self._status_within(0)

    def _wait(self, timeout: float | None) -> int:
        status = self._status_within(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _status_within(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if poll.poll(seconds and seconds * 1000):
                self._read_status()
        return self.returncode

    def _read_status(self) -> None:
        """Read the exit status, unless another thread has just done so."""
        with self._reading:
            if self.returncode is None:
                [self.returncode] = _NUMBER.unpack(os.read(self._status, _NUMBER.size))
                os.close(self._status)


def _serve(channel: socket.socket) -> tuple[int, ...]:
    """Fork for each request; return in the new process, with the descriptors of its request and streams."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 5)
        if not descriptors:
            sys.exit()
        if os.fork() == 0:
            channel.close()
            return _watched(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watched(request: int, status: int, *streams: int) -> tuple[int, ...]:
    """Fork once more, and report how that process ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        return (request, *streams)
    # This process is in the group of the command, but signals to the group are meant for the command.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in (request, *streams):
        os.close(descriptor)
    os.write(status, _NUMBER.pack(pid))
    _, ended = os.waitpid(pid, 0)
    os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def _become(request: int, *streams: int) -> str:
    """Apply the environment and the streams of a request, and return the module to run."""
    with open(request, "rb") as file:
        [module, *arguments], environment, folder = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    # Close them only now: a descriptor in `streams` may have the number of a standard stream.
    for stream in streams:
        if stream > 2:
            os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    time.tzset()
    sys.argv = [module, *arguments]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    return str(module)


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    runpy.run_module(_become(*_serve(channel)), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
