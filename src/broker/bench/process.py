"""Read the CPU time and memory of processes."""

import contextlib
import sys
import time

import psutil

# The lowest bits of the id of a clock: the CPU time of a process, as the scheduler counts it.
_SCHEDULER_CLOCK = 2


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children, also of those that ended; 0 without a process."""
    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                spent += _own_cpu_seconds(member)
    return spent


def _own_cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process, its ended threads and its ended children.

    Linux counts the times of /proc in steps of 10 ms. That is too coarse for the many processes of
    PostgreSQL, so read the clock that clock_getcpuclockid(3) names.
    """
    times = process.cpu_times()
    own, ended = times.user + times.system, times.children_user + times.children_system
    if sys.platform == "linux":
        try:
            own = time.clock_gettime(~process.pid << 3 | _SCHEDULER_CLOCK)
        except OSError as error:
            raise psutil.NoSuchProcess(process.pid) from error
    return float(own + ended)


def memory(pid: int) -> int:
    """Return the proportional set size (PSS) of a process in bytes."""
    size: int = psutil.Process(pid).memory_full_info().pss
    return size
