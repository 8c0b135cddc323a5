-- The registered programs.
create table tools (
    -- Compared byte by byte, as all ids are: the fastest order, and the same one on every platform.
    id text collate "C" primary key,
    skills jsonb not null,
    capacity integer not null check (capacity between 1 and 10000),
    -- How many rows of work the tool has.
    load integer not null default 0 check (load >= 0),
    draining boolean not null default false,
    offline boolean not null default false,
    available boolean not null
        generated always as (load < capacity and not draining and not offline) stored,
    registered_at timestamptz not null default now(),
    -- The name of the key that registered the tool.
    registered_by text,
    token_hash bytea,
    -- The transaction that last changed what an assigner sees. A candidates cursor is compared with it.
    changed xid8 not null default pg_current_xact_id(),
    -- The size of the tool in a response. PostgreSQL knows only the compressed size, which can be a hundredth
    -- of that, so the statement that writes a row measures it. Null: not measured, an estimate is used.
    bytes bigint
) with (fillfactor = 70);

create index tools_changed on tools (changed) where available;

-- Each tool's lease. Heartbeats renew it all the time. In a table of its own, a renewal changes a narrow row
-- in place (HOT: no index has the columns), fires no notification and blocks no assignment.
create table tool_leases (
    tool_id text collate "C" primary key references tools on delete cascade,
    seen_at timestamptz not null default now(),
    expires_at timestamptz not null,
    -- Stands here because a renewal locks this row: it then sees a registration that has just committed.
    lease_seconds double precision not null,
    -- A copy of tools.token_hash. Each step of a tool locks its lease, and checks the token in the same row.
    token_hash bytea
) with (fillfactor = 50);

-- The broker writes tools.token_hash only. These two triggers keep the copy: on registration, and when the
-- key that registered the tool is revoked.
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
        if exists (select from new_rows where available) then
            perform notify_ids('broker_candidates', '{*}');
        end if;
        perform notify_event('tool', array(select id from new_rows));
        return null;
    end
$$;

create trigger notify_tools after insert on tools referencing new table as new_rows
for each statement execute function notify_tools();

-- The load changes only together with work, which notifies the event stream itself. The upkeep does not
-- watch the lease of a tool that is offline, so it is notified when the tool comes back.
create function notify_tools_changed() returns trigger language plpgsql as $$
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
$$;

create trigger notify_tools_changed after update on tools
referencing old table as old_rows new table as new_rows
for each statement execute function notify_tools_changed();

create function notify_tools_gone() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_tool', array(select id from old_rows));
        return null;
    end
$$;

create trigger notify_tools_gone after delete on tools referencing old table as old_rows
for each statement execute function notify_tools_gone();

-- A renewal does not set lease_seconds, so it fires nothing. It cannot make a lease expire before the upkeep
-- looks again either: the upkeep looks at least once in the shortest lease.
create function notify_leases() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_upkeep', '{tools}');
        return null;
    end
$$;

create trigger notify_leases after insert or update of lease_seconds on tool_leases
for each statement execute function notify_leases();
