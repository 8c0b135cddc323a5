"""The archive at a glance: when a record's task was submitted, and the attempts that failed.

Revision: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Both are in the record's `task`, which holds its payload, too, and may be very large. Older records have
# neither: they are left out where it is asked how long tasks have waited.
COLUMNS = {
    "submitted_at": "timestamptz",
    # Since when the task could have been done: when it was submitted, or its `not_before`.
    "waiting_since": "timestamptz",
}

# Of a million attempts a few have failed, and those are looked for.
FAILURES = """
create index work_archive_failures on work_archive (ended_at, work_id)
where outcome in ('failed', 'timed_out', 'lost') and tool_id is not null
"""


def upgrade() -> None:
    """Add the columns, which are empty at first and so take no time, and make the index."""
    for name, kind in COLUMNS.items():
        op.execute(f"alter table work_archive add column {name} {kind}")
    op.execute(FAILURES)


def downgrade() -> None:
    """As it was."""
    op.execute("drop index work_archive_failures")
    for name in COLUMNS:
        op.execute(f"alter table work_archive drop column {name}")
