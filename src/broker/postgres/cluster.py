"""The running cluster: takes its folder, starts Postgres, watches over it, stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from broker.postgres import folder
from broker.postgres.account import Account
from broker.postgres.errors import EmbeddedError
from broker.postgres.postmaster import SETTINGS, Postmaster, backoff, socket_file
from broker.postgres.programs import Programs

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("broker.postgres")

QUICK_SECONDS = 60.0  # an end sooner than this after the start counts as a failure to start
TOLD_FAILURES = 10

# Of a socket's path; 107 on Linux, 103 on macOS.
_MAX_SOCKET_BYTES = 103
_ENSURE_DATABASE = r"""
SELECT 'CREATE DATABASE broker OWNER broker'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'broker') \gexec
"""


class EmbeddedPostgres:
    """A private Postgres under `data_dir`, reached through a Unix socket only.

    When it dies while we run, it is started again; when we are killed and it lives on, the next start
    takes over. One broker per folder: another one's start is refused.

    Args:
        data_dir: Its folder, made if missing. As root, it must lie where an account without privileges
            can enter, as Postgres refuses to run as root.
        durable: False trades surviving a power failure for speed; for tests.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._durable = durable
        self._socket = self.data_dir / "run"
        self._turn = threading.Lock()  # one start or stop at a time
        self._stopping = threading.Event()
        self._held = contextlib.ExitStack()  # what a stop gives back
        self._postmaster: Postmaster | None = None
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None when none of ours is running."""
        process = self._postmaster.process if self._postmaster is not None else None
        return process.pid if process is not None and process.returncode is None else None

    def url(self, database: str = "broker") -> str:
        """The URL of a database for SQLAlchemy; from `start` to `stop` it stays the same."""
        return _url(self._socket, database)

    @classmethod
    def url_of_running(cls, data_dir: Path) -> str | None:
        """The URL of the Postgres that another process runs on this folder; None: there is none."""
        try:
            told = (data_dir.expanduser().resolve() / "postgres" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # The fifth line is the folder of its socket; while it starts, there may be fewer.
        return _url(Path(told[4]), "broker") if len(told) > 4 and told[4] else None

    def program(self, name: str) -> Path:
        """Where one of Postgres' own programs is, `psql` or `pgbench` for example; it has been started."""
        if self._postmaster is None:
            raise EmbeddedError("The embedded Postgres has not been started.")
        return self._postmaster.programs.path(name)

    def start(self) -> None:
        """Start Postgres and return when it accepts connections; if it runs already, nothing happens.

        The first start makes the data, which takes some seconds. Recovery after a crash may take minutes.

        Raises:
            EmbeddedError: It can't run; the message says why and what to do.
        """
        with self._turn:
            if self._watcher is not None and self._watcher.is_alive():
                return
            self._release()  # what a Postgres that was given up has left
            self._stopping.clear()
            try:
                self._open()
            except OSError as error:
                self._release()
                raise EmbeddedError(
                    f"The embedded Postgres can't use {self.data_dir}: {error}. "
                    "Set BROKER_DATA_DIR to a folder that you may write to."
                ) from error
            except BaseException:
                self._release()
                raise

    def stop(self) -> None:
        """Stop Postgres: clients are disconnected, everything is on disk. Stopping twice is fine."""
        self._stopping.set()  # before our turn, so that a start under way ends, too
        with self._turn:
            self._stopping.set()
            self._release()

    def _open(self) -> None:
        data, logs = self.data_dir / "postgres", self.data_dir / "log"
        account = Account.for_data(data)
        account.check_reach(self.data_dir)
        if not self.data_dir.exists():
            account.make_way(self.data_dir)
            account.make_private(self.data_dir)
        self._held.enter_context(folder.locked(self.data_dir))
        programs = Programs.find(account, self.data_dir)
        self._socket = self._make_socket_folder(account)
        account.make_private(logs)
        folder.ensure_data(data, programs, account, sync=self._durable)
        self._postmaster = Postmaster(programs, data, self._socket, logs, self._durable)
        self._postmaster.start(self._stopping)
        where = ("--host", self._socket, "--port", SETTINGS["port"], "--username", "broker", "postgres")
        options = ("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1")
        programs.run("psql", *options, *where, text=_ENSURE_DATABASE)
        self._watcher = threading.Thread(
            target=self._watch, args=(self._postmaster,), name="embedded-postgres", daemon=True
        )
        self._watcher.start()

    def _make_socket_folder(self, account: Account) -> Path:
        usual = self.data_dir / "run"
        # A comma would separate two folders, in Postgres' setting as in the URL.
        if "," not in str(usual) and len(os.fsencode(socket_file(usual))) <= _MAX_SOCKET_BYTES:
            return account.make_private(usual)
        short = Path(tempfile.mkdtemp(prefix="broker-"))
        self._held.callback(shutil.rmtree, short, ignore_errors=True)
        account.give(short)
        account.check_reach(short)
        return short

    def _release(self) -> None:
        """Give back everything that a start has taken, as far as it got, the last first."""
        postmaster, watcher = self._postmaster, self._watcher
        if postmaster is not None:
            postmaster.stop()
        if watcher is not None:
            # Were it just starting Postgres again, it sees that we are stopping, and stops that itself.
            watcher.join()
        self._postmaster = self._watcher = None
        self._held.close()

    def _watch(self, postmaster: Postmaster) -> None:
        """Start Postgres again whenever it ends without being asked; runs in a thread of its own.

        However often: a disk that is full all night has room again in the morning.
        """
        failures = 0
        while postmaster.process is not None:
            since = time.monotonic()
            status = postmaster.process.wait()
            if self._stopping.is_set():
                return
            failures = failures + 1 if time.monotonic() - since < QUICK_SECONDS else 1
            # From then on only now and then: the log may lie on the very disk that is full.
            telling = failures <= TOLD_FAILURES or failures % TOLD_FAILURES == 0
            if telling:
                log.error(
                    "Postgres ended by itself (status %d), %d in a row; starting it again. See %s",
                    *(status, failures, postmaster.log),
                )
            if self._stopping.wait(backoff(failures)):
                return
            try:
                postmaster.start(self._stopping)
            except (EmbeddedError, OSError) as error:
                if telling and not self._stopping.is_set():
                    log.error("Postgres did not start: %s", error)  # noqa: TRY400 - the message says it all
            else:
                log.warning("Postgres is running again")


def _url(socket: Path, database: str) -> str:
    host = quote(str(socket), safe="/")
    # What it does not say, clients read from PG* variables, which are meant for another server.
    said = f"host={host}&port={SETTINGS['port']}&sslmode=disable&password="
    return f"postgresql+asyncpg://broker@/{quote(database, safe='')}?{said}"
