"""Lock a file, so that only one process runs. A second process gets the process id of the first."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, taken: Callable[[str], Exception]) -> Iterator[None]:
    """Hold a lock for the duration of a block.

    The kernel releases the lock when the process ends, however it ends. Child processes never hold it,
    because they do not inherit files that Python opens.

    Args:
        path: The file. The function creates it if it does not exist.
        taken: Returns the error to raise if another process holds the lock, for the id of that process.
    """
    # The folder may belong to an unprivileged account, which could make the file a link.
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
