"""The folder of a tool on this machine: a lock against a second run, and a scratch folder for each job."""

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import UUID

from broker import file_lock
from broker.programs import orphans
from broker.programs.errors import CannotRunError
from broker.programs.orphans import ProcessRecord

log = logging.getLogger(__name__)

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class ToolFolder:
    """A tool's folder.

    Args:
        root: The folder of all tools' folders. Default: a folder of this user in the temporary folder.

    Raises:
        CannotRunError: The folder cannot be created, or other users may write to it.
    """

    def __init__(self, tool_id: str, root: Path | None = None) -> None:
        self._tool_id = tool_id
        try:
            if root is None:
                root = Path(tempfile.gettempdir()).absolute() / f"broker-{os.geteuid()}"
                _make_private(root)
            else:
                root = root.absolute()
                root.mkdir(parents=True, exist_ok=True)
            self.path = root / tool_id
            self._works = self.path / "work"
            self._kept = self.path / "kept"
            self._make()
        except OSError as error:
            raise CannotRunError(
                f"Cannot create a scratch folder in {root}: {error.strerror}. Choose another one with"
                " --scratch."
            ) from error

    def _make(self) -> None:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.path, self._works, self._kept):
            _make_private(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the tool; raise CannotRunError if the tool runs on this machine already."""
        return file_lock.locked(
            self.path / "lock",
            lambda holder: CannotRunError(
                f"Tool {self._tool_id} already runs on this machine, as process {holder}. Stop it, or choose"
                " another --id. If it works for another broker, choose another --scratch folder."
            ),
        )

    def clean(self, grace_seconds: float) -> None:
        """End processes that a killed run left running (see `orphans.end`), and remove its folders."""
        # A program may have removed its folder, but not the record next to it.
        works = {entry.with_suffix("") for entry in self._works.iterdir()}
        if works:
            orphans.end({work: ProcessRecord.read(_record_of(work)) for work in works}, grace_seconds)
        for entry in self._works.iterdir():
            _remove(entry)

    def for_work(self, work_id: UUID, payload: bytes) -> "WorkFolder":
        """Create a scratch folder with the payload of a job; raise OSError or CannotRunError on failure."""
        # The system may have removed folders from the temporary folder after some days.
        self._make()
        folder = WorkFolder(self._works / str(work_id), self._kept)
        try:
            folder.path.mkdir(mode=0o700, exist_ok=True)
            # Text files end in a newline, which `read` in a shell needs.
            folder.payload.write_bytes(payload + b"\n")
        except OSError:
            folder.remove()
            raise
        return folder


class WorkFolder:
    """The scratch folder of a job, which may move to the folder of kept ones."""

    def __init__(self, path: Path, kept: Path) -> None:
        self.path = path
        #: The file with the payload.
        self.payload = path / "payload.json"
        #: The path of the folder after `keep`.
        self.kept = kept / path.name

    def record(self, pid: int) -> None:
        """Record which process does the job, so that the next run of the tool finds it."""
        # The record is outside of the folder, which belongs to the program. If the disk is full, there is no
        # record, and the next run finds the process by its environment.
        with contextlib.suppress(OSError):
            if record := ProcessRecord.of(pid):
                record.write(_record_of(self.path))

    def keep(self) -> None:
        """Move the folder to the kept ones."""
        with contextlib.suppress(FileNotFoundError):  # the program may have removed it
            self.path.rename(self.kept)
        _record_of(self.path).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with its contents."""
        _remove(self.path)
        _record_of(self.path).unlink(missing_ok=True)


def _record_of(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can enter.

    Raises:
        CannotRunError: The folder exists, but belongs to another user, or other users may write to it.
        OSError: The folder cannot be created.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.stat(follow_symlinks=False)
        is_folder, is_ours = stat.S_ISDIR(status.st_mode), status.st_uid == os.geteuid()
        if not (is_folder and is_ours) or status.st_mode & _WRITABLE_BY_OTHERS:
            raise CannotRunError(
                f"{folder} exists, but is not a folder that only user id {os.geteuid()} can write to. Remove"
                " it, or choose another one with --scratch."
            ) from None


def _remove(path: Path) -> None:
    """Remove a file or a folder, even if a program has changed its permissions."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        # The contents of folders without permissions cannot be removed.
        for folder, names, _ in os.walk(_grant_access(path)):
            for name in names:
                _grant_access(Path(folder) / name)
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        log.warning("cannot remove %s", path)


def _grant_access(folder: Path) -> Path:
    """Give this user all permissions on a folder, and return it."""
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            folder.chmod(0o700)
    return folder
