"""Work knows how many reports it has, and each report how large it is in the archive.

Revision: 0017
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Neither column makes PostgreSQL rewrite its table, and processes of the version before can ignore both.
REPORT_COUNT = "alter table work add column report_count integer not null default 0"
COUNT_REPORTS = """
update work w
set report_count = r.reports
from (select work_id, cast(count(*) as integer) as reports from work_reports group by work_id) r
where r.work_id = w.id
"""
REPORT_SIZE = "alter table work_reports add column size integer"


def upgrade() -> None:
    """Count reports, and keep their sizes."""
    for statement in (REPORT_COUNT, COUNT_REPORTS, REPORT_SIZE):
        op.execute(statement)


def downgrade() -> None:
    """Drop the columns."""
    op.execute("alter table work_reports drop column size")
    op.execute("alter table work drop column report_count")
