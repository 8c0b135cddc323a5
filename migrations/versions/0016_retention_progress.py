"""Retention keeps its progress in the database.

Revision: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# Before a partition of the archive is dropped, the ended tasks that point to its records are forgotten, batch
# by batch. Each batch commits how far it got: a timeout loses one batch, a restart none.
RETENTION_PROGRESS = """
create table retention_progress (
    id boolean primary key default true check (id),
    partition text not null,
    -- The end of its newest record: if another one is added, the partition is read from its start.
    newest timestamptz,
    after uuid not null
)
"""


def upgrade() -> None:
    """Make the table; its one row comes with the first batch."""
    op.execute(RETENTION_PROGRESS)


def downgrade() -> None:
    """Drop the table."""
    op.execute("drop table retention_progress")
