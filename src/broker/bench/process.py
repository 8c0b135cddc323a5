"""Read the CPU time and memory of processes from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its running children; 0 if there is no such process."""
    return sum(_own_cpu_seconds(process) for process in [pid, *children(pid)])


def children(pid: int) -> list[int]:
    """Return the process ids of the children of a process."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if (fields := _stat(number)) and int(fields[_PARENT]) == pid]


def memory(pid: int) -> int:
    """Return the proportional set size (PSS) of a process in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _own_cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    """Return the fields after the name, which may contain anything; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
