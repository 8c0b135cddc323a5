"""Dump a database into a file and restore it, with the programs of PostgreSQL."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from broker.postgres.account import Account
from broker.postgres.connection_url import TLS_IS_REQUIRED, ConnectionUrl, without_password
from broker.postgres.errors import EmbeddedError
from broker.postgres.programs import MAJOR, Programs

ShowProgress = Callable[[int], None]

_MAGIC = b"PGDMP"
_VERSION = re.compile(rb"^COPY \S+ \(version_num\) FROM stdin;\n(\S+)\n", re.MULTILINE)
# pg_restore writes this for every server; PostgreSQL before 17 does not know it.
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"
_HEAD_BYTES = 4096

_TROUBLE = {
    "pg_dump": "Cannot write the dump",
    "pg_restore": "Cannot read the dump, which may be damaged or incomplete",
    "psql": "Cannot restore the dump, and the database is unchanged",
}

_PROGRESS_SECONDS = 0.1
_STOP_SECONDS = 5.0


class BackupError(Exception):
    """A dump cannot be written or restored. The message contains that of PostgreSQL."""


class DatabaseTarget(NamedTuple):
    """The database that the programs of PostgreSQL connect to.

    Args:
        url: The URL without the password, because every user of a machine can read the arguments of a
        program. environment: The environment of the programs, with the password. requires_tls: Whether the
        connection must be encrypted.
    """

    url: str
    environment: dict[str, str]
    requires_tls: bool = False

    @classmethod
    def of(cls, url: str, *, own: bool) -> "DatabaseTarget":
        """Create the target of a URL. Variables such as PGPASSFILE apply only to a user's `own` database.

        Raises:
            ConnectionUrlError: The URL is not valid.
            BackupError: The URL has the password of a key file, which would be visible on the command line.
        """
        parsed = ConnectionUrl.parse(url)
        if parsed["sslpassword"]:
            raise BackupError("A backup cannot use sslpassword. Use a key file without a password.")
        unrelated = ("BROKER_",) if own else ("BROKER_", "PG")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unrelated)}
        environment["LC_ALL"] = "C"
        # The broker ignores these, which could lead to another database.
        for name in ("PGSERVICE", "PGHOSTADDR"):
            environment.pop(name, None)
        environment["PGUSER"] = parsed.user()
        # If there are several hosts, use the one that accepts writes, as the broker does.
        environment["PGTARGETSESSIONATTRS"] = "read-write"
        if parsed.password:
            environment["PGPASSWORD"] = parsed.password
        mode = parsed["sslmode"] or environment.get("PGSSLMODE")
        return cls(without_password(url), environment, mode in TLS_IS_REQUIRED)


def write_backup(target: DatabaseTarget, file: Path, show_progress: ShowProgress) -> None:
    """Write a consistent dump of the database, without blocking other connections.

    Args:
        target: The database.
        file: The file. Its content is replaced.
        show_progress: Called regularly with the number of written bytes.

    Raises:
        BackupError: The dump could not be written.
    """
    # Extensions belong to the server. To create them, one needs more privileges than a broker has.
    options = ("--format=custom", "--exclude-extension=*", "--no-password")
    # In a file, unlike in a pipe, pg_dump can go back to complete its table of contents.
    with _program(target, "pg_dump", *options, f"--file={file}", f"--dbname={target.url}") as run:
        run.wait(lambda: show_progress(file.stat().st_size))


def backup_version(target: DatabaseTarget, file: BinaryIO) -> str:
    """Return the schema version of a dump.

    Raises:
        BackupError: The file is not a dump of a broker's database.
    """
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise BackupError("This is not a file from `broker backup` or `pg_dump --format=custom`.")
    _rewind(file)
    options = ("--data-only", "--table=alembic_version", "--file=-")
    with (
        tempfile.TemporaryFile() as output,
        _program(target, "pg_restore", *options, stdin=file, stdout=output) as run,
    ):
        run.wait()
        output.seek(0)
        version = _VERSION.search(output.read())
    if version is None:
        raise BackupError("This dump is not from the database of a broker.")
    return version[1].decode()


def restore_backup(target: DatabaseTarget, file: BinaryIO, show_progress: ShowProgress) -> None:
    """Restore a dump, in one transaction, into a database that has no tables of the same names.

    Args:
        target: The database.
        file: The dump. It must be seekable.
        show_progress: Called regularly with the number of restored bytes.

    Raises:
        BackupError: The dump could not be restored. The database is unchanged.
    """
    _rewind(file)
    # The new database keeps its own owner and privileges.
    options = ("--no-owner", "--no-privileges", "--file=-")
    psql_options = ("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null")
    with (
        _program(target, "psql", *psql_options, f"--dbname={target.url}", stdin=subprocess.PIPE) as database,
        _program(target, "pg_restore", *options, stdin=file, stdout=subprocess.PIPE) as script,
    ):
        try:
            database.input.write(b"begin;\n")
            database.input.write(script.output.read(_HEAD_BYTES).replace(_UNKNOWN_BEFORE_17, b"", 1))
            while portion := script.output.read(1 << 20):
                database.input.write(portion)
                # pg_restore shares the position in the file with this process.
                show_progress(os.lseek(file.fileno(), 0, os.SEEK_CUR))
            # Commit only after pg_restore has succeeded. If its input ends without a commit, psql rolls back.
            script.wait()
            database.input.write(b"commit;\n")
            database.input.close()
        except BrokenPipeError:
            # psql has ended. Its own message says why.
            pass
        database.wait()


class _Run(NamedTuple):
    """A running program of PostgreSQL, and the file with its error messages."""

    name: str
    process: subprocess.Popen[bytes]
    errors: BinaryIO

    @property
    def input(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdin)

    @property
    def output(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdout)

    def wait(self, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Wait for the end of the program; call `while_waiting` meanwhile; raise BackupError if it failed."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(_PROGRESS_SECONDS)
                break
            while_waiting()
        if status:
            self.errors.seek(0)
            errors = self.errors.read().decode(errors="replace").strip()
            raise BackupError(f"{_TROUBLE[self.name]}: {errors or f'{self.name} ended with status {status}'}")


@contextlib.contextmanager
def _program(
    target: DatabaseTarget,
    name: str,
    *arguments: str,
    stdin: BinaryIO | int = subprocess.DEVNULL,
    stdout: BinaryIO | int = subprocess.DEVNULL,
) -> Iterator[_Run]:
    """Run a program of PostgreSQL, and end it after the block."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs, no shell
            [_folder(needs_tls=target.requires_tls) / name, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
            env=target.environment,
            # Ctrl-C must reach only this process, which then ends the program.
            start_new_session=True,
        )
        try:
            yield _Run(name, process, errors)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _folder(*, needs_tls: bool) -> Path:
    """Return the folder of the bundled programs, which lack TLS, or of newer ones on the PATH."""
    try:
        bundled = None if needs_tls else Programs.find(Account(), Path(tempfile.gettempdir())).folder
    except EmbeddedError:
        bundled = None
    installed = shutil.which("pg_dump")
    if installed is not None and (bundled is None or _major(installed) > int(MAJOR)):
        return Path(installed).parent
    if bundled is None:
        problem = "The programs of PostgreSQL are missing"
        if needs_tls:
            problem = "sslmode requires TLS, which the bundled programs of PostgreSQL do not support"
        raise BackupError(f"{problem}. Install a package with pg_dump and pg_restore.")
    return bundled


def _major(program: str) -> int:
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.search(r"\b(\d+)\.?\w*(?: |$)", run.stdout, re.MULTILINE)
    return int(version[1]) if version else 0


def _rewind(file: BinaryIO) -> None:
    """Let a program read the file from the first byte, even if this process has read a part of it."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)
