"""Who watches everything is told of what the other channels do not tell.

Revision: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Of work that changes or ends, tasks that fail or end and tools that get work or are gone, whoever waits for
# them is told by channels of their own. The rest is told here: of which kind, and the ids of that kind, or a
# star where those would not fit. What is written in large sets is a star as well: whoever watches has to read
# anew then, and nobody pays for ids that are too many to be told.
NOTIFY_EVENT = """
create function notify_event(kind text, ids text[]) returns void language plpgsql as $$
    declare
        payload text := array_to_string(ids, ',');
    begin
        if cardinality(ids) > 0 then
            perform pg_notify('broker_events',
                kind || ' ' || case when octet_length(payload) <= 7000 then payload else '*' end);
        end if;
    exception when others then
        raise warning 'no notification on broker_events: %', sqlerrm;
    end
$$
"""

NOTIFY_TASKS = """
create or replace function notify_tasks() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where state = 'available') then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows where due_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{tasks}');
        end if;
        perform notify_event('task', case when (select count(*) from new_rows) > 50 then '{*}'
                                          else array(select id from new_rows) end);
        return null;
    end
$$
"""
# That a task is assigned is told with its work.
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
        if exists (select from new_rows where state <> 'assigned') then
            perform notify_event('task', array(select id from new_rows where state <> 'assigned'));
        end if;
        return null;
    end
$$
"""
NOTIFY_TOOLS = """
create or replace function notify_tools() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where available) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        perform notify_event('tool', array(select id from new_rows));
        return null;
    end
$$
"""
# A load changes with work alone, which tells of it, and then nothing else does.
NOTIFY_TOOLS_CHANGED = """
create or replace function notify_tools_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.available and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        if exists (select from new_rows n join old_rows o using (id) where n.load = o.load) then
            perform notify_event('tool', array(
                select id from new_rows n join old_rows o using (id) where n.load = o.load));
            if exists (select from new_rows n join old_rows o using (id)
                       where o.offline and not n.offline) then
                perform notify_ids('broker_upkeep', '{tools}');
            end if;
        end if;
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
        perform notify_event('work', case when (select count(*) from new_rows) > 50 then '{*}'
                                          else array(select cast(id as text) from new_rows) end);
        return null;
    end
$$
"""

# Whoever watches has to be welcome still.
NOTIFY_KEYS = """
create function notify_keys() returns trigger language plpgsql as $$
    begin
        perform notify_event('key', '{*}');
        return null;
    end
$$
"""
KEYS_TRIGGER = """
create trigger notify_keys after insert or update on keys for each statement execute function notify_keys()
"""

# As in 0004, and 0005 for the tools that change, and 0001 for those that are new.
WAS = [
    """
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
""",
    """
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
""",
    """
create or replace function notify_tools() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where available) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        return null;
    end
$$
""",
    """
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
""",
    """
create or replace function notify_work() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select distinct tool_id from new_rows));
        if exists (select from new_rows where deadline_at < now() + interval '30 s') then
            perform notify_ids('broker_upkeep', '{work}');
        end if;
        return null;
    end
$$
""",
]

UP = [
    *(NOTIFY_EVENT, NOTIFY_TASKS, NOTIFY_TASKS_CHANGED, NOTIFY_TOOLS, NOTIFY_TOOLS_CHANGED, NOTIFY_WORK),
    *(NOTIFY_KEYS, KEYS_TRIGGER),
]
DOWN = ["drop trigger notify_keys on keys", *WAS, "drop function notify_keys, notify_event"]


def upgrade() -> None:
    """Tell who watches."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """As it was."""
    for statement in DOWN:
        op.execute(statement)
