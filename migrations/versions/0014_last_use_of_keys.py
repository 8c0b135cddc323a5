"""A key knows when it was last used.

Revision: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.execute("alter table keys add column last_used_at timestamptz")


def downgrade() -> None:
    """Drop the column."""
    op.execute("alter table keys drop column last_used_at")
