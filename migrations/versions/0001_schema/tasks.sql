-- The live tasks. When a task ends, its row is deleted and the archive gets a record.
create table tasks (
    id text collate "C" primary key,
    seq bigint not null generated always as identity,
    -- Searches use only needs. The other JSON values are json, because the broker returns them unchanged. For
    -- 32 MiB of small numbers, PostgreSQL needs eleven seconds and 200 MB as jsonb, but half a second as
    -- json.
    needs jsonb not null,
    payload json not null,
    priority smallint not null,
    -- 'assigned' includes running tasks. work.state distinguishes the two.
    state text not null check (state in ('scheduled', 'available', 'assigned', 'failed')),
    attempt integer not null default 0 check (attempt >= 0),
    max_attempts integer not null check (max_attempts >= 1),
    retry_backoff_seconds double precision not null,
    timeout_seconds double precision,
    not_before timestamptz,
    -- The time when a scheduled task becomes available: not_before, or the end of its backoff.
    due_at timestamptz,
    created_at timestamptz not null default now(),
    -- The name of the key that submitted the task.
    created_by text,
    work_id uuid,
    remark text,
    remark_at timestamptz,
    result json,
    error text,
    ended_at timestamptz,
    -- As in tools.
    changed xid8 not null default pg_current_xact_id(),
    -- The headers traceparent and, after a space, tracestate of the request that submitted the task (W3C
    -- Trace Context). The tool continues that trace.
    trace_context text,
    -- As in tools.
    bytes bigint,
    constraint assigned_has_work check ((state = 'assigned') = (work_id is not null)),
    constraint scheduled_is_due check ((state = 'scheduled') = (due_at is not null)),
    constraint failed_has_ended check ((state = 'failed') = (ended_at is not null))
) with (fillfactor = 80);

create unique index tasks_in_order on tasks (seq);

-- For the assigner: higher priority first, then older first. Both columns ascend, because a page continues by
-- comparing the pair. The cast keeps -(-32768) in range.
create index tasks_available on tasks ((-cast(priority as integer)), seq) where state = 'available';

create index tasks_changed on tasks (changed) where state = 'available';

create index tasks_due on tasks (due_at) where state = 'scheduled';

-- For counts and lists by state. A new available task is in none of these three indexes, so they do not slow
-- submission down. With a million waiting tasks, counting the failed ones took 160 ms without an index, and
-- takes 0.3 ms with it.
create index tasks_failed on tasks (seq) where state = 'failed';

create index tasks_assigned on tasks (seq) where state = 'assigned';

create index tasks_scheduled on tasks (seq) where state = 'scheduled';

create index tasks_of_key on tasks (created_by, seq) where created_by is not null;

-- Upkeep runs at least every 30 s. Notify it of tasks that come due earlier.
create function notify_tasks() returns trigger language plpgsql as $$
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
$$;

create trigger notify_tasks after insert on tasks referencing new table as new_rows
for each statement execute function notify_tasks();

-- For assigned tasks, the triggers of work notify the event stream.
create function notify_tasks_changed() returns trigger language plpgsql as $$
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
$$;

create trigger notify_tasks_changed after update on tasks
referencing old table as old_rows new table as new_rows
for each statement execute function notify_tasks_changed();
