"""Lists by index: the tasks of each state, and the records of each outcome.

Revision: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# A task that is submitted and at once available is in neither: a submit writes nothing more. Every update of
# the state writes all indexes anew anyway, since others have it in their condition.
TASKS_ASSIGNED = "create index tasks_assigned on tasks (seq) where state = 'assigned'"
TASKS_SCHEDULED = "create index tasks_scheduled on tasks (seq) where state = 'scheduled'"
# Most records have succeeded. To look for these among the others takes no index.
ARCHIVE_BY_OUTCOME = """
create index work_archive_by_outcome on work_archive (outcome, ended_at, work_id)
where outcome <> 'succeeded'
"""


def upgrade() -> None:
    """Create the indexes."""
    for statement in (TASKS_ASSIGNED, TASKS_SCHEDULED, ARCHIVE_BY_OUTCOME):
        op.execute(statement)


def downgrade() -> None:
    """Drop the indexes."""
    op.execute("drop index work_archive_by_outcome, tasks_scheduled, tasks_assigned")
