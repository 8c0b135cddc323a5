"""What processes cost, as Linux tells it under /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and of its children that run now; 0 where there is no such process."""
    return sum(_own_cpu_seconds(each) for each in [pid, *children(pid)])


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if (fields := _stat(number)) and int(fields[_PARENT]) == pid]


def memory(pid: int) -> int:
    """The memory of a process in bytes, its share of what it shares (PSS) included."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _own_cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold anything; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
