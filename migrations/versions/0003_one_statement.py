"""What lets each step of the life cycle be one statement.

Revision: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A statement sees what was committed when it began, and of the rows that it had to wait for the latest
# version. So the length of a lease belongs to the row that is locked to renew it: read from elsewhere, it
# would be that of the program before, where a tool registers anew in that moment.
LEASES = [
    "alter table tool_leases add column lease_seconds double precision",
    "update tool_leases l set lease_seconds = t.lease_seconds from tools t where t.id = l.tool_id",
    "alter table tool_leases alter column lease_seconds set not null",
    "alter table tools drop column lease_seconds",
]
LEASES_BACK = [
    "alter table tools add column lease_seconds double precision",
    "update tools t set lease_seconds = l.lease_seconds from tool_leases l where l.tool_id = t.id",
    "alter table tools alter column lease_seconds set not null",
    "alter table tool_leases drop column lease_seconds",
]

# Reports are rows of their own, which the lock on their work does not bring up to date. But a function that
# may write sees what is committed by the time it is called: after that lock, all of them.
TAKE_REPORTS = """
create function take_reports(work_ids uuid[]) returns table (of_work uuid, reports jsonb)
language plpgsql volatile as $$
    begin
        return query
        with taken as (
            delete from work_reports r where r.work_id = any(work_ids) returning r.*
        )
        select t.work_id,
               jsonb_agg(jsonb_build_object('id', t.id, 'at', t.at, 'progress', t.progress,
                                            'message', t.message, 'data', t.data)
                         order by t.seq)
        from taken t
        group by t.work_id;
    end
$$
"""


def upgrade() -> None:
    """Move the length of leases, and take reports all at once."""
    for statement in [*LEASES, TAKE_REPORTS]:
        op.execute(statement)


def downgrade() -> None:
    """As it was."""
    for statement in ["drop function take_reports", *LEASES_BACK]:
        op.execute(statement)
