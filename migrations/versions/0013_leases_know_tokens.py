"""A lease carries the hash of its tool's token.

Revision: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Every step that a tool takes locks its lease, and many of them nothing else of the tool. A step therefore
# compares the token with the lease: a registration that commits while the step waits for the lock is seen.
COLUMN = "alter table tool_leases add column token_hash bytea"

# `tools.token_hash` stays the only column that a program writes. The database copies it, so that processes of
# the version before, which do not know the copy, keep it correct, too. Both triggers fire only when a tool
# registers or its key is revoked.
LEASE_BEGINS = """
create function copy_token_to_new_lease() returns trigger language plpgsql as $$
    begin
        new.token_hash := (select token_hash from tools where id = new.tool_id);
        return new;
    end
$$
"""
LEASE_BEGINS_TRIGGER = """
create trigger copy_token_to_new_lease before insert on tool_leases
for each row execute function copy_token_to_new_lease()
"""
COPY = """
create function copy_token_to_lease() returns trigger language plpgsql as $$
    begin
        update tool_leases set token_hash = new.token_hash where tool_id = new.id;
        return null;
    end
$$
"""
COPY_TRIGGER = """
create trigger copy_token_to_lease after update of token_hash on tools
for each row when (old.token_hash is distinct from new.token_hash)
execute function copy_token_to_lease()
"""

FILL = """
update tool_leases l
set token_hash = t.token_hash
from (select id, token_hash from tools order by id for no key update) t
where l.tool_id = t.id
"""


def upgrade() -> None:
    """Add the column, keep it up to date, and fill it."""
    # Tools are locked before leases, as everywhere. The copies are filled in once the triggers are there, so
    # that no registration in between is missed.
    for statement in (
        *(COPY, COPY_TRIGGER),
        COLUMN,
        *(LEASE_BEGINS, LEASE_BEGINS_TRIGGER),
        FILL,
    ):
        op.execute(statement)


def downgrade() -> None:
    """Drop the copy."""
    op.execute("drop trigger copy_token_to_lease on tools")
    op.execute("drop trigger copy_token_to_new_lease on tool_leases")
    op.execute("drop function copy_token_to_lease(), copy_token_to_new_lease()")
    op.execute("alter table tool_leases drop column token_hash")
