-- A record of each ended work item, and of each task that ended without work.
--
-- The partitions follow the time in the record's id, a version 7 UUID. So the primary key alone ensures that
-- work ends only once across all partitions, and a search by id reads only one partition.
create table work_archive (
    work_id uuid primary key,
    task_id text collate "C" not null,
    -- Null if the task ended without work. Then the columns of the tool and of the assignment are null, too.
    tool_id text collate "C",
    attempt integer not null,
    outcome text not null
        check (outcome in ('succeeded', 'failed', 'cancelled', 'released', 'lost', 'timed_out')),
    -- The outcome that the tool reported, if the work has another one. For example, if work with a requested
    -- cancellation fails, its outcome is cancelled.
    said text,
    result json not null,
    error text,
    late json,
    reports json not null,
    version integer not null default 1,
    cancel_requested boolean not null default false,
    assigned_at timestamptz,
    started_at timestamptz,
    deadline_at timestamptz,
    ended_at timestamptz not null default now(),
    -- The names of the keys that submitted the task and that registered the tool.
    created_by text,
    registered_by text,
    -- When the task was submitted.
    submitted_at timestamptz not null,
    -- When the task could first run: when it was submitted, or its not_before.
    waiting_since timestamptz,
    -- The task as it was when the work ended.
    needs jsonb not null,
    payload json not null,
    priority smallint not null,
    task_state text not null,
    task_attempt integer not null,
    max_attempts integer not null,
    retry_backoff_seconds double precision not null,
    timeout_seconds double precision,
    not_before timestamptz,
    remark text,
    task_result json,
    task_error text,
    task_ended_at timestamptz,
    -- The tool as it was when the work ended.
    skills jsonb,
    capacity integer,
    load integer,
    tool_state text,
    lease_seconds double precision,
    lease_expires_at timestamptz,
    registered_at timestamptz,
    seen_at timestamptz,
    -- As in tools.
    bytes bigint
) partition by range (work_id);

-- For records of months that have no partition.
create table work_archive_rest partition of work_archive default;

create index work_archive_by_time on work_archive (ended_at, work_id);

create index work_archive_by_task on work_archive (task_id, ended_at);

create index work_archive_by_tool on work_archive (tool_id, ended_at);

create index work_archive_of_key on work_archive (created_by, ended_at, work_id) where created_by is not null;

-- Only a few of a million attempts have failed, but people search for those.
create index work_archive_failures on work_archive (ended_at, work_id)
where outcome in ('failed', 'timed_out', 'lost') and tool_id is not null;

-- Most records have succeeded, so a list finds those without an index.
create index work_archive_by_outcome on work_archive (outcome, ended_at, work_id)
where outcome <> 'succeeded';

-- The last record of each ended task. A new task cannot have its id.
create table ended_tasks (
    task_id text collate "C" primary key,
    work_id uuid not null,
    -- Set if a late result was accepted, because the task's values then differ from those of the record.
    attempt integer,
    ended_at timestamptz
);

-- The progress of retention. Before retention drops a partition, it deletes the rows of ended_tasks that
-- point to it, in batches. Each batch commits its progress: a timeout undoes one batch, and a restart none.
create table retention_progress (
    -- At most one row.
    id boolean primary key default true check (id),
    partition text not null,
    -- The end of the partition's newest record. If one is added, retention reads from the start again.
    newest timestamptz,
    after uuid not null
);

-- Create the partition of a month, and move its records there from work_archive_rest. Processes take turns,
-- because two that create the same table would fail.
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
$$;

create function notify_archive() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', n.works), notify_ids('broker_task', n.tasks)
        from (select string_agg(cast(work_id as text), ',') filter (where tool_id is not null) as works,
                     string_agg(task_id, ',') filter (where outcome in ('succeeded', 'cancelled')) as tasks
              from new_rows) n;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_archive after insert on work_archive referencing new table as new_rows
for each statement execute function notify_archive();

-- An accepted late result ends the task.
create function notify_accepted() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_task', (
            select string_agg(n.task_id, ',')
            from new_rows n join old_rows o using (work_id)
            where n.outcome = 'succeeded' and o.outcome <> 'succeeded'));
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_accepted after update on work_archive
referencing old table as old_rows new table as new_rows
for each statement execute function notify_accepted();
