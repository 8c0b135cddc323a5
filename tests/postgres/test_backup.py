"""`broker backup` and `broker restore`: complete databases, and errors that leave nothing behind."""

import asyncio
import fcntl
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio
from sqlalchemy import make_url

from broker.cli.database import migrated_database
from broker.errors import CursorExpired
from broker.postgres.account import Account
from broker.postgres.backup import DatabaseTarget
from broker.postgres.programs import Programs
from broker.settings import Settings
from broker.store import candidates, schema_version
from broker.store.address import libpq_url
from tests import ROOT
from tests.conftest import run_sql, temporary_database, temporary_folder
from tests.support import markdown
from tests.support.api import add_running_work, add_task, complete_work
from tests.support.cli import CommandResult, run, running
from tests.support.next_version import add_migration, copy_sources
from tests.support.processes import clean_environment, names_in
from tests.support.shared import SHARED_BROKER
from tests.support.steps import open_store

pytestmark, database, broker, sql, http = SHARED_BROKER

PAGE = (ROOT / "docs" / "operate" / "backup.md").read_text()


@pytest_asyncio.fixture(loop_scope="module")
async def dump(http: httpx.AsyncClient, database: str, tmp_path: Path) -> Path:
    """Back up a database with a task, and return the file."""
    await add_task(http)
    file = tmp_path / "broker.dump"
    result = await run("", "backup", str(file), BROKER_DATABASE_URL=database)
    assert result.status == 0, result.err
    return file


@pytest_asyncio.fixture(loop_scope="module")
async def empty(postgres: str) -> AsyncIterator[str]:
    """Yield the URL of an empty database."""
    async with temporary_database(postgres) as url:
        yield url


async def all_rows(url: str) -> dict[str, list[str]]:
    """Return all rows of all tables of a database, as text."""
    connection = await asyncpg.connect(libpq_url(url))
    try:
        tables = await connection.fetch(
            "select c.oid::regclass::text as name from pg_class c"
            " where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'"
        )
        return {
            name: [row[0] for row in await connection.fetch(f"select t::text from {name} t order by 1")]
            for (name,) in tables
        }
    finally:
        await connection.close()


def content(file: Path) -> bytes:
    return file.read_bytes()


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def restore(file: Path, url: str) -> CommandResult:
    return await run("", "restore", str(file), BROKER_DATABASE_URL=url)


async def test_restored_database_has_every_row_of_the_original(
    http: httpx.AsyncClient, database: str, empty: str, tmp_path: Path
) -> None:
    digits = "[1.10, 123456789012345678901234567890]"
    await http.post("/v1/tasks", content=f'{{"id": "exact", "needs": 1, "payload": {digits}}}')
    await add_task(http, "later", not_before="2100-01-01T00:00:00Z")
    await complete_work(http, (await add_running_work(http, "ended")).work)
    await http.post(
        f"/v1/work/{(await add_running_work(http, 'runs')).work}/reports", json={"message": "half"}
    )
    result = await run("", "backup", str(tmp_path / "a.dump"), BROKER_DATABASE_URL=database)
    assert result.err.endswith(" kB, from the database of BROKER_DATABASE_URL.\n")
    before = await all_rows(database)
    assert len(before["tasks"]) == 3
    result = await restore(tmp_path / "a.dump", empty)
    assert result.status == 0, result.err
    assert f"Its schema has version {schema_version.required_version()}" in result.err
    assert await all_rows(empty) == before
    # Without statistics, PostgreSQL would plan as for empty tables.
    connection = await asyncpg.connect(libpq_url(empty))
    assert await connection.fetchval("select reltuples from pg_class where relname = 'tasks'") == 3
    await connection.close()


async def test_backup_is_private_and_overwritten_only_with_the_option(dump: Path, database: str) -> None:
    assert mode(dump) == 0o600
    put(dump, b"precious")
    result = await run("", "backup", str(dump), BROKER_DATABASE_URL=database)
    assert result == (1, "", f"Error: {dump} already exists. Use --overwrite to replace it.\n")
    assert content(dump) == b"precious"
    result = await run("", "backup", str(dump), "--overwrite", BROKER_DATABASE_URL=database)
    assert result.status == 0
    assert content(dump).startswith(b"PGDMP")
    assert mode(dump) == 0o600
    assert names_in(dump.parent) == ["broker.dump"]


async def test_restore_refuses_a_database_that_is_not_empty(dump: Path, empty: str) -> None:
    connection = await asyncpg.connect(libpq_url(empty))
    await connection.execute("create schema mine; create table mine.measured as select 17 as value")
    result = await restore(dump, empty)
    assert result.status == 1
    assert "The database of BROKER_DATABASE_URL is not empty (it contains mine.measured)" in result.err
    assert "Set BROKER_DATABASE_URL to a new database" in result.err
    assert await connection.fetchval("select value from mine.measured") == 17
    await connection.close()
    assert await all_rows(empty) == {}


@pytest.mark.parametrize(
    "made",
    [
        "create function mine() returns integer language sql as 'select 17'",
        "create type mine as enum ('a')",
        "create type mine as (a integer)",
        "create table mine (a integer)",
        "create domain mine as integer",
    ],
)
async def test_database_with_only_a_function_or_a_type_is_not_empty(empty: str, made: str) -> None:
    await run_sql(empty, made)
    async with open_store(empty) as store:
        assert await store.run(schema_version.first_object) == "public.mine"


async def test_next_backup_removes_the_partial_file_of_a_killed_one(dump: Path, database: str) -> None:
    def partial_file() -> Path:
        left = dump.with_name(f".{dump.name}.{uuid4().hex}.partial")
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
        return left

    partial_file()
    at_work, just_begun, pipe = (partial_file() for _ in range(3))
    os.utime(just_begun)
    pipe.unlink()
    os.mkfifo(pipe)
    with at_work.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = await run("", "backup", str(dump), "--overwrite", BROKER_DATABASE_URL=database)
    assert result.status == 0, result.err
    assert set(names_in(dump.parent)) == {at_work.name, just_begun.name, pipe.name, dump.name}


async def test_cursor_expires_when_a_database_is_restored_under_its_old_name(
    postgres: str, template: str, tmp_path: Path
) -> None:
    async with temporary_database(postgres, template) as url:
        async with open_store(url) as store:
            cursor = (await store.run(candidates.candidates, cursor=None, limit=10)).cursor
        result = await run("", "backup", str(tmp_path / "a"), BROKER_DATABASE_URL=url)
        assert result.status == 0, result.err
        name = make_url(url).database
        await run_sql(postgres, f"drop database {name}", f"create database {name}")
        assert (await restore(tmp_path / "a", url)).status == 0
        async with open_store(url) as store:
            with pytest.raises(CursorExpired):
                await store.run(candidates.candidates, cursor=cursor, limit=10)


async def test_damaged_backup_is_refused_and_leaves_the_database_empty(dump: Path, empty: str) -> None:
    whole = content(dump)
    for part in (whole[:3], whole[:300], whole[: len(whole) // 2], whole[:-1]):
        put(dump, part)
        result = await restore(dump, empty)
        assert result.status == 1, len(part)
        assert result.err.startswith(("Error: This is not a file from", "Error: Cannot read the dump"))
        assert await all_rows(empty) == {}
    put(dump, whole)
    assert (await restore(dump, empty)).status == 0


async def test_file_that_is_not_a_backup_is_refused(empty: str, tmp_path: Path) -> None:
    put(tmp_path / "text", b"select 1;")
    result = await restore(tmp_path / "text", empty)
    assert result.err == ("Error: This is not a file from `broker backup` or `pg_dump --format=custom`.\n")
    result = await restore(tmp_path / "missing", empty)
    assert result.status == 2
    assert "does not exist" in result.err


async def test_failed_restore_shows_the_error_of_postgresql_and_leaves_nothing(
    dump: Path, empty: str
) -> None:
    connection = await asyncpg.connect(libpq_url(empty))
    await connection.execute("drop schema public")
    await connection.close()
    result = await restore(dump, empty)
    assert result.status == 1
    assert result.err.startswith("Error: Cannot restore the dump, and the database is unchanged")
    assert 'schema "public" does not exist' in result.err
    connection = await asyncpg.connect(libpq_url(empty))
    assert await connection.fetchval("select count(*) from pg_namespace where nspname !~ '^(pg_|info)'") == 0
    await connection.close()


async def test_backup_of_an_older_version_is_upgraded_by_the_restore(
    postgres: str, template: str, empty: str, tmp_path: Path
) -> None:
    async with temporary_database(postgres, template) as old:
        months = [name for name in await all_rows(old) if name.startswith("work_archive_2")]
        # The backup is from a time before these partitions existed.
        await run_sql(old, *(f"drop table {name}" for name in months))
        result = await run("", "backup", str(tmp_path / "old.dump"), BROKER_DATABASE_URL=old)
        assert result.status == 0, result.err
    copy_sources(tmp_path, "src", "migrations")
    newest = add_migration(tmp_path, "alter table tasks add column made_up text")
    later = {"BROKER_DATABASE_URL": empty, "PYTHONPATH": str(tmp_path / "src")}
    result = await run("", "restore", str(tmp_path / "old.dump"), **later)
    assert result.status == 0, result.err
    restored = await all_rows(empty)
    assert restored["alembic_version"] == [f"({newest})"]
    assert months
    assert set(months) < restored.keys()


async def test_backup_of_a_newer_version_is_refused(
    postgres: str, template: str, empty: str, tmp_path: Path
) -> None:
    async with temporary_database(postgres, template) as new:
        connection = await asyncpg.connect(libpq_url(new))
        await connection.execute("update alembic_version set version_num = '9999'")
        await connection.close()
        assert (await run("", "backup", str(tmp_path / "new"), BROKER_DATABASE_URL=new)).status == 0
    result = await restore(tmp_path / "new", empty)
    assert result.status == 1
    assert "its schema has version 9999, and this broker knows versions up to" in result.err
    assert await all_rows(empty) == {}


async def test_backup_of_an_empty_database_is_an_error(empty: str, tmp_path: Path) -> None:
    result = await run("", "backup", str(tmp_path / "a"), BROKER_DATABASE_URL=empty)
    error = "Error: There is nothing to back up: the database of BROKER_DATABASE_URL is empty.\n"
    assert result == (1, "", error)
    result = await run("", "backup", str(tmp_path / "a"), BROKER_DATA_DIR=str(tmp_path / "data"))
    assert result.status == 1
    assert f"There is no embedded database in {tmp_path / 'data'} yet" in result.err
    assert names_in(tmp_path) == []


async def test_unreachable_database_is_reported_without_its_password(dump: Path) -> None:
    away = "postgresql://nobody:secret@127.0.0.1:9/none"
    for command in (["backup", str(dump), "--overwrite"], ["restore", str(dump)]):
        result = await run("", *command, BROKER_DATABASE_URL=away)
        assert result.status == 1
        assert result.err.startswith("Error: The database does not respond: ")
        assert "secret" not in result.err


async def test_backup_on_a_full_disk_fails_and_leaves_no_file(
    http: httpx.AsyncClient, database: str, tmp_path: Path
) -> None:
    await add_task(http, payload=os.urandom(500_000).hex())
    # No file can grow beyond 64 kB.
    command = f"ulimit -f 64; exec {shlex.quote(sys.executable)} -m broker.cli backup {tmp_path / 'a.dump'}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command), env=clean_environment(BROKER_DATABASE_URL=database), stderr=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"Error: Cannot write the dump: ")
    assert names_in(tmp_path) == []


@pytest.fixture
def ctrl_c(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the handler of Ctrl-C that commands inherit. Commands that a script starts with `&` ignore it."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "ctrl_c"),
    [
        (signal.SIGTERM, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_IGN),
        (signal.SIGINT, signal.default_int_handler),
    ],
    indirect=["ctrl_c"],
)
async def test_stopped_backup_leaves_no_file(
    database: str, sql: asyncpg.Connection, tmp_path: Path, number: signal.Signals
) -> None:
    # In a transaction, these views do not change after their first use unless the snapshot is cleared.
    running_count = (
        "select count(*), pg_stat_clear_snapshot() from pg_stat_activity where application_name = 'pg_dump'"
    )
    async with sql.transaction():
        # The backup waits for this lock.
        await sql.execute("lock table keys in access exclusive mode")
        environment = {"BROKER_DATABASE_URL": database}
        async with running("", "backup", str(tmp_path / "a.dump"), **environment) as process:
            async with asyncio.timeout(20):
                while not await sql.fetchval(f"{running_count} and wait_event_type = 'Lock'"):
                    await asyncio.sleep(0.02)
                process.send_signal(number)
                _, err = await process.communicate()
    assert process.returncode == (1 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in err
    assert names_in(tmp_path) == []
    async with asyncio.timeout(20):
        while await sql.fetchval(running_count):
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], indirect=True)
async def test_stopped_restore_leaves_the_database_empty(
    dump: Path, empty: str, sql: asyncpg.Connection
) -> None:
    running_count = "select count(*) from pg_stat_activity where application_name = 'psql' and datname = $1"
    name = make_url(empty).database
    connection = await asyncpg.connect(libpq_url(empty))
    transaction = connection.transaction()
    await transaction.start()
    # The restore waits for this lock after it has created some tables.
    await connection.execute("create table work_reports (id int)")
    async with running("", "restore", str(dump), BROKER_DATABASE_URL=empty) as process:
        async with asyncio.timeout(20):
            while not await sql.fetchval(f"{running_count} and wait_event_type = 'Lock'", name):
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            _, err = await process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGTERM, b"")
    await transaction.rollback()
    await connection.close()
    async with asyncio.timeout(20):
        while await sql.fetchval(running_count, name):
            await asyncio.sleep(0.02)
    assert await all_rows(empty) == {}


@pytest.mark.parametrize(
    ("url", "expected", "password"),
    [
        ("postgresql+asyncpg://me:a%2Fb@db/x", "postgresql://me@db/x", "a/b"),
        ("postgres://me:p:q@a:1,b:2/x?sslmode=require", "postgresql://me@a:1,b:2/x?sslmode=require", "p:q"),
        ("postgresql://db/x?user=me&password=s%26t", "postgresql://db/x?user=me", "s&t"),
        ("postgresql://me@/x?host=/a%20b&port=5", "postgresql://me@/x?host=%2Fa%20b&port=5", None),
    ],
)
async def test_password_is_never_on_a_command_line(url: str, expected: str, password: str | None) -> None:
    target = DatabaseTarget.of(url, own=True)
    assert target.url == expected
    assert target.environment.get("PGPASSWORD") == password


async def test_pg_variables_do_not_apply_to_the_embedded_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PGPASSFILE", "PGOPTIONS", "BROKER_KEY"):
        monkeypatch.setenv(name, "x")
    own, embedded = (DatabaseTarget.of("postgresql://db/x", own=own).environment for own in (True, False))
    assert {"PGPASSFILE", "PGOPTIONS"} <= own.keys()
    assert not {"PGPASSFILE", "PGOPTIONS"} & embedded.keys()
    assert "BROKER_KEY" not in own.keys() | embedded.keys()


def make_embedded_database(folder: Path) -> None:
    with migrated_database(Settings(data_dir=folder)):
        pass


async def test_embedded_database_is_backed_up_and_restored_into_a_new_folder() -> None:
    with temporary_folder() as folder:
        source, restored = ({"BROKER_DATA_DIR": str(folder / name)} for name in ("source", "restored"))
        await asyncio.to_thread(make_embedded_database, folder / "source")
        created = await run("", "keys", "create", "--role", "admin", "--name", "me", **source)
        assert created.status == 0, created.err
        file = str(folder / "broker.dump")
        assert (await run("", "backup", file, **source)).status == 0
        result = await run("", "restore", file, **restored)
        assert result.status == 0, result.err
        assert "me    admin" in (await run("", "keys", "list", **restored)).out


async def test_documented_commands_of_postgresql_restore_the_same_rows(
    http: httpx.AsyncClient, postgres: str, database: str, sql: asyncpg.Connection, empty: str, tmp_path: Path
) -> None:
    await add_task(http)
    [recipe] = [
        block.code for block in markdown.blocks(PAGE) if block.directive == "file: dump-and-restore.sh"
    ]
    put(tmp_path / "recipe", recipe.encode())
    # The bundled programs are too new for an old server.
    programs = [str(Path(sys.executable).parent)]
    if await sql.fetchval("select current_setting('server_version_num')::int") >= 170_000:
        programs.append(str(Programs.find(Account(), tmp_path).folder))
    path = ":".join([*programs, os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        *("sh", str(tmp_path / "recipe"), libpq_url(database), libpq_url(empty)),
        cwd=tmp_path,
        env=clean_environment(PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert await all_rows(empty) == await all_rows(database)
    async with temporary_database(postgres) as other:
        assert (await restore(tmp_path / "own.dump", other)).status == 0
        assert await all_rows(other) == await all_rows(database)
