"""Send signals to the process group of a program, and to other groups of its session.

A program is the leader of its own session. Its child processes are in that session, in its process group or
in another one. Shells with job control and `timeout`, for example, create such groups.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil


def send(group: int, *numbers: signal.Signals) -> None:
    """Send signals to a program's group and to the other groups of its session, as far as permitted."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        for pid in _others(group):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def is_alive(group: int) -> bool:
    """Return whether a program's group, or its session, has a process that has not ended.

    Zombies do not count: in a container there may be no process that reaps orphans.
    """
    return any(_runs_in(group, pid) for pid in psutil.pids())


def _others(group: int) -> Iterator[int]:
    """Yield the processes of a session that are in another group than its leader."""
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == group and os.getpgid(pid) != group:
                yield pid


def _runs_in(group: int, pid: int) -> bool:
    try:
        is_in = group in (os.getpgid(pid), os.getsid(pid))
        return is_in and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False
