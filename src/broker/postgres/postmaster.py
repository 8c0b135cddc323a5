"""Configure, start and stop the server process."""

import contextlib
import logging
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import psutil

from broker.postgres.errors import ProgramFailedError, StartError
from broker.postgres.programs import Programs

log = logging.getLogger("broker.postgres")

SETTINGS = {
    "listen_addresses": "",  # no port conflicts, and no access from other machines
    "port": "5432",  # part of the socket's name. PGPORT may belong to another server
    "unix_socket_permissions": "0700",
    "max_connections": "896",  # enough for the maximum of worker processes with their pools, and psql
    "shared_buffers": "128MB",  # enough for the busy tables, and leaves memory for other programs
    # The default, /dev/shm, has only 64 MB in containers, and systemd clears it when the user logs out.
    "dynamic_shared_memory_type": "mmap",
    "autovacuum_naptime": "10s",  # a queue replaces the rows of its tables within a minute
    "jit": "off",  # to compile the short statements would take longer than to run them
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log has a file per weekday, overwritten after a week, and no statements, so it stays small.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}  # for tests

START_SECONDS = 300.0  # recovery after a crash may read a few GB of WAL
FAST, IMMEDIATE = (signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0)
LAST_RESORT = (signal.SIGKILL, 5.0)


def backoff(failures: int) -> float:
    """Return the pause after a number of failures in a row, in seconds."""
    return min(0.1 * 2.0 ** (failures - 1), 5.0)


def socket_file(folder: Path) -> Path:
    """Return the path of the socket in a socket folder."""
    return folder / f".s.PGSQL.{SETTINGS['port']}"


@dataclass(slots=True)
class Postmaster:
    """Starts and stops the server process of the database files `data`, also repeatedly."""

    programs: Programs
    data: Path
    socket: Path
    log: Path
    durable: bool
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, stopping: threading.Event) -> None:
        """Start the server, and return when it accepts connections.

        Args:
            stopping: Cancels the start.

        Raises:
            StartError: The server ended, was not ready in time, or its start was cancelled.
        """
        deadline = time.monotonic() + START_SECONDS
        failures = 0
        while True:
            self._stop_previous()
            try:
                return self._start_once(stopping, deadline)
            except StartError as error:
                failures += 1
                # A statement may outlive its killed postmaster, and keeps the shared memory until it ends.
                held = "shared memory block" in str(error) and time.monotonic() < deadline
                if not held or stopping.wait(backoff(failures)):
                    raise
                if failures == 1:
                    log.warning("waiting for a statement of a killed PostgreSQL to end")

    def stop(self) -> None:
        """Stop the server: disconnect clients, and write all commits to disk.

        A server that recovers from a crash is stopped with SIGQUIT. In a fast shutdown, PostgreSQL 18 may
        then wait forever for its own processes.
        """
        process = self.process
        if process is None:
            return
        signals = (FAST, IMMEDIATE, LAST_RESORT) if self._accepts_connections() else (IMMEDIATE, LAST_RESORT)
        for signal_, patience in signals:
            process.send_signal(signal_)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return
            log.warning("embedded PostgreSQL did not stop within %.0f s after %s", patience, signal_.name)

    def _start_once(self, stopping: threading.Event, deadline: float) -> None:
        settings = SETTINGS | (DURABLE if self.durable else NOT_DURABLE)
        settings |= {"unix_socket_directories": str(self.socket), "log_directory": str(self.log)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        sizes = {path: path.stat().st_size for path in self.log.glob("*.log")}
        command = [str(self.programs.path("postgres")), "-D", str(self.data), *options]
        self.process = process = self.programs.account.spawn(command, output=subprocess.PIPE)
        # The output before the log collector runs goes to a pipe, which has space even if the disk is full.
        with cast("IO[bytes]", process.stdout) as early:
            while not stopping.wait(0.02):
                if process.poll() is not None:
                    # The collector also has the pipe open. When the pipe ends, the log files are complete.
                    output = early.read().decode(errors="replace")
                    raise StartError(f"PostgreSQL did not start:\n{self._last_lines(output, sizes)}")
                if self._is_ready(process.pid):
                    return
                if time.monotonic() > deadline:
                    self.stop()
                    raise StartError(
                        f"PostgreSQL was not ready after {START_SECONDS:.0f} s. See its log in {self.log}."
                    )
        self.stop()
        raise StartError("PostgreSQL was stopped while it started.")

    def _accepts_connections(self) -> bool:
        address = ("--host", self.socket, "--port", SETTINGS["port"], "--username", "broker")
        try:
            status, _ = self.programs.account.run([self.programs.path("pg_isready"), *address])
        except OSError:
            return True  # if an upgrade removed the program, assume yes, for a clean shutdown
        return status == 0

    def _is_ready(self, pid: int) -> bool:
        """Return whether the server has started, according to the eighth line of postmaster.pid."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _last_lines(self, output: str, sizes: dict[Path, int]) -> str:
        """Return the last lines of the output and of the log files, after their previous sizes."""
        for path in self.log.glob("*.log"):
            with path.open("rb") as file:
                file.seek(sizes.get(path, 0))
                output += file.read().decode(errors="replace")
        return "\n".join(output.splitlines()[-20:])

    def _stop_previous(self) -> None:
        """Stop a server whose broker was killed, and remove its lock files."""
        for lock in (self.data / "postmaster.pid", Path(f"{socket_file(self.socket)}.lock")):
            try:
                pid = int(lock.read_text().split(maxsplit=1)[0])
            except (FileNotFoundError, ValueError, IndexError):
                continue
            command = _command_line(pid)
            if command is None:
                continue  # there is no such process, and PostgreSQL detects the stale file itself
            if f"/postgres -D {self.data} " in command:
                log.warning("stopping a PostgreSQL whose broker was killed: pid=%d", pid)
                self._stop_orphan()
            else:
                # Another process or a zombie has the id now, so PostgreSQL would refuse to start.
                lock.unlink(missing_ok=True)

    def _stop_orphan(self) -> None:
        if self._accepts_connections():
            with contextlib.suppress(ProgramFailedError):
                self.programs.run("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-t", "60")
                return
        self.programs.run("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-t", "30")


def _command_line(pid: int) -> str | None:
    """Return the command line of a process, empty for a zombie, or None if there is no such process."""
    try:
        # Everybody can read the command line, unlike the cwd, which root in a container may not see.
        return " ".join([*psutil.Process(pid).cmdline(), ""])
    except (psutil.ZombieProcess, psutil.AccessDenied):
        return ""
    except (psutil.NoSuchProcess, ValueError):  # a single-user server writes its id as a negative number
        return None
