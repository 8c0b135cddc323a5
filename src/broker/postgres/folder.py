"""The data folder: the lock that makes it ours, and the database files in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from broker import file_lock
from broker.postgres.errors import FolderForeignError, FolderInUseError, VersionMismatchError
from broker.postgres.programs import MAJOR

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from broker.postgres.account import Account
    from broker.postgres.programs import Programs


def locked(data_dir: Path) -> AbstractContextManager[None]:
    """Hold the lock of the folder: one broker per folder."""
    return file_lock.locked(
        data_dir / "broker.file_lock",
        lambda holder: FolderInUseError(
            f"Another broker (process {holder}) is running on {data_dir}. "
            "Stop it first, or set BROKER_DATA_DIR to another folder."
        ),
    )


def ensure_data(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    """Make sure that the database files are there, and that our Postgres can read them."""
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
    found = (data / "PG_VERSION").read_text().strip()
    if found != MAJOR:
        raise VersionMismatchError(
            f"The data in {data} were written by PostgreSQL {found}; this broker brings PostgreSQL {MAJOR}. "
            f"Dump them with the pg_dump of version {found} and restore the dump into a new folder, "
            "or set BROKER_DATA_DIR to another folder to begin afresh."
        )


def _initialize(data: Path, programs: Programs, account: Account, *, sync: bool) -> None:
    account.check_name()
    # Made beside its place and moved there complete: being killed midway leaves nothing that looks like data.
    for leftover in data.parent.glob(f"{data.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{data.name}.", dir=data.parent))
    account.give(making)
    # The locale C sorts the same on every machine, for ever; a newer libc would silently break text indexes.
    options = ["--username=broker", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
    # Whoever gets through to the socket may enter: only the owner gets through.
    options += ["--auth-local=trust", "--auth-host=reject"] + ([] if sync else ["--no-sync"])
    try:
        programs.run("initdb", "--pgdata", making, *options)
        making.rename(data)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    if sync:
        parent = os.open(data.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
