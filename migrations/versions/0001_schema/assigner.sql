-- When an assigner last asked for candidates.
create table assigner (
    -- One row at most.
    id boolean primary key default true check (id),
    seen_at timestamptz not null
);
