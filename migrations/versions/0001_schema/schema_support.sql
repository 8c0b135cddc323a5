-- The earliest version whose programs can use this schema: during an upgrade, programs of the version before
-- run on the schema of the next. A migration that removes or changes something that they use says so:
--     update schema_support set works_from = '0003'
-- where 0003 is the earliest version whose programs do not need it. Every other migration only adds, and
-- leaves this row as it is.
create table schema_support (
    -- One row.
    id boolean primary key default true check (id),
    works_from text not null
);

insert into schema_support (works_from) values ('0001');
