-- The work under way: tasks that are assigned to a tool, or running.
--
-- The table has no foreign keys, because PostgreSQL would check them row by row. In a set of a hundred, that
-- took 6 of the 39 µs of an assignment, and as much of each deletion. Every statement that writes work locks
-- the task and the tool in the same transaction, so neither can be missing.
create table work (
    id uuid primary key,
    task_id text collate "C" not null unique,
    tool_id text collate "C" not null,
    attempt integer not null,
    state text not null default 'assigned' check (state in ('assigned', 'running')),
    progress double precision check (progress between 0 and 1),
    cancel_requested boolean not null default false,
    cancel_requeue boolean not null default false,
    -- Grows with every change that a request may wait for.
    version integer not null default 1,
    assigned_at timestamptz not null default now(),
    started_at timestamptz,
    -- The time when the work ends as lost if it has not started, or as timed out if it has not ended.
    deadline_at timestamptz,
    -- The size of all reports is limited, because they become one value in the archive. PostgreSQL cannot
    -- build values of 256 MiB or more.
    report_bytes bigint not null default 0,
    report_count integer not null default 0,
    constraint running_has_started check ((state = 'running') = (started_at is not null))
) with (fillfactor = 70);

create index work_of_tool on work (tool_id);

create table work_reports (
    work_id uuid not null,
    seq bigint not null generated always as identity,
    id uuid not null default uuid7(),
    at timestamptz not null default now(),
    progress double precision check (progress between 0 and 1),
    message text,
    data json not null,
    -- The size of the report in the archive.
    size integer,
    primary key (work_id, seq),
    unique (work_id, id)
);

-- Delete the reports of ending work, and return them in the form that the archive stores and the API returns.
-- A statement sees only reports that were committed when it began, even if it then waits for the lock on
-- their work. A volatile function sees everything that is committed when it is called. After the lock, that
-- is every report.
create function take_reports(work_ids uuid[]) returns table (of_work uuid, reports json)
language plpgsql volatile as $$
    begin
        if work_ids = '{}' then
            return;
        end if;
        return query
        with taken as (
            delete from work_reports r where r.work_id = any(work_ids) returning r.*
        )
        select t.work_id, json_agg(row_to_json(written) order by t.seq)
        from taken t
        cross join lateral (
            select t.id, to_char(t.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at,
                   t.progress, t.message, t.data
        ) written
        group by t.work_id;
    end
$$;

-- Upkeep runs at least every 30 s. Notify it of earlier deadlines. See notify_tasks for the event stream.
create function notify_work() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', n.tools),
                notify_ids('broker_upkeep', case when n.are_due then 'work' end),
                notify_ids('broker_events', n.ids, 'work ')
        from (select string_agg(distinct tool_id, ',') as tools,
                     bool_or(deadline_at < now() + interval '30 s') as are_due,
                     case when count(*) > 50 then '*' else string_agg(cast(id as text), ',') end as ids
              from new_rows) n;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_work after insert on work referencing new table as new_rows
for each statement execute function notify_work();

create function notify_work_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_work', c.ids),
                notify_ids('broker_upkeep', case when c.are_due then 'work' end)
        from (select string_agg(cast(id as text), ',') filter (where n.version <> o.version) as ids,
                     bool_or(n.deadline_at < now() + interval '30 s') as are_due
              from new_rows n join old_rows o using (id)) c;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_work_changed after update on work
referencing old table as old_rows new table as new_rows
for each statement execute function notify_work_changed();
