-- The registered tools.
create table tools (
    -- All ids are compared byte by byte. This order is the fastest, and the same on every platform.
    id text collate "C" primary key,
    skills jsonb not null,
    capacity integer not null check (capacity between 1 and 10000),
    -- The number of the tool's rows in work.
    load integer not null default 0 check (load >= 0),
    draining boolean not null default false,
    offline boolean not null default false,
    available boolean not null
        generated always as (load < capacity and not draining and not offline) stored,
    registered_at timestamptz not null default now(),
    -- The name of the key that registered the tool.
    registered_by text,
    token_hash bytea,
    -- The transaction that last changed the row as an assigner sees it. Candidates cursors refer to it.
    changed xid8 not null default pg_current_xact_id(),
    -- The size of the tool in a response. PostgreSQL knows only the compressed size, which can be a hundredth
    -- of it, so the statement that writes a row measures the size. If null, queries use an estimate.
    bytes bigint
) with (fillfactor = 70);

create index tools_changed on tools (changed) where available;

-- The lease of each tool, which heartbeats renew constantly. In a separate table, a renewal changes a narrow
-- row in place (HOT, because no index has the columns), sends no notification and blocks no assignment.
create table tool_leases (
    tool_id text collate "C" primary key references tools on delete cascade,
    seen_at timestamptz not null default now(),
    expires_at timestamptz not null,
    -- In this table, because a renewal locks this row and then sees a registration that has just committed.
    lease_seconds double precision not null,
    -- A copy of tools.token_hash. Each step of a tool locks its lease and checks the token in the same row.
    token_hash bytea
) with (fillfactor = 50);

-- The broker writes only tools.token_hash. These two triggers update the copy: on registration, and when an
-- admin revokes the key that registered the tool.
create function copy_token_to_lease() returns trigger language plpgsql as $$
    begin
        update tool_leases set token_hash = new.token_hash where tool_id = new.id;
        return null;
    end
$$;

create trigger copy_token_to_lease after update of token_hash on tools
for each row when (old.token_hash is distinct from new.token_hash)
execute function copy_token_to_lease();

create function copy_token_to_new_lease() returns trigger language plpgsql as $$
    begin
        new.token_hash := (select token_hash from tools where id = new.tool_id);
        return new;
    end
$$;

create trigger copy_token_to_new_lease before insert on tool_leases
for each row execute function copy_token_to_new_lease();

create function notify_tools() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_candidates', case when n.are_available then '*' end),
                notify_ids('broker_events', n.ids, 'tool ')
        from (select bool_or(available) as are_available, string_agg(id, ',') as ids from new_rows) n;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_tools after insert on tools referencing new table as new_rows
for each statement execute function notify_tools();

-- The load changes only together with work, whose triggers notify the event stream. Upkeep does not watch the
-- leases of offline tools, so notify it when a tool comes back.
create function notify_tools_changed() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_candidates', case when c.are_available then '*' end),
                notify_ids('broker_upkeep', case when c.are_back then 'tools' end),
                notify_ids('broker_events', c.ids, 'tool ')
        from (select bool_or(n.available and n.changed <> o.changed) as are_available,
                     bool_or(o.offline and not n.offline) as are_back,
                     string_agg(id, ',') filter (where n.load = o.load) as ids
              from new_rows n join old_rows o using (id)) c;
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_tools_changed after update on tools
referencing old table as old_rows new table as new_rows
for each statement execute function notify_tools_changed();

create function notify_tools_gone() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', (select string_agg(id, ',') from old_rows));
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_tools_gone after delete on tools referencing old table as old_rows
for each statement execute function notify_tools_gone();

-- A renewal does not set lease_seconds, so it does not fire this trigger. It need not, because upkeep runs at
-- least once within the shortest lease.
create function notify_leases() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_upkeep', 'tools');
        return null;
    exception when others then
        raise warning 'no notification of % on %: %', tg_op, tg_table_name, sqlerrm;
        return null;
    end
$$;

create trigger notify_leases after insert or update of lease_seconds on tool_leases
for each statement execute function notify_leases();
