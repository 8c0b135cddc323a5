"""Keys, the lists of what a key has submitted, and how much was reported on a work.

Revision: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# A key that was revoked stays in the table: that there ever was one is what closes the service.
# Its name may be given again: what belongs to a key belongs to the name.
KEYS = """
create table keys (
    id bigint primary key generated always as identity,
    name text collate "C" not null,
    roles text[] not null
        check (roles <@ array['submitter', 'tool', 'assigner', 'operator', 'admin'] and roles <> '{}'),
    -- SHA-256 of 32 bytes of chance: as hard to undo as those are to guess.
    hash bytea not null unique,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
)
"""
KEYS_IN_USE = "create unique index keys_in_use on keys (name) where revoked_at is null"

TASKS_OF_KEY = "create index tasks_of_key on tasks (created_by, seq) where created_by is not null"
ARCHIVE_OF_KEY = """
create index work_archive_of_key on work_archive (created_by, ended_at, work_id) where created_by is not null
"""

# All reports of a work become one value of the archive, and PostgreSQL makes none of 256 MiB or more.
REPORT_BYTES = "alter table work add column report_bytes bigint not null default 0"


def upgrade() -> None:
    """Have room for keys, and know the size of reports."""
    for statement in [KEYS, KEYS_IN_USE, TASKS_OF_KEY, ARCHIVE_OF_KEY, REPORT_BYTES]:
        op.execute(statement)


def downgrade() -> None:
    """As it was."""
    for name in ["work_archive_of_key", "tasks_of_key"]:
        op.execute(f"drop index {name}")
    op.execute("drop table keys")
    op.execute("alter table work drop column report_bytes")
