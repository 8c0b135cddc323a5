"""Files that commands write: whole, or not at all."""

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

_JUST_NOW_SECONDS = 60.0


@contextlib.contextmanager
def whole_file(path: Path, *, replace: bool, option: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that is there only when the block has come to its end; until then it has another name.

    Args:
        path: The file.
        replace: Whether one that is there already is replaced.
        option: What says so on the command line.
        mode: Who may read and write it, as far as the umask lets them.

    Raises:
        click.ClickException: It cannot be written, or is there already.
    """
    try:
        _may_write(path, replace=replace, option=option)
        path = path.resolve()
        begin = f".{path.name[:50]}."
        _remove_left_behind(path.parent, begin)
        with _partial(path.parent, begin, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _may_write(path, replace=replace, option=option)
            Path(file.name).replace(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def _partial(folder: Path, begin: str, mode: int) -> Iterator[BinaryIO]:
    """A new file of a name that begins so; at the end of the block that name is gone."""
    part = folder / f"{begin}{uuid4().hex}.partial"
    try:
        with open(part, "xb", opener=lambda name, how: os.open(name, how, mode)) as file:
            # For as long as we live: so whoever comes next can tell that it is ours still.
            with contextlib.suppress(OSError):  # not every network has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _remove_left_behind(folder: Path, begin: str) -> None:
    """Remove what was written under such a name by somebody who was killed meanwhile."""
    for left in folder.glob(f"{glob.escape(begin)}{'[0-9a-f]' * 32}.partial"):
        with contextlib.suppress(OSError), open(left, "rb", opener=_without_waiting) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just begun may not have its lock yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > _JUST_NOW_SECONDS:
                left.unlink()


def _without_waiting(name: str, how: int) -> int:
    """Open what may be no file at all."""
    return os.open(name, how | os.O_NONBLOCK | os.O_NOFOLLOW)


def _may_write(path: Path, *, replace: bool, option: str) -> None:
    if path.exists():
        if not path.is_file():
            raise click.ClickException(f"{path} is no ordinary file.")
        if not replace:
            raise click.ClickException(f"{path} is there already; {option} replaces it.")
