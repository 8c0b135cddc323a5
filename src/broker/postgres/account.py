"""Who Postgres runs as: ourselves or, when we are root, an account without privileges."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.postgres.errors import EmbeddedError, FolderForeignError, FolderUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_UNREACHABLE = 'for folder; do test -x "$folder" || { printf %s "$folder"; exit 1; }; done'


@dataclass(frozen=True, slots=True)
class Account:
    """An account to run programs as, and to give folders to; without ids it is ourselves."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_data(cls, data: Path) -> Account:
        """Choose the account for a data folder: for root its owner, postgres or nobody; else ourselves.

        The owner comes first, so that data stay readable when an account `postgres` turns up later, or
        when a user's broker is started by root for once.
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
            "Postgres refuses to run as root, and there is neither an account 'postgres' nor 'nobody' "
            "to run it as. Start the broker as an ordinary user, or set BROKER_DATABASE_URL."
        )

    def spawn(
        self, command: Sequence[str | Path], *, stdin: int = subprocess.DEVNULL, output: int
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: Ctrl-C in the terminal is for the broker, not for it."""
        # PGPORT, PGDATA and their like belong to another Postgres; messages are recognized in English.
        # Nor anything of ours: there may be a key in it.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "BROKER_"))
        }
        return subprocess.Popen(  # noqa: S603 - our own programs, no shell
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",  # the account may not enter ours
            env=environment | {"LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )

    def run(self, command: Sequence[str | Path], text: str = "") -> tuple[int, str]:
        """Run a program with `text` as its input until it ends.

        Returns:
            The exit status, and all it wrote.
        """
        with self.spawn(command, stdin=subprocess.PIPE, output=subprocess.PIPE) as process:
            try:
                output, _ = process.communicate(text.encode())
            except BaseException:
                process.kill()
                raise
        return process.returncode, output.decode(errors="replace").strip()

    def make_private(self, folder: Path) -> Path:
        """Make sure of a folder that only this account can enter.

        Never changes a folder that was there before: BROKER_DATA_DIR=/var must not give /var/log away.
        """
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            found, owner = folder.stat(follow_symlinks=False), os.geteuid() if self.uid is None else self.uid
            if found.st_uid != owner or found.st_mode & 0o170077 != 0o040000:
                raise FolderForeignError(
                    f"{folder} exists, but is not a folder that only user id {owner} can enter (owner "
                    f"{found.st_uid}, mode {found.st_mode & 0o7777:o}). Set BROKER_DATA_DIR to a folder that "
                    f"nothing else uses; if this one is the broker's: chown {owner} and chmod 700."
                ) from None
        else:
            self.give(folder)
        return folder

    def make_way(self, folder: Path) -> None:
        """Make the missing folders above `folder`, such that the account can enter them."""
        missing = [parent for parent in folder.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            if self.uid is not None:
                parent.chmod(0o755)  # whatever root's umask is

    def give(self, path: Path) -> None:
        """Hand over what we have just created."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def check_name(self) -> None:
        """Raise an error if the account has no user name; initdb needs one."""
        uid = os.geteuid() if self.uid is None else self.uid
        try:
            pwd.getpwuid(uid)
        except KeyError as error:
            raise EmbeddedError(
                f"PostgreSQL cannot create its data as user id {uid}, which has no name on this machine. Add"
                " one to /etc/passwd, start the broker as another user, or set BROKER_DATABASE_URL."
            ) from error

    def check_reach(self, folder: Path) -> None:
        """Raise an error that names the folder in the way, if the account can't enter `folder`.

        What doesn't exist yet is not in the way.
        """
        if self.uid is None:
            return
        # Asked of the account itself: mode bits alone don't tell what access lists and mounts allow.
        way = [step for step in (*reversed(folder.parents), folder) if step.exists()]
        try:
            status, blocking = self.run(["/bin/sh", "-c", _UNREACHABLE, "sh", *way])
        except PermissionError as error:
            raise EmbeddedError(
                f"Postgres can't run as root, and this root may not become user id {self.uid}: "
                f"{error.strerror}. Start the broker as an ordinary user, or set BROKER_DATABASE_URL."
            ) from error
        if status != 0:
            raise FolderUnreachableError(
                f"Postgres can't run as root, and user id {self.uid}, which it runs as instead, can't enter "
                f"{blocking}. Set BROKER_DATA_DIR to a folder outside of it (/var/lib/broker, for example)."
            )
