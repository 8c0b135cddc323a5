-- The keys of clients. A revoked key stays in the table, because after the first key the service refuses
-- requests without one. A new key may have the same name. Tasks and tools belong to the name of a key.
create table keys (
    id bigint primary key generated always as identity,
    name text collate "C" not null,
    roles text[] not null
        check (roles <@ array['submitter', 'tool', 'assigner', 'operator', 'admin'] and roles <> '{}'),
    -- The SHA-256 of 32 secure random bytes. Guessing these is as hard as inverting the hash.
    hash bytea not null unique,
    created_at timestamptz not null default now(),
    revoked_at timestamptz,
    last_used_at timestamptz
);

create unique index keys_in_use on keys (name) where revoked_at is null;

-- Open event streams check whether their key is still valid.
create function notify_keys() returns trigger language plpgsql as $$
    begin
        perform notify_ids('broker_events', '*', 'key ');
        return null;
    end
$$;

create trigger notify_keys after insert or update on keys
for each statement execute function notify_keys();
