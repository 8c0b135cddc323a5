"""What time does, and what late results do: hints for the upkeep, news of accepted results, the assigner.

Revision: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The upkeep looks by itself every 30 s, and is told of what comes due before that, and of which kind it is.
NOTIFY_TASKS = """
create or replace function notify_tasks() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where state = 'available') then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows where due_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{tasks}');
        end if;
        return null;
    end
$$
"""
NOTIFY_TASKS_CHANGED = """
create or replace function notify_tasks_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.state = 'available' and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows where due_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{tasks}');
        end if;
        perform notify_ids('broker_task', array(
            select n.id from new_rows n join old_rows o using (id)
            where n.state = 'failed' and o.state <> 'failed'));
        return null;
    end
$$
"""
NOTIFY_WORK = """
create or replace function notify_work() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select distinct tool_id from new_rows));
        if exists (select from new_rows where deadline_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{work}');
        end if;
        return null;
    end
$$
"""
NOTIFY_WORK_CHANGED = """
create or replace function notify_work_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', array(
            select cast(n.id as text) from new_rows n join old_rows o using (id)
            where n.version <> o.version));
        if exists (select from new_rows where deadline_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{work}');
        end if;
        return null;
    end
$$
"""

# Renewals set no lease_seconds, and so fire nothing; nor can they make a lease end before the upkeep looks,
# which is at least once in the shortest lease.
NOTIFY_LEASES = """
create function notify_leases() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_upkeep', '{tools}');
        return null;
    end
$$
"""
LEASES_TRIGGER = """
create trigger notify_leases after insert or update of lease_seconds on tool_leases
for each statement execute function notify_leases()
"""

# A late result that is accepted ends the task.
NOTIFY_ACCEPTED = """
create function notify_accepted() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_task', array(
            select n.task_id from new_rows n join old_rows o using (work_id)
            where n.outcome = 'succeeded' and o.outcome <> 'succeeded'));
        return null;
    end
$$
"""
ACCEPTED_TRIGGER = """
create trigger notify_accepted after update on work_archive
referencing old table as old_rows new table as new_rows
for each statement execute function notify_accepted()
"""

# When an assigner last asked: one row.
ASSIGNER = """
create table assigner (
    id boolean primary key default true check (id),
    seen_at timestamptz not null
)
"""

# As in 0001.
WAS = [
    """
create or replace function notify_tasks() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where state = 'available') then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows where state = 'scheduled') then
            perform notify_ids('broker_upkeep', '{*}');
        end if;
        return null;
    end
$$
""",
    """
create or replace function notify_tasks_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.state = 'available' and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows n join old_rows o using (id)
                   where n.state = 'scheduled' and n.due_at is distinct from o.due_at) then
            perform notify_ids('broker_upkeep', '{*}');
        end if;
        perform notify_ids('broker_task', array(
            select n.id from new_rows n join old_rows o using (id)
            where n.state = 'failed' and o.state <> 'failed'));
        return null;
    end
$$
""",
    """
create or replace function notify_work() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select distinct tool_id from new_rows));
        return null;
    end
$$
""",
    """
create or replace function notify_work_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', array(
            select cast(n.id as text) from new_rows n join old_rows o using (id)
            where n.version <> o.version));
        return null;
    end
$$
""",
]

UP = [
    *(NOTIFY_TASKS, NOTIFY_TASKS_CHANGED, NOTIFY_WORK, NOTIFY_WORK_CHANGED),
    *(NOTIFY_LEASES, LEASES_TRIGGER, NOTIFY_ACCEPTED, ACCEPTED_TRIGGER, ASSIGNER),
]
DOWN = [
    "drop table assigner",
    "drop trigger notify_accepted on work_archive",
    "drop trigger notify_leases on tool_leases",
    "drop function notify_accepted, notify_leases",
    *WAS,
]


def upgrade() -> None:
    """Tell the upkeep what comes due, and whoever waits what was accepted."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """As it was."""
    for statement in DOWN:
        op.execute(statement)
