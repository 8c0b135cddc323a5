"""A task keeps the trace that it was submitted in, for the tool that does it.

Revision: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Null, and so nothing is written anew and a process of before, which does not know of it, goes on. It holds
# what the headers said: traceparent and, after a space, tracestate (W3C Trace Context).
TRACE_CONTEXT = "alter table tasks add column trace_context text"


def upgrade() -> None:
    """Keep it."""
    op.execute(TRACE_CONTEXT)


def downgrade() -> None:
    """As it was."""
    op.execute("alter table tasks drop column trace_context")
