"""JSON values that the broker only hands on are kept as text.

Revision: 0018
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# jsonb is made to be searched, and only `needs` and `skills` are. PostgreSQL needs eleven seconds and 200 MB
# to turn 32 MiB of small numbers into it, and half a second to check that they are JSON. Two such values do
# not fit into one jsonb, so a task that had them could not be archived.
VALUES = {
    "tasks": ["payload", "result"],
    "work_reports": ["data"],
    "work_archive": ["task", "tool", "result", "late"],
}

# A record is read with its reports as they are here: so they are written as the API writes them.
AT = """to_char({at} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# For the reports that are there already.
AT_BEFORE = AT.format(at="cast(report ->> 'at' as timestamptz)")
REPORTS_AS_WRITTEN = f"""
create function reports_as_written(reports jsonb) returns json
language sql immutable as $$
    select coalesce(json_agg(row_to_json(written) order by place), '[]')
    from jsonb_array_elements(reports) with ordinality as element (report, place)
    cross join lateral (
        select report -> 'id' as id, {AT_BEFORE} as at, report -> 'progress' as progress,
               report -> 'message' as message, report -> 'data' as data
    ) written
$$
"""

# Reports are rows of their own, which the lock on their work does not bring up to date. But a function that
# may write sees what is committed by the time it is called: after that lock, all of them.
TAKE_REPORTS = f"""
create function take_reports(work_ids uuid[]) returns table (of_work uuid, reports json)
language plpgsql volatile as $$
    begin
        return query
        with taken as (
            delete from work_reports r where r.work_id = any(work_ids) returning r.*
        )
        select t.work_id, json_agg(row_to_json(written) order by t.seq)
        from taken t
        cross join lateral (
            select t.id, {AT.format(at="t.at")} as at, t.progress, t.message, t.data
        ) written
        group by t.work_id;
    end
$$
"""
TAKE_REPORTS_BEFORE = """
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
    """Rewrite the columns, and make reports in the form in which they are read."""
    op.execute(REPORTS_AS_WRITTEN)
    retype("json", reports="reports_as_written(reports)")
    op.execute("drop function reports_as_written")
    op.execute("drop function take_reports")
    op.execute(TAKE_REPORTS)
    # Programs of before read these values as jsonb.
    op.execute("update schema_support set works_from = '0017'")


def downgrade() -> None:
    """As it was."""
    op.execute("update schema_support set works_from = '0010'")
    retype("jsonb", reports="cast(reports as jsonb)")
    op.execute("drop function take_reports")
    op.execute(TAKE_REPORTS_BEFORE)


def retype(kind: str, *, reports: str) -> None:
    """Change the type of all columns, each table in one pass.

    Args:
        kind: The type.
        reports: SQL for an archive record's reports in that type.
    """
    for table, columns in VALUES.items():
        changes = [f"alter column {name} type {kind} using cast({name} as {kind})" for name in columns]
        if table == "work_archive":
            changes.append(f"alter column reports type {kind} using {reports}")
        op.execute(f"alter table {table} {', '.join(changes)}")
