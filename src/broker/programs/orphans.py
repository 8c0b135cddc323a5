"""Find and end processes that a killed run of the tool left running, before the tool accepts work."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec
import psutil
from msgspec import Struct

from broker.programs import process_groups

log = logging.getLogger(__name__)

# How far two start times of the same process may differ, because clocks are adjusted.
_SAME_START_SECONDS = 2.0
# The maximum time for the kernel to end killed processes.
_KILLED_SECONDS = 2.0
_CHECK_SECONDS = 0.02


class ProcessRecord(Struct):
    """A record of the process that does a job.

    Args:
        pid: The id of the process and of its process group.
        started: The time when it started, in seconds since 1970, because the system reuses ids.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the record of a running process, or None if it has ended."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a record from a file; None if the file has no complete record."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, path: Path) -> None:
        """Write the record to a file."""
        path.write_bytes(msgspec.json.encode(self))

    def is_of(self, process: psutil.Process) -> bool:
        """Return whether the record is of this process, not of an earlier one with the same id."""
        difference = abs(process.create_time() - self.started)
        return bool(process.pid == self.pid and difference < _SAME_START_SECONDS)


def end(works: Mapping[Path, ProcessRecord | None], grace_seconds: float) -> None:
    """End the processes that still run for these scratch folders, and wait until they have ended.

    Args:
        works: The folders, each with the record of its process.
        grace_seconds: How long processes may take to end after SIGTERM before they get SIGKILL.
    """
    groups = _find(works)
    if not groups:
        return
    log.warning("ending process groups that an earlier run left running: %s", sorted(groups))
    for group in groups:
        process_groups.send(group, signal.SIGTERM, signal.SIGCONT)
    for group in _alive(groups, grace_seconds):
        process_groups.send(group, signal.SIGKILL)
    _alive(groups, _KILLED_SECONDS)


def _alive(groups: set[int], within: float) -> list[int]:
    """Wait until all groups have ended, and return those that have not ended in time."""
    end = time.monotonic() + within
    while (alive := [group for group in groups if process_groups.is_alive(group)]) and time.monotonic() < end:
        time.sleep(_CHECK_SECONDS)
    return alive


def _find(works: Mapping[Path, ProcessRecord | None]) -> set[int]:
    """Return the process groups of the recorded processes, and of processes with their environment.

    Leave out the groups of this process and its parents, in case a program has started this tool.
    """
    folders = {str(work) for work in works}
    records = [record for record in works.values() if record is not None]
    spared, groups = {os.getpgrp()}, set()
    for parent in psutil.Process().parents():
        with contextlib.suppress(OSError):
            spared.add(os.getpgid(parent.pid))
    for process in psutil.process_iter():
        # A process may end meanwhile, or belong to another user.
        with contextlib.suppress(psutil.Error, OSError):
            recorded = any(record.is_of(process) for record in records)
            if recorded or process.environ().get("BROKER_SCRATCH") in folders:
                groups.add(os.getpgid(process.pid))
    return groups - spared
