"""Tools, tasks, work, reports and the archive, and the triggers that tell who waits.

Revision: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Ids are compared byte by byte: the same order on every platform, and the quickest.

UUID7 = """
create function uuid7() returns uuid language sql volatile parallel safe as $$
    -- RFC 9562, version 7: 48 bits of milliseconds, then chance. PostgreSQL has its own from 18 on.
    select cast(lpad(to_hex(cast(floor(extract(epoch from clock_timestamp()) * 1000) as bigint)), 12, '0')
        || '7' || substr(replace(cast(gen_random_uuid() as text), '-', ''), 14) as uuid)
$$
"""

UUID7_FLOOR = """
create function uuid7_floor(at timestamptz) returns uuid language sql immutable parallel safe as $$
    -- The least version 7 UUID of a moment: where an archive partition begins.
    select cast(lpad(to_hex(cast(floor(extract(epoch from at) * 1000) as bigint)), 12, '0')
        || repeat('0', 20) as uuid)
$$
"""

TOOLS = """
create table tools (
    id text collate "C" primary key,
    skills jsonb not null,
    capacity integer not null check (capacity between 1 and 10000),
    load integer not null default 0 check (load >= 0),
    draining boolean not null default false,
    offline boolean not null default false,
    available boolean not null
        generated always as (load < capacity and not draining and not offline) stored,
    lease_seconds double precision not null,
    registered_at timestamptz not null default now(),
    registered_by text,
    token_hash bytea,
    -- The transaction that last changed what an assigner sees: a candidates cursor is held against it.
    changed xid8 not null default pg_current_xact_id()
) with (fillfactor = 70)
"""
TOOLS_CHANGED = "create index tools_changed on tools (changed) where available"

# Leases have a table of their own: they are renewed all the time, and a narrow row without
# indexes on what changes is renewed in place (HOT), fires no trigger and holds up no assignment.
TOOL_LEASES = """
create table tool_leases (
    tool_id text collate "C" primary key references tools on delete cascade,
    seen_at timestamptz not null default now(),
    expires_at timestamptz not null
) with (fillfactor = 50)
"""

TASKS = """
create table tasks (
    id text collate "C" primary key,
    seq bigint not null generated always as identity,
    needs jsonb not null,
    payload jsonb not null,
    priority smallint not null,
    -- 'assigned' covers running, too: which of the two it is, the work says.
    state text not null check (state in ('scheduled', 'available', 'assigned', 'failed')),
    attempt integer not null default 0 check (attempt >= 0),
    max_attempts integer not null check (max_attempts >= 1),
    retry_backoff_seconds double precision not null,
    timeout_seconds double precision,
    not_before timestamptz,
    due_at timestamptz,
    created_at timestamptz not null default now(),
    created_by text,
    work_id uuid,
    remark text,
    remark_at timestamptz,
    result jsonb,
    error text,
    ended_at timestamptz,
    changed xid8 not null default pg_current_xact_id(),
    constraint assigned_has_work check ((state = 'assigned') = (work_id is not null)),
    constraint scheduled_is_due check ((state = 'scheduled') = (due_at is not null)),
    constraint failed_has_ended check ((state = 'failed') = (ended_at is not null))
) with (fillfactor = 80)
"""
TASKS_IN_ORDER = "create unique index tasks_in_order on tasks (seq)"
# Both ascending, so that a page can go on by comparing the pair; the cast keeps -(-32768) in range.
TASKS_AVAILABLE = """
create index tasks_available on tasks ((-cast(priority as integer)), seq) where state = 'available'
"""
TASKS_CHANGED = "create index tasks_changed on tasks (changed) where state = 'available'"
TASKS_DUE = "create index tasks_due on tasks (due_at) where state = 'scheduled'"

WORK = """
create table work (
    id uuid primary key,
    task_id text collate "C" not null unique references tasks,
    tool_id text collate "C" not null references tools,
    attempt integer not null,
    state text not null default 'assigned' check (state in ('assigned', 'running')),
    progress double precision check (progress between 0 and 1),
    cancel_requested boolean not null default false,
    cancel_requeue boolean not null default false,
    version integer not null default 1,
    assigned_at timestamptz not null default now(),
    started_at timestamptz,
    deadline_at timestamptz,
    constraint running_has_started check ((state = 'running') = (started_at is not null))
) with (fillfactor = 70)
"""
WORK_OF_TOOL = "create index work_of_tool on work (tool_id)"

WORK_REPORTS = """
create table work_reports (
    work_id uuid not null,
    seq bigint not null generated always as identity,
    id uuid not null default uuid7(),
    at timestamptz not null default now(),
    progress double precision check (progress between 0 and 1),
    message text,
    data jsonb not null,
    primary key (work_id, seq),
    unique (work_id, id)
)
"""

# Partitioned by the time in the work's own id (version 7): so the primary key alone holds that work
# ends once, across all partitions, and a record is found by its id in the one partition it can be in.
WORK_ARCHIVE = """
create table work_archive (
    work_id uuid primary key,
    task_id text collate "C" not null,
    tool_id text collate "C",
    task jsonb not null,
    tool jsonb,
    attempt integer not null,
    outcome text not null
        check (outcome in ('succeeded', 'failed', 'cancelled', 'released', 'lost', 'timed_out')),
    -- What its tool said, where that was not the outcome: asked to cancel, a failure counts as cancelled.
    said text,
    result jsonb not null,
    error text,
    late jsonb,
    reports jsonb not null,
    version integer not null default 1,
    cancel_requested boolean not null default false,
    assigned_at timestamptz,
    started_at timestamptz,
    deadline_at timestamptz,
    ended_at timestamptz not null default now(),
    created_by text,
    registered_by text
) partition by range (work_id)
"""
WORK_ARCHIVE_REST = "create table work_archive_rest partition of work_archive default"
ARCHIVE_BY_TIME = "create index work_archive_by_time on work_archive (ended_at, work_id)"
ARCHIVE_BY_TASK = "create index work_archive_by_task on work_archive (task_id, ended_at)"
ARCHIVE_BY_TOOL = "create index work_archive_by_tool on work_archive (tool_id, ended_at)"

# One row for each task that has ended: its id is not given again, and this record is its last word.
ENDED_TASKS = """
create table ended_tasks (
    task_id text collate "C" primary key,
    work_id uuid not null
)
"""

# Records of that month may be there already, in the default partition: they move. One at a time, as
# two that make the same table would fail.
ARCHIVE_PARTITION = """
create function create_archive_partition(month date) returns void language plpgsql as $$
    declare
        name text := 'work_archive_' || to_char(month, 'YYYY_MM');
        first timestamp := date_trunc('month', cast(month as timestamp));
        least uuid := uuid7_floor(first at time zone 'UTC');
        beyond uuid := uuid7_floor((first + interval '1 month') at time zone 'UTC');
    begin
        perform pg_advisory_xact_lock(7022026);
        if to_regclass(name) is null then
            lock table work_archive_rest in access exclusive mode;
            execute format('create table %I (like work_archive including all)', name);
            execute format('with moved as (delete from work_archive_rest'
                ' where work_id >= %L and work_id < %L returning *) insert into %I select * from moved',
                least, beyond, name);
            execute format('alter table work_archive attach partition %I for values from (%L) to (%L)',
                name, least, beyond);
        end if;
    end
$$
"""

# Notifications are hints: whoever waits looks again. They carry the ids that are concerned, or a star
# where those would not fit ("look again, everyone"). A hint that cannot be given never
# fails the write it tells of.
NOTIFY_IDS = """
create function notify_ids(channel text, ids text[]) returns void language plpgsql as $$
    declare
        payload text := array_to_string(ids, ',');
    begin
        if cardinality(ids) > 0 then
            perform pg_notify(channel, case when octet_length(payload) <= 7000 then payload else '*' end);
        end if;
    exception when others then
        raise warning 'no notification on %: %', channel, sqlerrm;
    end
$$
"""

NOTIFY_TASKS = """
create function notify_tasks() returns trigger language plpgsql as $$
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
"""
NOTIFY_TASKS_CHANGED = """
create function notify_tasks_changed() returns trigger language plpgsql as $$
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
"""
NOTIFY_TOOLS = """
create function notify_tools() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows where available) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        return null;
    end
$$
"""
NOTIFY_TOOLS_CHANGED = """
create function notify_tools_changed() returns trigger language plpgsql as $$
    begin
        if exists (select from new_rows n join old_rows o using (id)
                   where n.available and n.changed <> o.changed) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        return null;
    end
$$
"""
NOTIFY_TOOLS_GONE = """
create function notify_tools_gone() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select id from old_rows));
        return null;
    end
$$
"""
NOTIFY_WORK = """
create function notify_work() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select distinct tool_id from new_rows));
        return null;
    end
$$
"""
NOTIFY_WORK_CHANGED = """
create function notify_work_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', array(
            select cast(n.id as text) from new_rows n join old_rows o using (id)
            where n.version <> o.version));
        return null;
    end
$$
"""
NOTIFY_ARCHIVE = """
create function notify_archive() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', array(
            select cast(work_id as text) from new_rows where tool_id is not null));
        perform notify_ids('broker_task', array(
            select task_id from new_rows where outcome in ('succeeded', 'cancelled')));
        return null;
    end
$$
"""


def trigger(name: str, event: str, table: str, transition: str) -> str:
    """The statement-level trigger that runs the function of the same name."""
    return f"""
create trigger {name} after {event} on {table} referencing {transition}
for each statement execute function {name}()"""


NEW = "new table as new_rows"
OLD = "old table as old_rows"
BOTH = f"{OLD} {NEW}"
TRIGGERS = [
    trigger("notify_tasks", "insert", "tasks", NEW),
    trigger("notify_tasks_changed", "update", "tasks", BOTH),
    trigger("notify_tools", "insert", "tools", NEW),
    trigger("notify_tools_changed", "update", "tools", BOTH),
    trigger("notify_tools_gone", "delete", "tools", OLD),
    trigger("notify_work", "insert", "work", NEW),
    trigger("notify_work_changed", "update", "work", BOTH),
    trigger("notify_archive", "insert", "work_archive", NEW),
]

UP = [
    *(UUID7, UUID7_FLOOR),
    *(TOOLS, TOOLS_CHANGED, TOOL_LEASES),
    *(TASKS, TASKS_IN_ORDER, TASKS_AVAILABLE, TASKS_CHANGED, TASKS_DUE),
    *(WORK, WORK_OF_TOOL, WORK_REPORTS),
    *(WORK_ARCHIVE, WORK_ARCHIVE_REST, ARCHIVE_BY_TIME, ARCHIVE_BY_TASK, ARCHIVE_BY_TOOL, ENDED_TASKS),
    ARCHIVE_PARTITION,
    *(NOTIFY_IDS, NOTIFY_TASKS, NOTIFY_TASKS_CHANGED),
    *(NOTIFY_TOOLS, NOTIFY_TOOLS_CHANGED, NOTIFY_TOOLS_GONE),
    *(NOTIFY_WORK, NOTIFY_WORK_CHANGED, NOTIFY_ARCHIVE),
    *TRIGGERS,
]

DOWN = [
    "drop table ended_tasks, work_archive, work_reports, work, tasks, tool_leases, tools",
    """drop function notify_archive, notify_work_changed, notify_work, notify_tools_gone,
        notify_tools_changed, notify_tools, notify_tasks_changed, notify_tasks, notify_ids""",
    "drop function create_archive_partition, uuid7_floor, uuid7",
]


def upgrade() -> None:
    """Create everything."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop everything."""
    for statement in DOWN:
        op.execute(statement)
