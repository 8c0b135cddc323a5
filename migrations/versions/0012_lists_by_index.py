"""Lists by index: the tasks of each state, and the records of each outcome.

Revision: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# A task that is available when it is submitted is in neither index, so a submit writes no more. An update of
# the state writes every index anyway, because some indexes have the state in their condition.
TASKS_ASSIGNED = "create index tasks_assigned on tasks (seq) where state = 'assigned'"
TASKS_SCHEDULED = "create index tasks_scheduled on tasks (seq) where state = 'scheduled'"
# Most records have succeeded, so a list finds them without an index.
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
