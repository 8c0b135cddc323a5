-- The earliest version whose programs can use this schema. During an upgrade, programs of the previous
-- version run with the next schema. A migration that removes or changes something that they use must include:
--     update schema_support set works_from = '0003'
-- Here 0003 is the earliest version whose programs do not need it. All other migrations only add things, and
-- do not change this row.
create table schema_support (
    -- Exactly one row.
    id boolean primary key default true check (id),
    works_from text not null
);

insert into schema_support (works_from) values ('0001');
