"""Rows know how many bytes they take in a response.

Revision: 0015
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# PostgreSQL knows how many bytes it stores of a value, which is compressed: 12 MiB of `1e99` made a page of
# 245 MiB. To measure the value it prints it, which takes as long as to send it. So a row is measured once, by
# the statement that writes it. Rows from before, and of programs from before, have null, and are estimated.
TABLES = ["tasks", "tools", "work_archive"]


def upgrade() -> None:
    """Add the columns, which are empty at first and so take no time."""
    for table in TABLES:
        op.execute(f"alter table {table} add column bytes bigint")


def downgrade() -> None:
    """Drop the columns."""
    for table in TABLES:
        op.execute(f"alter table {table} drop column bytes")
