"""Files that commands write: whole, or not at all."""

import contextlib
import fcntl
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import click


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
    _may_write(path, replace=replace, option=option)
    path = path.resolve()
    begin = f".{path.name[:50]}."
    part = path.with_name(f"{begin}{uuid4().hex}.partial")
    _remove_left_behind(path.parent, begin)
    try:
        with open(part, "xb", opener=lambda name, how: os.open(name, how, mode)) as file:
            # For as long as we live: so whoever comes next can tell that it is ours still.
            with contextlib.suppress(OSError):  # not every network has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _may_write(path, replace=replace, option=option)
        part.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _remove_left_behind(folder: Path, begin: str) -> None:
    """Remove what was written under such a name by somebody who was killed meanwhile."""
    for left in folder.glob(f"{glob.escape(begin)}{'[0-9a-f]' * 32}.partial"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _may_write(path: Path, *, replace: bool, option: str) -> None:
    if path.exists():
        if not path.is_file():
            raise click.ClickException(f"{path} is no ordinary file.")
        if not replace:
            raise click.ClickException(f"{path} is there already; {option} replaces it.")
