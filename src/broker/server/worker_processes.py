"""Run several worker processes that serve one address.

Each is a complete service with its own connection pool, listener and waiting requests. They share the
listening socket, so an idle process accepts the next connection. They take turns at upkeep.
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

from broker.server.http_server import create_server, handling_stop
from broker.settings import Settings
from broker.telemetry import logs, metrics

log = structlog.get_logger(__name__)

_BACKLOG = 2048
# A worker process that ends so soon after its start would probably do so again.
_QUICK_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
# The exit status of a worker process that cannot start. uvicorn uses the same.
_CANNOT_START = 3
# The exit statuses of a worker process that stopped on request or received a signal.
_STOPPED = (0, -signal.SIGKILL, -signal.SIGTERM)
# The time after `shutdown_seconds` until a worker process is killed.
_GRACE_SECONDS = 3.0
# Forking a process with threads is not safe.
_spawn = multiprocessing.get_context("spawn")


class WorkerProcessesError(Exception):
    """The worker processes cannot start. The message says why."""


class WorkerProcesses:
    """Worker processes that serve one address while `run` runs. The settings must have a `database_url`."""

    def __init__(self, settings: Settings, *, host: str, port: int, count: int) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self._running: dict[int, tuple[SpawnProcess, float]] = {}
        self._replaced: set[int] = set()
        self._count = count
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP arrives, and replace processes that end.

        Raises:
            WorkerProcessesError: The processes cannot start.
        """
        with (
            _stop_signal() as stop_signal,
            _metrics_folder() as folder,
            _listening(self._host, self._port) as shared,
        ):
            try:
                while not self._stopping:
                    self._supervise(stop_signal, folder, shared)
            finally:
                self._stop()

    def _supervise(self, stop_signal: "connection.Connection", folder: str, shared: socket.socket) -> None:
        """Start missing processes, and wait until one has ended or a signal has arrived."""
        for number in range(1, self._count + 1):
            if number not in self._running:
                self._start(number, shared)
        ready = connection.wait([stop_signal, *(worker.sentinel for worker, _ in self._running.values())])
        self._stopping = stop_signal in ready
        if self._remove_ended(folder) and not self._stopping:
            # Pause before the next start, unless a signal arrives.
            self._stopping = stop_signal.poll(_PAUSE_SECONDS)

    def _start(self, number: int, shared: socket.socket) -> None:
        worker = _spawn.Process(
            target=_run_worker,
            args=(self._settings, self._host, shared, number),
            name=f"worker-{number}",
        )
        worker.start()
        self._running[number] = (worker, time.monotonic())

    def _remove_ended(self, folder: str) -> bool:
        """Remove the processes that have ended. Return whether one has ended soon after its start.

        Raises:
            WorkerProcessesError: One of the first processes cannot start.
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
            cannot_start = worker.exitcode == _CANNOT_START or (was_quick and worker.exitcode not in _STOPPED)
            if cannot_start and number not in self._replaced:
                raise WorkerProcessesError(
                    f"A worker process could not start. It ended with status {worker.exitcode}. Its log above"
                    " may have the reason."
                )
            self._replaced.add(number)
            log.error("worker process ended, starting another one", worker=number, status=worker.exitcode)
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


def _run_worker(settings: Settings, host: str, shared: socket.socket, number: int) -> None:
    """Serve in a worker process."""
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
        log.exception("worker process failed to start")
        sys.exit(_CANNOT_START)
    server.run(sockets=[shared])
    if not parent.is_alive():
        # Otherwise the parent process removes the folder.
        shutil.rmtree(os.environ[metrics.SHARED_FOLDER], ignore_errors=True)


@contextmanager
def _stop_signal() -> Iterator["connection.Connection"]:
    """Yield a connection that becomes readable when a stopping signal arrives."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    with handling_stop(lambda number, _: writer.send(number)):
        yield reader


@contextmanager
def _metrics_folder() -> Iterator[str]:
    """Create a folder for the metrics of all worker processes, and set it in their environment."""
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
