"""Choose the account that PostgreSQL runs as: that of this process, or an unprivileged one for root."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from broker.postgres.errors import EmbeddedError, FolderForeignError, FolderUnreachableError

_UNREACHABLE = 'for folder; do test -x "$folder" || { printf %s "$folder"; exit 1; }; done'


@dataclass(frozen=True, slots=True)
class Account:
    """An account that runs programs and owns folders; without ids, the account of this process."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_data(cls, data: Path) -> Self:
        """Choose the account for a data folder: for root its owner, postgres or nobody.

        The owner comes first, so that the data stay readable if somebody later adds an account `postgres`, or
        if root once starts the broker of a user.
        """
        if os.geteuid() != 0:
            return cls()
        for folder in (data, data.parent):
            if folder.exists() and (owner := folder.stat()).st_uid != 0:
                return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and there is no account 'postgres' or 'nobody' to run it as. "
            "Start the broker as an ordinary user, or set BROKER_DATABASE_URL."
        )

    def spawn(
        self, command: Sequence[str | Path], *, stdin: int = subprocess.DEVNULL, output: int
    ) -> subprocess.Popen[bytes]:
        """Start a program in its own session, so that Ctrl-C in the terminal reaches only the broker."""
        # PGPORT, PGDATA and the like belong to another server, and BROKER_ variables may contain a key.
        # LC_ALL gives English messages, some of which the broker recognizes.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "BROKER_"))
        }
        return subprocess.Popen(  # noqa: S603 - our own programs, no shell
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",  # the account may not be able to enter the current folder
            env=environment | {"LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )

    def run(self, command: Sequence[str | Path], text: str = "") -> tuple[int, str]:
        """Run a program with `text` as its input, and return its exit status and its output."""
        with self.spawn(command, stdin=subprocess.PIPE, output=subprocess.PIPE) as process:
            try:
                output, _ = process.communicate(text.encode())
            except BaseException:
                process.kill()
                raise
        return process.returncode, output.decode(errors="replace").strip()

    def make_private(self, folder: Path) -> Path:
        """Create a folder that only this account can enter, or check that an existing one is such a folder.

        Never change an existing folder. With BROKER_DATA_DIR=/var, that would change the owner of /var/log.
        """
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            status = folder.stat(follow_symlinks=False)
            owner = os.geteuid() if self.uid is None else self.uid
            if status.st_uid != owner or status.st_mode & 0o170077 != 0o040000:
                raise FolderForeignError(
                    f"{folder} exists, but is not a folder that only user id {owner} can enter (owner "
                    f"{status.st_uid}, mode {status.st_mode & 0o7777:o}). Set BROKER_DATA_DIR to a folder "
                    f"that nothing else uses. If this folder belongs to the broker, run chown {owner} and"
                    " chmod 700."
                ) from None
        else:
            self.give(folder)
        return folder

    def make_parents(self, folder: Path) -> None:
        """Create the missing parents of `folder`, such that the account can enter them."""
        missing = [parent for parent in folder.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            if self.uid is not None:
                parent.chmod(0o755)  # root's umask may be more restrictive

    def give(self, path: Path) -> None:
        """Make the account the owner of a new file or folder."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def check_name(self) -> None:
        """Check that the account has a user name, which initdb needs."""
        uid = os.geteuid() if self.uid is None else self.uid
        try:
            pwd.getpwuid(uid)
        except KeyError as error:
            raise EmbeddedError(
                f"PostgreSQL cannot create its data as user id {uid}, which has no user name on this machine."
                " Add a name to /etc/passwd, start the broker as another user, or set BROKER_DATABASE_URL."
            ) from error

    def check_reach(self, folder: Path) -> None:
        """Check that the account can enter `folder` and its parents, as far as they exist.

        Raises:
            FolderUnreachableError: The account cannot enter a folder. The message names it.
        """
        if self.uid is None:
            return
        # Only a program of the account can check this, because access lists and mounts may differ from the
        # mode bits.
        folders = [path for path in (*reversed(folder.parents), folder) if path.exists()]
        try:
            status, blocking = self.run(["/bin/sh", "-c", _UNREACHABLE, "sh", *folders])
        except PermissionError as error:
            raise EmbeddedError(
                f"PostgreSQL cannot run as root, and this process may not change to user id {self.uid}: "
                f"{error.strerror}. Start the broker as an ordinary user, or set BROKER_DATABASE_URL."
            ) from error
        if status != 0:
            raise FolderUnreachableError(
                f"PostgreSQL cannot run as root. It runs as user id {self.uid} instead, which cannot enter "
                f"{blocking}. Set BROKER_DATA_DIR to a folder outside it, for example /var/lib/broker."
            )
