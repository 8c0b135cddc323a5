"""A backup is whole, a restore is all or nothing, and what is restored goes on as the contract says."""

import asyncio
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from broker.embedded import EmbeddedPostgres
from broker.store.address import libpq_url
from tests.conftest import a_folder, run_sql
from tests.helpers import (
    add_task,
    add_tool,
    an_environment,
    assigned,
    complete,
    completed,
    get,
    ids,
    is_problem,
    serving,
    started,
    until_ready,
)

ADMIN = "the-admin-key-of-these-tests"


def broker(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "broker.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=an_environment(**environment), capture_output=True, text=True, timeout=120, check=False
    )


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout


def refused(run: subprocess.CompletedProcess[str], why: str) -> None:
    assert run.returncode == 1
    assert why in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    with a_folder() as folder:
        yield folder


@contextmanager
def service(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with serving(BROKER_DATA_DIR=str(data), BROKER_ADMIN_KEY=ADMIN) as (process, url):
        try:
            yield process, url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def client(url: str, key: str = ADMIN) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


async def test_what_is_restored_goes_on_as_the_contract_says(folder: Path) -> None:
    data, file = {"BROKER_DATA_DIR": str(folder / "data")}, folder / "lab.backup"
    with service(folder / "data") as (_, url):
        await until_ready(url)
        early = done(broker("keys", "create", "--role", "submitter", "--name", "early", **data)).split()[-1]
        async with client(url) as http:
            ended = await started(http, "ended", "t")
            await completed(http, ended.work, result={"n": 1})
            failed = await started(http, "failed", "t", max_attempts=1)
            await completed(http, failed.work, "failed", error="no")
            runs = await started(http, "runs", "t")
            waits = await assigned(http, "assigned", "t")
            await add_task(http, "available")
            await add_task(http, "later", not_before="2100-01-01T00:00:00Z")
            token = (await add_tool(http, "kept"))["token"]
            cursor = (await get(http, "/v1/candidates"))["cursor"]
            before = {task["id"]: task for task in (await get(http, "/v1/tasks"))["items"]}
            record = await get(http, f"/v1/archive/{ended.work}")

            assert "in " in broker("backup", file, **data).stderr
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

            # What comes after it, and is not in it.
            await completed(http, runs.work)
            await add_task(http, "after")
            late = done(broker("keys", "create", "--role", "operator", "--name", "late", **data)).split()[-1]
            done(broker("keys", "revoke", "early", **data))

    anew = {"BROKER_DATA_DIR": str(folder / "anew")}
    done(broker("restore", file, **anew))
    with service(folder / "anew") as (_, url):
        await until_ready(url)
        async with client(url) as http:
            after = {task["id"]: task for task in (await get(http, "/v1/tasks"))["items"]}
            assert after == before
            assert await get(http, f"/v1/archive/{ended.work}") == record
            is_problem(await http.get("/v1/candidates", params={"cursor": cursor}), 410, "cursor_expired")
            found = await get(http, "/v1/candidates")
            assert ids(found["tasks"]) == ["available"]
            # And with the new cursor there is nothing new, and nobody spins.
            again = await get(http, "/v1/candidates", cursor=found["cursor"], wait=0.3)
            assert (again["tasks"], again["tools"]) == ([], [])
            await add_task(http, "new")
            assert ids((await get(http, "/v1/candidates", cursor=again["cursor"]))["tasks"]) == ["new"]

            # A tool that had ended its work since says so again.
            assert (await complete(http, runs.work)).status_code == 200
            assert (await http.post(f"/v1/work/{waits.work}/start")).status_code == 200
            # What was submitted since is submitted again.
            await add_task(http, "after")
        for key, status in ((early, 200), (late, 401)):
            async with client(url, key) as http:
                assert (await http.get("/v1/tasks")).status_code == status
        async with client(url, token) as http:
            assert (await http.post("/v1/tools/kept/heartbeat")).status_code == 200
            events = await http.get("/v1/events")
            assert events.status_code == 403  # a tool's token is still no more than that


async def test_a_backup_taken_under_load_is_of_one_moment(folder: Path) -> None:
    file = folder / "busy.backup"
    data = {"BROKER_DATA_DIR": str(folder / "data")}
    with service(folder / "data") as (_, url):
        await until_ready(url)
        async with client(url) as http:
            stop = asyncio.Event()

            async def live() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    pair = await started(http, f"n{number}")
                    await completed(http, pair.work)

            living = asyncio.create_task(live())
            await until_it_is_there(http)
            done(await asyncio.to_thread(lambda: broker("backup", file, **data)))
            stop.set()
            await living
    anew = folder / "anew"
    done(broker("restore", file, BROKER_DATA_DIR=str(anew)))
    with EmbeddedPostgres(anew) as embedded:
        sql = await asyncpg.connect(libpq_url(embedded.url()))
        try:
            wrong = await sql.fetchval(
                """
                select count(*) from tools t
                where load <> (select count(*) from work w where w.tool_id = t.id)
                """
            )
            twice = await sql.fetchval(
                "select count(*) from tasks where id in (select task_id from ended_tasks)"
            )
        finally:
            await sql.close()
    assert (wrong, twice) == (0, 0)


async def until_it_is_there(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while not (await get(http, "/v1/archive"))["items"]:
            await asyncio.sleep(0.02)


def test_a_database_with_something_in_it_is_never_touched(folder: Path) -> None:
    data = {"BROKER_DATA_DIR": str(folder / "data")}
    done(broker("keys", "create", "--role", "admin", "--name", "me", **data))
    done(broker("backup", folder / "a", **data))
    refused(broker("restore", folder / "a", **data), "Choose a new folder: set BROKER_DATA_DIR")
    assert "me" in done(broker("keys", "list", **data))
    refused(broker("backup", folder / "a", **data), "--overwrite replaces it")
    done(broker("backup", folder / "a", "--overwrite", **data))


def test_what_is_no_backup_or_a_piece_of_one_leaves_nothing_behind(folder: Path) -> None:
    data, anew = {"BROKER_DATA_DIR": str(folder / "data")}, {"BROKER_DATA_DIR": str(folder / "anew")}
    refused(broker("backup", folder / "a", **anew), "There is no")
    done(broker("keys", "create", "--role", "admin", "--name", "me", **data))
    done(broker("backup", folder / "a", **data))
    whole = (folder / "a").read_bytes()
    (folder / "text").write_text("select 1;")
    (folder / "piece").write_bytes(whole[: len(whole) - 20])
    refused(broker("restore", folder / "text", **anew), "no file that `broker backup`")
    refused(broker("restore", folder / "piece", **anew), "Nothing was restored")
    # Nothing of it is there: the whole one finds an empty database.
    done(broker("restore", folder / "a", **anew))
    assert "me" in done(broker("keys", "list", **anew))
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["a", "piece", "text"]


async def test_a_database_of_ones_own_by_our_commands_or_by_postgresqls(
    database: str, empty_database: str, folder: Path, sql: asyncpg.Connection
) -> None:
    await sql.execute("insert into keys (name, roles, hash) values ('me', '{admin}', 'one')")
    done(broker("backup", folder / "a", BROKER_DATABASE_URL=database))
    done(broker("restore", folder / "a", BROKER_DATABASE_URL=empty_database))
    restored = await asyncpg.connect(libpq_url(empty_database))
    try:
        assert await restored.fetchval("select name from keys") == "me"
    finally:
        await restored.close()
    refused(broker("restore", folder / "a", BROKER_DATABASE_URL=database), "Choose an empty database")


async def test_a_later_programs_backup_is_refused(database: str, empty_database: str, folder: Path) -> None:
    await run_sql(database, "update alembic_version set version_num = '9999'")
    done(broker("backup", folder / "a", BROKER_DATABASE_URL=database))
    refused(broker("restore", folder / "a", BROKER_DATABASE_URL=empty_database), "Install a later broker")


def test_told_to_stop_it_leaves_nothing(database: str, folder: Path) -> None:
    # A disk that takes nothing stands for one that is full.
    refused(broker("backup", folder / "none" / "a", BROKER_DATABASE_URL=database), "cannot be written")
    assert list(folder.iterdir()) == []
