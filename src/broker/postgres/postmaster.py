"""The server process: how it is set up, started, known to be ready, and stopped."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from broker.postgres.errors import ProgramFailedError, StartError

if TYPE_CHECKING:
    import threading

    from broker.postgres.programs import Programs

log = logging.getLogger("broker.postgres")

SETTINGS = {
    "listen_addresses": "",  # the socket only: no port to clash over, nothing to reach from outside
    "port": "5432",  # names the socket's file, and must not come from another Postgres' PGPORT
    "unix_socket_permissions": "0700",
    "max_connections": "896",  # as many workers as may be, with pools each, and room for psql
    "shared_buffers": "128MB",  # the hot tables fit; a laboratory's machine has other things to do
    # Not /dev/shm: systemd empties that when the user logs out, and containers get 64 MB of it.
    "dynamic_shared_memory_type": "mmap",
    "autovacuum_naptime": "10s",  # a queue turns over its tables within a minute
    "jit": "off",  # statements are short: compiling would take longer than running
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A file per weekday, emptied when its day comes again, and no statement texts: the log stays small.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
FLEETING = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}  # for tests

START_SECONDS = 300.0  # recovery after a crash may have a few GB of log to read again
FAST, IMMEDIATE = (signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0)
LAST_RESORT = (signal.SIGKILL, 5.0)


def backoff(failures: int) -> float:
    """The seconds to wait after so many failures in a row."""
    return min(0.1 * 2.0 ** (failures - 1), 5.0)


def socket_file(folder: Path) -> Path:
    """The socket in a socket folder."""
    return folder / f".s.PGSQL.{SETTINGS['port']}"


@dataclass(slots=True)
class Postmaster:
    """The server process over the database files `data`; one after the other, when it has to start again."""

    programs: Programs
    data: Path
    socket: Path
    log: Path
    durable: bool
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, stopping: threading.Event) -> None:
        """Start it, and return when it accepts connections; `stopping` calls it off.

        Raises:
            StartError: It ended instead, or wasn't ready in time, or was called off.
        """
        deadline = time.monotonic() + START_SECONDS
        failures = 0
        while True:
            self._clear_the_way()
            try:
                return self._start_once(stopping, deadline)
            except StartError as error:
                failures += 1
                # A statement that outlives its killed postmaster keeps its memory until it ends.
                held = "shared memory block" in str(error) and time.monotonic() < deadline
                if not held or stopping.wait(backoff(failures)):
                    raise
                if failures == 1:
                    log.warning("A killed Postgres still has a statement running; waiting for its end")

    def stop(self) -> None:
        """Stop it fast: clients are disconnected, and what was committed is on disk.

        While it recovers from a crash there is nothing to be put in order first, and PostgreSQL 18 may then
        wait for ever for its own processes when it is to stop fast: so it stops immediately.
        """
        process = self.process
        if process is None:
            return
        ways = (FAST, IMMEDIATE, LAST_RESORT) if self._accepts_connections() else (IMMEDIATE, LAST_RESORT)
        for how, patience in ways:
            process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return
            log.warning("Postgres did not stop within %.0f s of %s", patience, how.name)

    def _start_once(self, stopping: threading.Event, deadline: float) -> None:
        settings = SETTINGS | (DURABLE if self.durable else FLEETING)
        settings |= {"unix_socket_directories": str(self.socket), "log_directory": str(self.log)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        logged = {path: path.stat().st_size for path in self.log.glob("*.log")}
        command = [str(self.programs.path("postgres")), "-D", str(self.data), *options]
        self.process = process = self.programs.account.spawn(command, output=subprocess.PIPE)
        # What it says before its log collector runs; a pipe has room for that on a full disk, too.
        with cast("IO[bytes]", process.stdout) as early:
            while not stopping.wait(0.02):
                if process.poll() is not None:
                    # The collector holds the pipe as well: at the end of this its files are complete.
                    said = early.read().decode(errors="replace")
                    raise StartError(f"Postgres did not start:\n{self._last_lines(said, logged)}")
                if self._is_ready(process.pid):
                    return
                if time.monotonic() > deadline:
                    self.stop()
                    raise StartError(f"Postgres was not ready after {START_SECONDS:.0f} s; see {self.log}")
        self.stop()
        raise StartError("Postgres was stopped while it started")

    def _accepts_connections(self) -> bool:
        where = ("--host", self.socket, "--port", SETTINGS["port"], "--username", "broker")
        try:
            status, _ = self.programs.account.run([self.programs.path("pg_isready"), *where])
        except OSError:
            return True  # an upgrade took the program away: it is not to keep us from stopping, in order
        return status == 0

    def _is_ready(self, pid: int) -> bool:
        """Whether it has started: it says so in the eighth line of its file, and does not take it back."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _last_lines(self, said: str, logged: dict[Path, int]) -> str:
        """The end of what it said and logged, given how long the log files were before."""
        for path in self.log.glob("*.log"):
            with path.open("rb") as file:
                file.seek(logged.get(path, 0))
                said += file.read().decode(errors="replace")
        return "\n".join(said.splitlines()[-20:])

    def _clear_the_way(self) -> None:
        """Stop a Postgres that outlived its broker, and remove lock files that would fool ours."""
        for lock in (self.data / "postmaster.pid", Path(f"{socket_file(self.socket)}.lock")):
            try:
                pid = int(lock.read_text().split(maxsplit=1)[0])
            except (FileNotFoundError, ValueError, IndexError):
                continue
            command = _command_line(pid)
            if command is None:
                continue  # no such process: Postgres sees for itself that the file is stale
            if f"/postgres -D {self.data} " in command:
                log.warning("Postgres (process %d) has outlived its broker; stopping it", pid)
                self._stop_orphan()
            else:
                # The number is another process' by now, or a dead one's: Postgres would refuse to start.
                lock.unlink(missing_ok=True)

    def _stop_orphan(self) -> None:
        if self._accepts_connections():
            with contextlib.suppress(ProgramFailedError):
                self.programs.run("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-t", "60")
                return
        self.programs.run("pg_ctl", "stop", "-D", self.data, "-m", "immediate", "-t", "30")


def _command_line(pid: int) -> str | None:
    """What a process was started as; None if there is no such process, blank for one that is dead."""
    if Path("/proc/self").exists():
        try:
            # Readable for everyone, unlike its cwd, which root in a container may not see.
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return None
    ps = subprocess.run(  # noqa: S603 - macOS has no /proc
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return f"{ps.stdout.strip()} " if ps.returncode == 0 else None
