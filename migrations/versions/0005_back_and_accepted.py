"""A tool that is back is told to the upkeep; a task whose late result was accepted keeps its counts.

Revision: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The lease of a tool that was offline is not watched; from now on it is.
NOTIFY_TOOLS_CHANGED = """
create or replace function notify_tools_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.available and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows n join old_rows o using (id)
                   where o.offline and not n.offline) then
            perform notify_ids('broker_upkeep', '{tools}');
        end if;
        return null;
    end
$$
"""

# Where they are not those of its last record.
ACCEPTED = "alter table ended_tasks add column attempt integer, add column ended_at timestamptz"

# As in 0001.
WAS = """
create or replace function notify_tools_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.available and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        return null;
    end
$$
"""


def upgrade() -> None:
    """Tell of tools that are back; have room for counts."""
    op.execute(NOTIFY_TOOLS_CHANGED)
    op.execute(ACCEPTED)


def downgrade() -> None:
    """As it was."""
    op.execute("alter table ended_tasks drop column attempt, drop column ended_at")
    op.execute(WAS)
