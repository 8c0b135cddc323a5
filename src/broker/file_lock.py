"""A lock on a file: one program at a time, and whoever comes second is told which one it is."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, taken: Callable[[str], Exception]) -> Iterator[None]:
    """Hold a lock for as long as the block runs.

    The kernel lets go of it with our process, however that ends. Python opens files such that child processes
    don't inherit them, so what we have started and left behind never holds it.

    Args:
        path: The file; it is made if it is not there.
        taken: Makes the error to raise where another process holds it, given that one's number.
    """
    # The folder may belong to an account without privileges: follow no link of its making.
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken(os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
