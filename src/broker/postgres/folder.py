"""The data folder: its lock, and the database files in it."""

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from broker import file_lock
from broker.postgres.account import Account
from broker.postgres.errors import FolderForeignError, FolderInUseError, VersionMismatchError
from broker.postgres.programs import MAJOR, Programs


def locked(data_dir: Path) -> AbstractContextManager[None]:
    """Hold the lock of the folder, so that one broker uses it at a time."""
    return file_lock.locked(
        data_dir / "broker.lock",
        lambda holder: FolderInUseError(
            f"Another broker (process {holder}) is running on {data_dir}. "
            "Stop it first, or set BROKER_DATA_DIR to another folder."
        ),
    )


def ensure_data(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    """Create the database files, or check that the bundled Postgres can read the existing ones."""
    if (data / "PG_VERSION").exists():
        _check_version(data)
    elif data.exists() and any(data.iterdir()):
        raise FolderForeignError(
            f"{data} is not empty and holds no Postgres data (it has no PG_VERSION). "
            "Move it away, or set BROKER_DATA_DIR to another folder."
        )
    else:
        _initialize(data, programs, account, sync=sync)


def _check_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text().strip()
    if version != MAJOR:
        raise VersionMismatchError(
            f"The data in {data} were written by PostgreSQL {version}; this broker brings PostgreSQL "
            f"{MAJOR}. Dump them with the pg_dump of version {version} and restore the dump into a new "
            "folder, or set BROKER_DATA_DIR to another folder to begin afresh."
        )


def _initialize(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    account.check_name()
    # Created in a temporary folder, and renamed when complete: a killed initdb leaves no partial data.
    for leftover in data.parent.glob(f"{data.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{data.name}.", dir=data.parent))
    account.give(unfinished)
    # The locale C sorts the same on every machine. Other locales change with libc, which breaks indexes.
    options = ["--username=broker", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
    # Only the owner can reach the socket, so everybody who reaches it may connect.
    options += ["--auth-local=trust", "--auth-host=reject"] + ([] if sync else ["--no-sync"])
    try:
        programs.run("initdb", "--pgdata", unfinished, *options)
        unfinished.rename(data)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if sync:
        parent = os.open(data.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
