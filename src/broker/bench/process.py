"""Read the CPU time and memory of processes."""

import contextlib

import psutil


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its running children; 0 if there is no such process."""
    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                spent += times.user + times.system
    return spent


def memory(pid: int) -> int:
    """Return the proportional set size (PSS) of a process in bytes."""
    size: int = psutil.Process(pid).memory_full_info().pss
    return size
