"""Write a complete file, or none."""

import contextlib
import fcntl
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import click

_NEW_SECONDS = 60.0


@contextlib.contextmanager
def atomic_file(path: Path, *, replace: bool, option: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a temporary file that gets its final name if the block ends without an error.

    Args:
        path: The file.
        replace: Whether to replace an existing file.
        option: The command line option that sets `replace`.
        mode: The file's permissions, before the umask.
    """
    try:
        _may_write(path, replace=replace, option=option)
        path = path.resolve()
        prefix = f".{path.name[:50]}."
        _remove_leftovers(path.parent, prefix)
        with _partial(path.parent, prefix, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _may_write(path, replace=replace, option=option)
            Path(file.name).replace(path)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror}.") from error


@contextlib.contextmanager
def _partial(folder: Path, prefix: str, mode: int) -> Iterator[BinaryIO]:
    """Yield a new temporary file, and remove it after the block unless it was renamed."""
    part = folder / f"{prefix}{uuid4().hex}.partial"
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            # The lock shows later commands that this one still writes the file.
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove the temporary files of commands that were killed."""
    for leftover in folder.glob(f"{glob.escape(prefix)}{'[0-9a-f]' * 32}.partial"):
        with contextlib.suppress(OSError), open(leftover, "rb", opener=_without_waiting) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A new file may not have its lock yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > _NEW_SECONDS:
                leftover.unlink()


def _without_waiting(name: str, flags: int) -> int:
    """Open a path without waiting if it is a pipe, and without following a link."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _may_write(path: Path, *, replace: bool, option: str) -> None:
    if path.exists():
        if not path.is_file():
            raise click.ClickException(f"{path} is not a regular file. Choose another name.")
        if not replace:
            raise click.ClickException(f"{path} already exists. Use {option} to replace it.")
