"""A made-up next version of the project: its sources plus one migration, for tests of upgrades."""

import shutil
from pathlib import Path

from tests import ROOT

_MIGRATION = """
from alembic import op

revision = {revision!r}
down_revision = {before!r}


def upgrade() -> None:
    for statement in {statements!r}:
        op.execute(statement)
"""


def migrations_in(checkout: Path) -> list[Path]:
    """Return the migrations of a checkout, oldest first."""
    return sorted((checkout / "migrations" / "versions").glob("[0-9]*.py"))


def copy_sources(folder: Path, *names: str) -> None:
    """Copy these folders of the checkout, with their bytecode, to a folder that becomes a checkout."""
    for name in names:
        # Python renames the temporary files of bytecode, so they may vanish during the copy.
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"), dirs_exist_ok=True
        )


def add_migration(checkout: Path, *statements: str) -> str:
    """Add a migration that executes these statements, and return its revision."""
    newest = migrations_in(checkout)[-1]
    before = newest.name.partition("_")[0]
    revision = f"{int(before) + 1:04}"
    migration = _MIGRATION.format(revision=revision, before=before, statements=statements)
    newest.with_name(f"{revision}_made_up.py").write_text(migration)
    return revision
