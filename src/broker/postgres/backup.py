"""Dumps: all that a database holds in one file, written and read in by PostgreSQL's own programs."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from broker.postgres.account import Account
from broker.postgres.connection_url import TLS_IS_REQUIRED, ConnectionUrl, without_password
from broker.postgres.errors import EmbeddedError
from broker.postgres.programs import MAJOR, Programs

Tell = Callable[[int], None]

_MAGIC = b"PGDMP"
_VERSION = re.compile(rb"^COPY \S+ \(version_num\) FROM stdin;\n(\S+)\n", re.MULTILINE)
# pg_restore sets this whatever the server is, and those before 17 do not know it.
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"
_HEAD_BYTES = 4096

_TROUBLE = {
    "pg_dump": "The dump cannot be written",
    "pg_restore": "The dump cannot be read; it may be damaged, or not whole",
    "psql": "The dump cannot be read in, and the database is as it was",
}

_LOOK_SECONDS = 0.1
_STOP_SECONDS = 5.0


class BackupError(Exception):
    """A dump cannot be written or read in; the message says why, in PostgreSQL's own words."""


class Place(NamedTuple):
    """A database, as PostgreSQL's programs are told of it.

    Args:
        url: Where it is, without the password: everybody on a machine can read what a program was given.
        environment: What else they need to know.
        requires_tls: Whether only an encrypted connection is good enough.
    """

    url: str
    environment: dict[str, str]
    requires_tls: bool = False

    @classmethod
    def of(cls, url: str, *, own: bool) -> "Place":
        """Find out what to tell them.

        Args:
            url: Where the database is.
            own: Whether it is the user's: then what the environment says of it (PGPASSFILE, PGSSLROOTCERT)
                is meant.

        Raises:
            ConnectionUrlError: The URL cannot be used.
            BackupError: It has a password that would be on a command line.
        """
        parsed = ConnectionUrl.parse(url)
        if parsed["sslpassword"]:
            raise BackupError("A backup cannot use sslpassword: use a key file without a password.")
        strangers = ("BROKER_",) if own else ("BROKER_", "PG")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        environment["LC_ALL"] = "C"
        # The broker does not read these, so they would lead to another database.
        for name in ("PGSERVICE", "PGHOSTADDR"):
            environment.pop(name, None)
        environment["PGUSER"] = parsed.user()
        # Of several hosts the one that takes writes is meant, as everywhere.
        environment["PGTARGETSESSIONATTRS"] = "read-write"
        if parsed.password:
            environment["PGPASSWORD"] = parsed.password
        mode = parsed["sslmode"] or environment.get("PGSSLMODE")
        return cls(without_password(url), environment, mode in TLS_IS_REQUIRED)


def write_backup(place: Place, file: Path, tell: Tell) -> None:
    """Write a dump; it has the database as it was in one moment, and holds nobody up.

    Args:
        place: The database.
        file: The file; what is in it is replaced.
        tell: Called now and then with how many bytes are written.

    Raises:
        BackupError: It could not be written whole.
    """
    # Extensions belong to a server, and to make them takes more rights than a broker needs.
    options = ("--format=custom", "--exclude-extension=*", "--no-password")
    # Not by way of its output: it would add its table of contents once more, in place of putting it right.
    with _program(place, "pg_dump", *options, f"--file={file}", f"--dbname={place.url}") as run:
        run.wait(lambda: tell(file.stat().st_size))


def backup_version(place: Place, file: BinaryIO) -> str:
    """The version of the schema in a dump.

    Raises:
        BackupError: It is no dump of a broker's database.
    """
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise BackupError("This is no file that `broker backup` or `pg_dump --format=custom` has written.")
    options = ("--data-only", "--table=alembic_version", "--file=-")
    with (
        _rewound(file),
        tempfile.TemporaryFile() as told,
        _program(place, "pg_restore", *options, stdin=file, stdout=told) as run,
    ):
        run.wait()
        told.seek(0)
        found = _VERSION.search(told.read())
    if found is None:
        raise BackupError("This is the dump of a database that is no broker's.")
    return found[1].decode()


def restore_backup(place: Place, file: BinaryIO, tell: Tell) -> None:
    """Read a dump in, whole or not at all, into a database that has nothing of the same names.

    Args:
        place: The database.
        file: An ordinary file.
        tell: Called now and then with how many bytes are read in.

    Raises:
        BackupError: It could not be read in; the database is as it was.
    """
    # Who owns what there, and who may do what, is for that database to say.
    options = ("--no-owner", "--no-privileges", "--file=-")
    quietly = ("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null")
    with (
        _rewound(file),
        _program(place, "psql", *quietly, f"--dbname={place.url}", stdin=subprocess.PIPE) as database,
        _program(place, "pg_restore", *options, stdin=file, stdout=subprocess.PIPE) as script,
    ):
        try:
            database.input.write(b"begin;\n")
            database.input.write(script.output.read(_HEAD_BYTES).replace(_UNKNOWN_BEFORE_17, b"", 1))
            while portion := script.output.read(1 << 20):
                database.input.write(portion)
                tell(_position(file))
            # Only what was whole is kept: without this, the end of its input ends the transaction.
            script.wait()
            database.input.write(b"commit;\n")
            database.input.close()
        except BrokenPipeError:
            # It says itself why it has ended.
            pass
        database.wait()


class _Run:
    """A program of PostgreSQL that runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], said: BinaryIO) -> None:
        self._name = name
        self._process = process
        self._said = said

    @property
    def input(self) -> BinaryIO:
        """What it reads."""
        assert self._process.stdin is not None  # noqa: S101 - it was given a pipe
        return self._process.stdin  # type: ignore[return-value]

    @property
    def output(self) -> BinaryIO:
        """What it writes."""
        assert self._process.stdout is not None  # noqa: S101 - it was given a pipe
        return self._process.stdout  # type: ignore[return-value]

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait for its end.

        Args:
            look: Called now and then meanwhile.

        Raises:
            BackupError: It failed.
        """
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_LOOK_SECONDS)
                break
            look()
        if status:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip()
            raise BackupError(f"{_TROUBLE[self._name]}: {said or f'{self._name} ended with status {status}'}")


@contextlib.contextmanager
def _program(
    place: Place,
    name: str,
    *arguments: str,
    stdin: BinaryIO | int = subprocess.DEVNULL,
    stdout: BinaryIO | int = subprocess.DEVNULL,
) -> Iterator[_Run]:
    """Run one of PostgreSQL's programs; it ends with the block at the latest."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs, no shell
            [_folder(needs_tls=place.requires_tls) / name, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=said,
            env=place.environment,
            # Ctrl-C is for us, who end it then.
            start_new_session=True,
        )
        try:
            yield _Run(name, process, said)
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
    """Where the programs are: those that come with the package, unless there are newer ones on the PATH.

    Args:
        needs_tls: Whether they must be able to encrypt, which those that come with the package cannot.
    """
    try:
        ours = None if needs_tls else Programs.find(Account(), Path(tempfile.gettempdir())).folder
    except EmbeddedError:
        ours = None
    theirs = shutil.which("pg_dump")
    if theirs is not None and (ours is None or _major(theirs) > int(MAJOR)):
        return Path(theirs).parent
    if ours is None:
        missing = "PostgreSQL's programs are missing"
        if needs_tls:
            missing = "sslmode asks for TLS, which the programs that come with the broker cannot speak"
        raise BackupError(f"{missing}: install a package with pg_dump and pg_restore.")
    return ours


def _major(program: str) -> int:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    found = re.search(r"\b(\d+)\.?\w*(?: |$)", told.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def _rewound(file: BinaryIO) -> Iterator[None]:
    """Have a program read the file from its first byte."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    yield


def _position(file: BinaryIO) -> int:
    """Where a program is in the file that it was given: it has the place in common with us."""
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)
