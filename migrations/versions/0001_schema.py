"""The complete schema. The folder of the same name has its SQL, one file for each subject.

Revision: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FOLDER = Path(__file__).with_suffix("")

# In the order of their dependencies.
FILES = [
    "uuid7",
    "notifications",
    "tools",
    "tasks",
    "work",
    "archive",
    "keys",
    "assigner",
    "schema_support",
    "autovacuum",
]

DROP_TABLES = """
drop table schema_support, assigner, keys, retention_progress, ended_tasks, work_archive, work_reports, work,
    tasks, tool_leases, tools
"""
DROP_FUNCTIONS = """
drop function notify_keys, notify_accepted, notify_archive, create_archive_partition, notify_work_changed,
    notify_work, take_reports, notify_tasks_changed, notify_tasks, notify_leases, notify_tools_gone,
    notify_tools_changed, notify_tools, copy_token_to_new_lease, copy_token_to_lease, notify_ids,
    uuid7_floor, uuid7
"""


def upgrade() -> None:
    """Create everything."""
    for name in FILES:
        script = (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
        # asyncpg accepts one statement at a time. In these files, a blank line follows each statement.
        for statement in script.rstrip().removesuffix(";").split(";\n\n"):
            op.execute(statement)


def downgrade() -> None:
    """Drop everything."""
    op.execute(DROP_TABLES)
    op.execute(DROP_FUNCTIONS)
