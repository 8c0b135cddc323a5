"""Process groups: a program, and what it has started."""

import contextlib
import os
import signal

import psutil


def send(group: int, *numbers: signal.Signals) -> None:
    """Send signals to a process group, as far as it is there and we may."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def is_alive(group: int) -> bool:
    """Whether a process group has a process that has not ended.

    In a container nobody may ask how an orphan has ended: it stays, as a zombie, and so does its group.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return any(_runs_in(group, pid) for pid in psutil.pids())


def _runs_in(group: int, pid: int) -> bool:
    try:
        return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False
