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
    -- A task with a row in work is assigned or running, and keeps the state 'available' here. So an assignment
    -- writes nothing to this table. Writing each task again took a fifth of its WAL.
    state text not null check (state in ('scheduled', 'available', 'failed')),
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
    constraint scheduled_is_due check ((state = 'scheduled') = (due_at is not null)),
    constraint failed_has_ended check ((state = 'failed') = (ended_at is not null))
) with (fillfactor = 80);

create unique index tasks_in_order on tasks (seq);

-- For the assigner: higher priority first, then older first. Both columns ascend, because a page continues by
-- comparing the pair. The cast keeps -(-32768) in range.
create index tasks_available on tasks ((-cast(priority as integer)), seq) where state = 'available';

create index tasks_changed on tasks (changed) where state = 'available';

create index tasks_due on tasks (due_at) where state = 'scheduled';

-- For counts and lists by state. A new available task is in neither of these two indexes, so they do not slow
-- submission down. With a million waiting tasks, counting the failed ones took 160 ms without an index, and
-- takes 0.3 ms with it.
create index tasks_failed on tasks (seq) where state = 'failed';

create index tasks_scheduled on tasks (seq) where state = 'scheduled';

create index tasks_of_key on tasks (created_by, seq) where created_by is not null;

-- Upkeep runs at least every 30 s. Notify it of tasks that come due earlier. After a statement that writes
-- many rows, subscribers of the event stream read everything again. This saves collecting their ids.
create function notify_tasks() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_candidates', case when n.are_available then '*' end),
                notify_ids('broker_upkeep', case when n.are_due then 'tasks' end),
                notify_ids('broker_events', n.ids, 'task ')
        from (select bool_or(state = 'available') as are_available,
                     bool_or(due_at < now() + interval '30 s') as are_due,
                     case when count(*) > 50 then '*' else string_agg(id, ',') end as ids
              from new_rows) n;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_tasks after insert on tasks referencing new table as new_rows
for each statement execute function notify_tasks();

create function notify_tasks_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_candidates', case when c.are_available then '*' end),
                notify_ids('broker_upkeep', case when c.are_due then 'tasks' end),
                notify_ids('broker_task', c.failed),
                notify_ids('broker_events', c.ids, 'task ')
        from (select bool_or(n.state = 'available' and n.changed <> o.changed) as are_available,
                     bool_or(n.due_at < now() + interval '30 s') as are_due,
                     string_agg(id, ',') filter (where n.state = 'failed' and o.state <> 'failed') as failed,
                     string_agg(id, ',') as ids
              from new_rows n join old_rows o using (id)) c;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_tasks_changed after update on tasks
referencing old table as old_rows new table as new_rows
for each statement execute function notify_tasks_changed();
