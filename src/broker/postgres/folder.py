"""Lock the data folder, and create or check the database files in it."""

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
    """Hold the lock of the folder, so that only one broker uses it at a time."""
    return file_lock.locked(
        data_dir / "broker.lock",
        lambda holder: FolderInUseError(
            f"Another broker (process {holder}) uses {data_dir}. "
            "Stop it first, or set BROKER_DATA_DIR to another folder."
        ),
    )


def ensure_data(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    """Create the database files, or check that the embedded PostgreSQL can read the existing ones."""
    if (data / "PG_VERSION").exists():
        _check_version(data)
    elif data.exists() and any(data.iterdir()):
        raise FolderForeignError(
            f"{data} is not empty and contains no PostgreSQL data (it has no PG_VERSION). "
            "Move it away, or set BROKER_DATA_DIR to another folder."
        )
    else:
        _initialize(data, programs, account, sync=sync)


def _check_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text().strip()
    if version != MAJOR:
        raise VersionMismatchError(
            f"PostgreSQL {version} wrote the data in {data}, but this broker contains PostgreSQL {MAJOR}. "
            f"Dump the data with pg_dump of version {version} and restore the dump into a new folder. To "
            "start without the data, set BROKER_DATA_DIR to another folder."
        )


def _initialize(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    account.check_name()
    # Create the files in a temporary folder and rename it when complete, because a killed initdb leaves
    # partial data.
    for leftover in data.parent.glob(f"{data.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{data.name}.", dir=data.parent))
    account.give(unfinished)
    # The locale C sorts the same on every machine. Other locales change with libc, which would break indexes.
    options = ["--username=broker", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
    # Only the owner can reach the socket, so no authentication is needed.
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
