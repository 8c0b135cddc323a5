"""Migrations: up, down and up again, by several processes, from a checkout or an installed package."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

import broker
from broker.schemas.candidates import Pair
from broker.store import (
    Store,
    assignment,
    completion,
    migration,
    retention,
    schema_version,
    submission,
    tasks,
)
from broker.store.address import Address
from tests import ROOT
from tests.conftest import run_sql
from tests.support import steps
from tests.support.cli import run
from tests.support.next_version import add_migration, copy_sources

HERE = "select version_num from alembic_version"

# All objects of the schema, except Alembic's table and objects that belong to it.
OBJECTS = """
select pg_describe_object(d.classid, d.objid, 0)
from (select cast('pg_class' as regclass) as classid, oid as objid from pg_class
      where relnamespace = cast('public' as regnamespace)
      union select 'pg_proc'::regclass, oid from pg_proc where pronamespace = cast('public' as regnamespace)
      union select 'pg_type'::regclass, oid from pg_type where typnamespace = cast('public' as regnamespace)
      union select 'pg_trigger'::regclass, oid from pg_trigger where not tgisinternal) d
where pg_describe_object(d.classid, d.objid, 0) not like '%alembic_version%'
order by 1
"""

# The columns of tables and the code of functions, as PostgreSQL stores them.
DEFINITIONS = """
select cast(attrelid as regclass)::text, attname::text, format_type(atttypid, atttypmod)
from pg_attribute join pg_class c on c.oid = attrelid
where relnamespace = cast('public' as regnamespace) and attnum > 0
union all
select oid::regprocedure::text, prosrc, null from pg_proc
where pronamespace = cast('public' as regnamespace)
order by 1, 2
"""

PARTITIONS = """
select c.relname, pg_get_expr(c.relpartbound, c.oid) as bounds
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = cast('work_archive' as regclass) order by 1
"""

NEXT_MONTHS = """
select 'work_archive_' || to_char(month, 'YYYY_MM') as name,
       format('FOR VALUES FROM (''%s'') TO (''%s'')', uuid7_floor(month at time zone 'UTC'),
              uuid7_floor((month + interval '1 month') at time zone 'UTC')) as bounds
from (select date_trunc('month', now() at time zone 'UTC') + n * interval '1 month' as month
      from generate_series(0, 3) as n) months
order by 1
"""


# Gives this process the migrations of a later version, which has one more migration with these statements.
# Returns its revision.
NextVersion = Callable[..., str]


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NextVersion:
    def make(*statements: str) -> str:
        copy_sources(tmp_path, "migrations")
        monkeypatch.setattr(schema_version, "scripts_folder", lambda: tmp_path / "migrations")
        return add_migration(tmp_path, *statements)

    return make


async def fetch(url: str, query: str) -> list[tuple[object, ...]]:
    async with steps.open_connection(url) as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def test_migrations_go_up_down_and_up_again_and_leave_nothing_behind(empty_database: str) -> None:
    await migration.migrate(empty_database)
    first = await fetch(empty_database, OBJECTS)
    await migration.migrate(empty_database, "base")
    assert await fetch(empty_database, OBJECTS) == []
    await migration.migrate(empty_database)
    assert await fetch(empty_database, OBJECTS) == first
    assert any("work_archive" in str(row) for row in first)


async def test_migrations_go_down_in_a_database_with_data(empty_database: str) -> None:
    await migration.migrate(empty_database)
    async with steps.open_store(empty_database) as store:
        await steps.add_running_work(store)
    await migration.migrate(empty_database, "base")
    assert await fetch(empty_database, OBJECTS) == []


async def test_migrations_end_at_the_version_that_this_program_needs(empty_database: str) -> None:
    async with steps.open_store(empty_database) as store:
        assert await store.run(schema_version.current_version) is None
        await migration.migrate(empty_database)
        assert await store.run(schema_version.current_version) == schema_version.required_version()
        await migration.migrate(empty_database, "base")
        assert await store.run(schema_version.current_version) is None


async def test_migrating_a_current_schema_changes_nothing(empty_database: str) -> None:
    await migration.migrate(empty_database)
    first = await fetch(empty_database, OBJECTS)
    await migration.migrate(empty_database)
    assert await fetch(empty_database, OBJECTS) == first


async def pretend(url: str, version: str = "9999", *, works_from: str) -> None:
    """Make a database look as if a program of another version had migrated it."""
    await run_sql(
        url,
        f"update alembic_version set version_num = '{version}'",
        f"update schema_support set works_from = '{works_from}'",
    )


async def test_programs_can_use_a_later_schema_that_allows_it(database: str, store: Store) -> None:
    await pretend(database, works_from=schema_version.required_version())
    assert await store.read(schema_version.schema_problem) is None
    await migration.migrate(database)
    assert await fetch(database, HERE) == [("9999",)]


async def test_programs_refuse_a_later_schema_that_does_not_allow_it(database: str, store: Store) -> None:
    await pretend(database, works_from="9998")
    problem = await store.read(schema_version.schema_problem)
    assert "version 9998 or later" in (problem or "")
    with pytest.raises(schema_version.SchemaError, match="install a later broker") as raised:
        await migration.migrate(database)
    assert str(raised.value) == f"The database {problem}."


async def test_a_database_without_a_schema_needs_a_migration(empty_database: str) -> None:
    async with steps.open_store(empty_database) as store:
        assert "has no schema yet" in (await store.read(schema_version.schema_problem) or "")
        await migration.migrate(empty_database)
        assert await store.read(schema_version.schema_problem) is None


async def test_an_earlier_schema_needs_a_migration(
    database: str, store: Store, next_version: NextVersion
) -> None:
    newest = next_version("select 1")
    assert "run `broker migrate`" in (await store.read(schema_version.schema_problem) or "")
    await migration.migrate(database)
    assert await store.read(schema_version.schema_problem) is None
    assert await fetch(database, HERE) == [(newest,)]


async def test_a_migration_waits_for_a_table_in_use_without_blocking_others(
    database: str, next_version: NextVersion
) -> None:
    newest = next_version("alter table work_archive add column made_up text")
    async with steps.open_connection(database) as user, steps.open_connection(database) as other:
        async with user.transaction():
            await user.execute("lock table work_archive in access share mode")
            migrating = asyncio.create_task(migration.migrate(database))
            await steps.wait_until_blocked(other)
            # The statement waits behind the migration, but not until the transaction ends.
            await asyncio.wait_for(other.execute("select from work_archive"), 20)
        await migrating
    assert await fetch(database, HERE) == [(newest,)]


async def test_processes_that_migrate_at_the_same_time_take_turns(empty_database: str) -> None:
    program = (
        "import asyncio, sys; from broker.store import migration; asyncio.run(migration.migrate(sys.argv[1]))"
    )
    async with steps.open_connection(empty_database) as gate:
        await gate.execute("select pg_advisory_lock(7022026)")
        both = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", program, empty_database)
            for _ in range(2)
        ]
        # Now both processes wait for the lock.
        await steps.wait_until_blocked(gate, 2)
    assert [await process.wait() for process in both] == [0, 0]
    assert await fetch(empty_database, HERE) == [(schema_version.required_version(),)]


async def run_installed(folder: Path, *arguments: str, **environment: str) -> str:
    """Run a Python module with an installed package, and return its output."""
    site_packages = folder / "site-packages"
    shutil.copytree(Path(broker.__file__).parent, site_packages / "broker")
    # The place in the wheel, as in pyproject.toml.
    shutil.copytree(ROOT / "migrations", site_packages / "broker" / "migrations")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site_packages)} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_migration_works_from_an_installed_package(empty_database: str, tmp_path: Path) -> None:
    printed = await run_installed(tmp_path, "broker.cli", "migrate", BROKER_DATABASE_URL=empty_database)
    assert schema_version.required_version() in printed
    assert await fetch(empty_database, HERE) == [(schema_version.required_version(),)]


async def test_alembic_prints_the_migrations_as_sql(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = broker:migrations\n")
    script = await run_installed(tmp_path, "alembic", "upgrade", "head", "--sql")
    await run_sql(empty_database, script)
    async with steps.open_store(empty_database) as store:
        assert await store.run(schema_version.schema_problem) is None
        await store.run(retention.create_partitions)
    printed = await fetch(empty_database, DEFINITIONS)
    await migration.migrate(empty_database, "base")
    await migration.migrate(empty_database)
    assert await fetch(empty_database, DEFINITIONS) == printed


async def test_the_archive_has_partitions_for_this_month_and_the_next_three(database: str) -> None:
    wanted = await fetch(database, NEXT_MONTHS)
    assert await fetch(database, PARTITIONS) == [*wanted, ("work_archive_rest", "DEFAULT")]


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Asia/Kolkata"])
async def test_partitions_follow_months_in_utc_in_any_time_zone(empty_database: str, zone: str) -> None:
    name = empty_database.rpartition("/")[2]
    await run_sql(empty_database, f"alter database {name.partition('?')[0]} set timezone to '{zone}'")
    await migration.migrate(empty_database)
    wanted = await fetch(empty_database, NEXT_MONTHS)
    assert await fetch(empty_database, PARTITIONS) == [*wanted, ("work_archive_rest", "DEFAULT")]


async def test_the_next_call_creates_missing_partitions(store: Store, database: str) -> None:
    first = await fetch(database, PARTITIONS)
    await run_sql(database, f"drop table {first[0][0]}, {first[2][0]}")
    await store.run(retention.create_partitions)
    assert await fetch(database, PARTITIONS) == first


async def test_concurrent_creations_of_a_partition_do_not_fail(
    store: Store, sql: asyncpg.Connection, database: str
) -> None:
    first = await fetch(database, PARTITIONS)
    await run_sql(database, f"drop table {first[0][0]}")
    async with steps.OpenTransaction(store) as other:
        await other.run(retention.create_partitions)
        second = asyncio.create_task(store.run(retention.create_partitions))
        await steps.wait_until_blocked(sql)
    await second
    assert await fetch(database, PARTITIONS) == first


async def test_a_record_of_a_month_without_a_partition_is_stored(store: Store, database: str) -> None:
    [(this_month, _), *_] = await fetch(database, PARTITIONS)
    await run_sql(database, f"drop table {this_month}")
    work = await steps.add_running_work(store)
    ended = await steps.complete(store, work.id)
    assert ended.status == "ended"
    assert [record.work_id for record in await steps.get_records(store, task_id="task")] == [work.id]
    assert await fetch(database, "select work_id from work_archive_rest") == [(work.id,)]


async def test_a_month_gets_its_partition_after_its_first_records(store: Store, database: str) -> None:
    first = await fetch(database, PARTITIONS)
    await run_sql(database, f"drop table {first[0][0]}")
    work = await steps.add_running_work(store)
    await steps.complete(store, work.id)
    # Every start of the embedded database does this, and so does `broker migrate`.
    await migration.migrate(database)
    assert await fetch(database, PARTITIONS) == first
    assert [record.work_id for record in await steps.get_records(store, task_id="task")] == [work.id]


async def test_a_concurrent_record_does_not_prevent_a_new_partition(
    store: Store, sql: asyncpg.Connection, database: str
) -> None:
    first = await fetch(database, PARTITIONS)
    await run_sql(database, f"drop table {first[0][0]}")
    work = await steps.add_running_work(store)
    async with steps.OpenTransaction(store) as completing:
        await completing.run(completion.complete, [steps.new_ending(work.id)])
        making = asyncio.create_task(store.run(retention.create_partitions))
        await steps.wait_until_blocked(sql)
    await making
    assert await fetch(database, PARTITIONS) == first
    assert [record.work_id for record in await steps.get_records(store, task_id="task")] == [work.id]


async def test_later_partitions_have_the_indexes_of_the_first_ones(store: Store, database: str) -> None:
    indexes = """
        select c.relname, count(*), count(*) filter (where i.indisprimary)
        from pg_inherits h join pg_class c on c.oid = h.inhrelid join pg_index i on i.indrelid = c.oid
        where h.inhparent = cast('work_archive' as regclass) group by 1 order by 1"""
    first = await fetch(database, indexes)
    await run_sql(database, f"drop table {first[0][0]}")
    await store.run(retention.create_partitions)
    assert await fetch(database, indexes) == first
    assert {row[1:] for row in first} == {(7, 1)}


async def test_an_error_of_postgresql_contains_advice(postgres: str) -> None:
    url = make_url(postgres).set(database="not_there").render_as_string(hide_password=False)
    finished = await run("", "migrate", BROKER_DATABASE_URL=url)
    makes = "createdb --owner USER --encoding UTF8 --template template0 NAME"
    says = f'database "not_there" does not exist; create it with `{makes}`'
    assert finished == (1, "", f"Error: The database refuses the request: {says}\n")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_is_not_utf8_is_refused_with_the_command_to_create_one(
    postgres: str, encoding: str, database: str, tmp_path: Path
) -> None:
    name = f"wrong_{encoding.lower()}"
    admin = await Address(postgres).connect()
    dump = tmp_path / "dump"
    assert (await run("", "backup", str(dump), BROKER_DATABASE_URL=database)).status == 0
    try:
        await admin.execute(f"create database {name} encoding '{encoding}' template template0 locale 'C'")
        url = make_url(postgres).set(database=name).render_as_string(hide_password=False)
        for arguments in (["migrate"], ["serve", "--port", "0"], ["restore", str(dump)], ["keys", "list"]):
            ended = await run("", *arguments, BROKER_DATABASE_URL=url)
            assert ended.status == 1, arguments
            [line] = ended.err.splitlines()
            assert encoding in line
            assert "createdb --encoding UTF8 --template template0" in line
        left = await Address(url).connect()
        assert (
            await left.fetchval("select count(*) from pg_class where relnamespace = 'public'::regnamespace")
            == 0
        )
        await left.close()
    finally:
        await admin.execute(f"drop database if exists {name} with (force)")
        await admin.close()


async def test_a_changed_column_of_prepared_statements_fails_no_request(
    store: Store, sql: asyncpg.Connection
) -> None:
    async def live(name: str) -> None:
        await store.one(submission.submit, steps.new_task(name))
        made = await store.one(assignment.assign, Pair(task_id=name, tool_id="tool"))
        assert made.work is not None
        await store.one(completion.complete, steps.new_ending(made.work.id))
        task = await store.read_one(tasks.find, name)
        assert task is not None
        assert task.state == "succeeded"

    await steps.register(store, "tool")
    await live("a")
    for table, column in (("tasks", "timeout_seconds"), ("work_archive", "attempt")):
        await sql.execute(f"alter table {table} alter {column} type numeric")
    await live("b")
