"""Worker processes: several processes that serve one address.

Each is a whole service, with a pool, a listener and a register of waiters of its own; they share the socket
that they listen on, so that whichever has time takes the next connection. The upkeep they do in turns.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import cast

import structlog
from prometheus_client.multiprocess import mark_process_dead

from broker.server.http_server import create_server, stopping_signals
from broker.settings import Settings
from broker.telemetry import logs, metrics

log = structlog.get_logger(__name__)

_BACKLOG = 2048
# One that ends sooner than this after its start would do so again.
_QUICK_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
# What a worker ends with that cannot even begin to serve; uvicorn's own status, too.
_CANNOT_START = 3
# What it ends with where it was told to, or others have ended it.
_TOLD = (0, -signal.SIGKILL, -signal.SIGTERM)
# Beyond what each of them takes to stop.
_GRACE_SECONDS = 3.0
# Nothing of a process that was forked is safe to use when it has threads.
_spawn = multiprocessing.get_context("spawn")


class WorkerProcessesError(Exception):
    """There can be no workers; the message says why."""


class WorkerProcesses:
    """Several processes that serve one address, for as long as `run` does.

    Args:
        settings: The settings; `database_url` is given.
        host: The address to listen on.
        port: The port.
        count: How many.
    """

    def __init__(self, settings: Settings, *, host: str, port: int, count: int) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._running: dict[int, tuple[SpawnProcess, float]] = {}
        self._replaced: set[int] = set()
        self._count = count
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop by SIGTERM, SIGINT or SIGHUP; a worker that ends is replaced.

        Raises:
            WorkerProcessesError: They cannot start, and so never would.
        """
        with _told() as told, _folder_of_metrics() as folder, _listening(self._host, self._port) as shared:
            try:
                while not self._stopping:
                    self._look_after(told, folder, shared)
            finally:
                self._stop()

    def _look_after(self, told: "connection.Connection", folder: str, shared: socket.socket) -> None:
        """Have as many as there should be, until one has ended or we are told to stop."""
        for number in range(1, self._count + 1):
            if number not in self._running:
                self._start(number, shared)
        ready = connection.wait([told, *(worker.sentinel for worker, _ in self._running.values())])
        self._stopping = told in ready
        if self._bury(folder) and not self._stopping:
            # Not so fast that they would be started all the time; but told to stop, at once.
            self._stopping = told.poll(_PAUSE_SECONDS)

    def _start(self, number: int, shared: socket.socket) -> None:
        worker = _spawn.Process(
            target=_work,
            args=(self._settings, self._host, shared, number),
            name=f"worker-{number}",
        )
        worker.start()
        self._running[number] = (worker, time.monotonic())

    def _bury(self, folder: str) -> bool:
        """Forget those that have ended; whether one of them has ended soon after its start.

        Raises:
            WorkerProcessesError: One of the first cannot start.
        """
        is_quick = False
        for number, (worker, since) in list(self._running.items()):
            if worker.is_alive():
                continue
            del self._running[number]
            mark_process_dead(worker.pid, folder)  # type: ignore[no-untyped-call]
            if self._stopping:
                continue
            was_quick = time.monotonic() - since < _QUICK_SECONDS
            could_not = worker.exitcode == _CANNOT_START or (was_quick and worker.exitcode not in _TOLD)
            if could_not and number not in self._replaced:
                raise WorkerProcessesError(
                    f"A worker could not start, and ended with status {worker.exitcode}; if it has said why,"
                    " that stands above."
                )
            self._replaced.add(number)
            log.error("a worker has ended; starting another one", worker=number, status=worker.exitcode)
            is_quick = is_quick or was_quick
        return is_quick

    def _stop(self) -> None:
        workers = [worker for worker, _ in self._running.values()]
        for worker in workers:
            worker.terminate()
        end = time.monotonic() + self._settings.shutdown_seconds + _GRACE_SECONDS
        for worker in workers:
            worker.join(max(end - time.monotonic(), 0))
            if worker.is_alive():
                worker.kill()
                worker.join()


def _work(settings: Settings, host: str, shared: socket.socket, number: int) -> None:
    """What a worker does."""
    logs.configure(settings.log_level, worker=number)
    parent = cast("BaseProcess", multiprocessing.parent_process())
    if not parent.is_alive():
        return
    try:
        metrics.make_room(os.environ[metrics.SHARED_FOLDER])
        server = create_server(settings, host=host, parent=parent.sentinel)
    except Exception:
        if not parent.is_alive():
            return
        log.exception("this worker cannot start")
        sys.exit(_CANNOT_START)
    server.run(sockets=[shared])
    if not parent.is_alive():
        # It would have done that itself.
        shutil.rmtree(os.environ[metrics.SHARED_FOLDER], ignore_errors=True)


@contextmanager
def _told() -> Iterator["connection.Connection"]:
    """Something to be waited for, that is ready when we are told to stop."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def tell(number: int, _: object) -> None:
        writer.send(number)

    before = {number: signal.signal(number, tell) for number in stopping_signals()}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _folder_of_metrics() -> Iterator[str]:
    """The folder that the workers' metrics share; they find it in their environment."""
    folder = os.environ[metrics.SHARED_FOLDER] = tempfile.mkdtemp(prefix="broker-metrics-")
    try:
        yield folder
    finally:
        del os.environ[metrics.SHARED_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family, backlog=_BACKLOG) as shared:
        yield shared
