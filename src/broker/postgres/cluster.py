"""Run the embedded PostgreSQL: lock its folder, start it, restart it after a crash, stop it."""

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Self
from urllib.parse import quote

from broker.postgres import folder
from broker.postgres.account import Account
from broker.postgres.errors import EmbeddedError
from broker.postgres.postmaster import SETTINGS, Postmaster, backoff, socket_file
from broker.postgres.programs import Programs

log = logging.getLogger("broker.postgres")

# A server that ends sooner than this counts as failed to start.
QUICK_SECONDS = 60.0
LOGGED_FAILURES = 10

# The longest path of a socket is 107 bytes on Linux, and 103 on macOS.
_MAX_SOCKET_BYTES = 103
_ENSURE_DATABASE = r"""
SELECT 'CREATE DATABASE broker OWNER broker'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'broker') \gexec
"""


class EmbeddedPostgres:
    """A private PostgreSQL server in `data_dir` that listens only on a Unix socket.

    If it ends while the broker runs, the broker restarts it. If it outlives a killed broker, the next start
    stops it first. Only one broker can use a folder at a time; the start of another one fails.

    Args:
        data_dir: The folder, created if missing. Under root, an unprivileged account must be able to enter
            it, because PostgreSQL refuses to run as root.
        durable: False for speed in tests. A power failure may then damage the data.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._durable = durable
        self._socket = self.data_dir / "run"
        self._lock = threading.Lock()  # one start or stop at a time
        self._stopping = threading.Event()
        self._held = contextlib.ExitStack()  # released by a stop
        self._postmaster: Postmaster | None = None
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Return the process id of the postmaster, or None if it does not run."""
        process = self._postmaster.process if self._postmaster is not None else None
        return process.pid if process is not None and process.returncode is None else None

    def url(self, database: str = "broker") -> str:
        """Return the URL of a database for SQLAlchemy. It does not change between `start` and `stop`."""
        return _url(self._socket, database)

    @classmethod
    def url_of_running(cls, data_dir: Path) -> str | None:
        """Return the URL of the server that another process runs on this folder, or None if there is none."""
        try:
            lines = (data_dir.expanduser().resolve() / "postgres" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # The fifth line is the folder of the socket. A starting server may not have written it yet.
        return _url(Path(lines[4]), "broker") if len(lines) > 4 and lines[4] else None

    def program(self, name: str) -> Path:
        """Return the path of a program of the started server, such as `psql` or `pgbench`."""
        if self._postmaster is None:
            raise EmbeddedError("The embedded PostgreSQL has not been started.")
        return self._postmaster.programs.path(name)

    def start(self) -> None:
        """Start the server unless it runs already, and return when it accepts connections.

        The first start creates the data within some seconds. Recovery after a crash may need minutes.

        Raises:
            EmbeddedError: The server cannot run. The message says why and what to do.
        """
        with self._lock:
            if self._watcher is not None and self._watcher.is_alive():
                return
            self._release()  # what a failed server left
            self._stopping.clear()
            try:
                self._open()
            except BaseException as error:
                self._release()
                if not isinstance(error, OSError):
                    raise
                raise EmbeddedError(
                    f"The embedded PostgreSQL cannot use {self.data_dir}: {error}. "
                    "Set BROKER_DATA_DIR to a folder that you may write to."
                ) from error

    def stop(self) -> None:
        """Stop the server: disconnect clients, and write everything to disk. A second call does nothing."""
        self._stopping.set()  # before the lock, to also end a start in progress
        with self._lock:
            self._stopping.set()
            self._release()

    def _open(self) -> None:
        data, logs = self.data_dir / "postgres", self.data_dir / "log"
        account = Account.for_data(data)
        account.check_reach(self.data_dir)
        if not self.data_dir.exists():
            account.make_parents(self.data_dir)
            account.make_private(self.data_dir)
        self._held.enter_context(folder.locked(self.data_dir))
        programs = Programs.find(account, self.data_dir)
        self._socket = self._make_socket_folder(account)
        account.make_private(logs)
        folder.ensure_data(data, programs, account, sync=self._durable)
        self._postmaster = Postmaster(programs, data, self._socket, logs, self._durable)
        self._postmaster.start(self._stopping)
        address = ("--host", self._socket, "--port", SETTINGS["port"], "--username", "broker", "postgres")
        options = ("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1")
        programs.run("psql", *options, *address, text=_ENSURE_DATABASE)
        self._watcher = threading.Thread(
            target=self._watch, args=(self._postmaster,), name="embedded-postgres", daemon=True
        )
        self._watcher.start()

    def _make_socket_folder(self, account: Account) -> Path:
        default = self.data_dir / "run"
        # A comma would separate two folders, in the setting of PostgreSQL and in the URL.
        if "," not in str(default) and len(os.fsencode(socket_file(default))) <= _MAX_SOCKET_BYTES:
            return account.make_private(default)
        short = Path(tempfile.mkdtemp(prefix="broker-"))
        self._held.callback(shutil.rmtree, short, ignore_errors=True)
        account.give(short)
        account.check_reach(short)
        return short

    def _release(self) -> None:
        """Release what a complete or partial start acquired, in reverse order."""
        postmaster, watcher = self._postmaster, self._watcher
        if postmaster is not None:
            postmaster.stop()
        if watcher is not None:
            # If the watcher restarts the server now, it notices the stop and stops that server again.
            watcher.join()
        self._postmaster = self._watcher = None
        self._held.close()

    def _watch(self, postmaster: Postmaster) -> None:
        """Restart the server whenever it ends by itself. This runs in its own thread.

        The number of restarts has no limit, because a full disk may have space again after hours.
        """
        failures = 0
        while postmaster.process is not None:
            started_at = time.monotonic()
            status = postmaster.process.wait()
            if self._stopping.is_set():
                return
            failures = failures + 1 if time.monotonic() - started_at < QUICK_SECONDS else 1
            # After many failures, log only some of them, because the log may be on the full disk.
            is_logged = failures <= LOGGED_FAILURES or failures % LOGGED_FAILURES == 0
            if is_logged:
                log.error(
                    "embedded PostgreSQL ended by itself, restarting: status=%d failures_in_a_row=%d log=%s",
                    *(status, failures, postmaster.log),
                )
            if self._stopping.wait(backoff(failures)):
                return
            try:
                postmaster.start(self._stopping)
            except (EmbeddedError, OSError) as error:
                if is_logged and not self._stopping.is_set():
                    log.error("embedded PostgreSQL did not start: %s", error)  # noqa: TRY400 - the message says it all
            else:
                log.warning("embedded PostgreSQL restarted")


def _url(socket: Path, database: str) -> str:
    host = quote(str(socket), safe="/")
    # Without these parameters, clients would read PG* variables, which are for another server.
    parameters = f"host={host}&port={SETTINGS['port']}&sslmode=disable&password="
    return f"postgresql+asyncpg://broker@/{quote(database, safe='')}?{parameters}"
