"""The folder of a tool on this machine: a lock, so that it runs once, and a scratch folder for each work."""

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
from broker.programs import leftovers
from broker.programs.errors import CannotRunError
from broker.programs.leftovers import Record

log = logging.getLogger(__name__)

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class ToolFolder:
    """A tool's folder.

    Args:
        tool_id: Whose it is.
        root: The folder of all tools' folders; else one of this user's in the temporary folder.

    Raises:
        CannotRunError: It cannot be made, or somebody else may write to it.
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
            #: Where it is.
            self.path = root / tool_id
            self._works = self.path / "work"
            self._kept = self.path / "kept"
            self._make()
        except OSError as error:
            raise CannotRunError(
                f"No scratch folder can be made below {root}: {error.strerror}. Choose one with --scratch."
            ) from error

    def _make(self) -> None:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.path, self._works, self._kept):
            _make_private(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the tool: it runs once on this machine.

        Raises:
            CannotRunError: The tool runs already.
        """
        return file_lock.locked(
            self.path / "lock",
            lambda holder: CannotRunError(
                f"Tool {self._tool_id} runs on this machine already, as process {holder}. Stop that, or"
                " choose another --id; or, if it is another broker's, another --scratch folder."
            ),
        )

    def clean(self, grace_seconds: float) -> None:
        """End what a run that was killed has left running, and remove its scratch folders.

        Args:
            grace_seconds: How long programs have to end when they are told to; then they are killed.
        """
        # A program may have removed its folder; the record is beside it.
        works = {entry.with_suffix("") for entry in self._works.iterdir()}
        if works:
            leftovers.end({work: Record.read(_record_of(work)) for work in works}, grace_seconds)
        for entry in self._works.iterdir():
            _remove(entry)

    def for_work(self, work_id: UUID, payload: bytes) -> "WorkFolder":
        """A new scratch folder for a piece of work, with its payload.

        Raises:
            OSError: It cannot be made.
            CannotRunError: It would be in a folder that others may write to.
        """
        # What is in the temporary folder and was not used for days may have been cleared away.
        self._make()
        folder = WorkFolder(self._works / str(work_id), self._kept)
        try:
            folder.path.mkdir(mode=0o700, exist_ok=True)
            # With the newline that a file of text ends in, and `read` in a shell asks for.
            folder.payload.write_bytes(payload + b"\n")
        except OSError:
            folder.remove()
            raise
        return folder


class WorkFolder:
    """The scratch folder of a piece of work.

    Args:
        path: Where it is.
        kept: The folder of those that are kept.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        self.path = path
        #: The file with the payload.
        self.payload = path / "payload.json"
        #: Where it is when it was kept.
        self.kept = kept / path.name

    def record(self, pid: int) -> None:
        """Write down which process is at work, for the next run of the tool to find it."""
        # Beside the folder: what is in it is the program's. On a full disk its environment tells as much.
        with contextlib.suppress(OSError):
            if record := Record.of(pid):
                record.write(_record_of(self.path))

    def keep(self) -> None:
        """Put it where it is kept."""
        with contextlib.suppress(FileNotFoundError):  # its program has removed it
            self.path.rename(self.kept)
        _record_of(self.path).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        _remove(self.path)
        _record_of(self.path).unlink(missing_ok=True)


def _record_of(work: Path) -> Path:
    return work.with_name(f"{work.name}.json")


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else can enter; one that is there has to be ours.

    Raises:
        CannotRunError: It is somebody else's, or others may write to it.
        OSError: It cannot be made.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.stat(follow_symlinks=False)
        is_folder, is_ours = stat.S_ISDIR(found.st_mode), found.st_uid == os.geteuid()
        if not (is_folder and is_ours) or found.st_mode & _WRITABLE_BY_OTHERS:
            raise CannotRunError(
                f"{folder} is there already, and is no folder that user id {os.geteuid()} alone can write to."
                " Remove it, or choose another one with --scratch."
            ) from None


def _remove(path: Path) -> None:
    """Remove a file or a folder, whatever a program has done to it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        # Folders that were closed keep what is in them from being removed.
        for folder, names, _ in os.walk(_opened(path)):
            for name in names:
                _opened(Path(folder) / name)
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        log.warning("%s cannot be removed", path)


def _opened(folder: Path) -> Path:
    """A folder, which we may enter and change from now on."""
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            folder.chmod(0o700)
    return folder
