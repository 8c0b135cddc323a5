-- The time when an assigner last asked for candidates.
create table assigner (
    -- At most one row.
    id boolean primary key default true check (id),
    seen_at timestamptz not null
);
