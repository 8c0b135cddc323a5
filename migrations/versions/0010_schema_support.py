"""Programs of an earlier version know whether they may go on.

Revision: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# A migration that takes away or changes what programs of before rely on says so here:
#     update schema_support set works_from = '0012'
# where 0012 is the earliest version whose programs do without. Every other one leaves it as it is, and is
# safe while they run: it adds only what they need not know of.
SCHEMA_SUPPORT = """
create table schema_support (
    id boolean primary key default true check (id),
    works_from text not null
)
"""


def upgrade() -> None:
    """Make the table; programs before this version look for no other than their own."""
    op.execute(SCHEMA_SUPPORT)
    op.execute("insert into schema_support (works_from) values ('0010')")


def downgrade() -> None:
    """As it was."""
    op.execute("drop table schema_support")
