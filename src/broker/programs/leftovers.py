"""Programs that a killed run of the tool has left running: found and ended before it takes work again."""

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

from broker.programs import groups

log = logging.getLogger(__name__)

# How exactly the start of a process is known: clocks are set while it runs.
_SAME_START_SECONDS = 2.0
# How long the kernel may take to end what was killed.
_KILLED_SECONDS = 2.0
_LOOK_SECONDS = 0.02


class Record(Struct):
    """Which process is at a piece of work.

    Args:
        pid: Its number, which is that of its process group.
        started: When it began, in seconds since 1970: numbers are used again.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The record of a running process; None where it has ended."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None where there is none, or half of one."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, path: Path) -> None:
        """Write it to a file."""
        path.write_bytes(msgspec.json.encode(self))

    def is_of(self, process: psutil.Process) -> bool:
        """Whether it is that of this process, and not of an earlier one with the same number."""
        apart = abs(process.create_time() - self.started)
        return bool(process.pid == self.pid and apart < _SAME_START_SECONDS)


def end(works: Mapping[Path, Record | None], grace_seconds: float) -> None:
    """End the processes that are still at work in scratch folders; return when they have ended.

    Args:
        works: The folders, each with the record of its process.
        grace_seconds: How long they have to end when they are told to; then they are killed.
    """
    found = _find(works)
    if not found:
        return
    log.warning("ending what an earlier run has left running: process groups %s", sorted(found))
    for group in found:
        groups.send(group, signal.SIGTERM, signal.SIGCONT)
    for group in _alive(found, grace_seconds):
        groups.send(group, signal.SIGKILL)
    _alive(found, _KILLED_SECONDS)


def _alive(found: set[int], within: float) -> list[int]:
    """The groups that have not ended in so many seconds; returns sooner where all have."""
    end = time.monotonic() + within
    while (alive := [group for group in found if groups.is_alive(group)]) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    return alive


def _find(works: Mapping[Path, Record | None]) -> set[int]:
    """The process groups of works: of the processes recorded, and of all that inherited their environment.

    Our own is none of them, nor are those that we were started by, though a program may have started us.
    """
    folders = {str(work) for work in works}
    records = [record for record in works.values() if record is not None]
    spared, found = {os.getpgrp()}, set()
    for parent in psutil.Process().parents():
        with contextlib.suppress(OSError):
            spared.add(os.getpgid(parent.pid))
    for process in psutil.process_iter():
        # What has ended just now, or is somebody else's, is not looked at.
        with contextlib.suppress(psutil.Error, OSError):
            recorded = any(record.is_of(process) for record in records)
            if recorded or process.environ().get("BROKER_SCRATCH") in folders:
                found.add(os.getpgid(process.pid))
    return found - spared
