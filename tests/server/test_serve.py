"""`broker serve` as its users run it: a process of its own, told to stop, killed, started again."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from broker.store.address import libpq_url
from tests.support.cli import run
from tests.support.processes import serving, wait_for_exit, wait_until_ready

PARKED = 1_000


class Poll:
    """A long poll over a bare socket: a thousand of them cost little."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def park(cls, url: str, path: str) -> "Poll":
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
        return cls(reader, writer)

    async def answer(self) -> tuple[int, object]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await self._reader.readexactly(length)
        self._writer.close()
        return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def looking_at(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(libpq_url(database))
    yield connection
    await connection.close()


async def test_sigterm_answers_a_thousand_parked_polls_and_is_gone_within_two_seconds(database: str) -> None:
    with serving(BROKER_DATABASE_URL=database, BROKER_FALLBACK_SECONDS="60") as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post("/v1/tools", json={"id": "t", "skills": {}})
        polls = await asyncio.gather(*(Poll.park(url, "/v1/tools/t/work?wait=60") for _ in range(PARKED)))
        async with looking_at(database) as sql:
            await _until_idle(sql)
            holding = await sql.fetchval(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and state <> 'idle' and pid <> pg_backend_pid()"
            )
            kept = await sql.fetchval(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and backend_type = 'client backend'"
            )
        assert holding == 0, "a parked poll is in the middle of a statement or a transaction"
        assert kept <= 10, "parked polls keep connections"

        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        answers = await asyncio.gather(*(poll.answer() for poll in polls))
        assert answers == [(200, {"items": []})] * PARKED
        assert await wait_for_exit(process, within=2 - (time.monotonic() - began)) == 0


async def _until_idle(sql: asyncpg.Connection) -> None:
    """Wait until all parked polls have looked: until the database's count of transactions stands still."""
    seen, now = -1, 0
    async with asyncio.timeout(30):
        while seen != now:
            seen = now
            await sql.execute("select pg_sleep(0.3)")
            now = await sql.fetchval(
                "select count(*) filter (where state <> 'idle') + max(extract(epoch from state_change))"
                " from pg_stat_activity where application_name = 'broker'"
            )


async def test_a_database_with_an_old_schema_is_refused_with_the_way_out(empty_database: str) -> None:
    with serving(BROKER_DATABASE_URL=empty_database) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        said = process.stderr.read().decode()
    assert "broker migrate" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BROKER_DATABASE_URL", "nonsense"),
        ("BROKER_POOL_SIZE", "many"),
        ("BROKER_DATABASE_URL", "postgresql:/x"),
        ("BROKER_DATABASE_URL", "postgresql://127.0.0.1:1/x"),
        ("PROMETHEUS_MULTIPROC_DIR", "/tmp"),
        ("PROMETHEUS_MULTIPROC_DIR", ""),
    ],
)
async def test_a_setting_that_cannot_be_used_is_named(setting: str, value: str) -> None:
    with serving(**{setting: value}) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        said = process.stderr.read().decode()
    assert setting in said
    assert "Traceback" not in said


async def test_it_does_not_listen_beyond_this_machine(data_dir: Path) -> None:
    with serving("--host", "0.0.0.0", BROKER_DATA_DIR=str(data_dir)) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        assert "0.0.0.0" in process.stderr.read().decode()


async def test_what_was_acknowledged_is_there_after_kill_and_restart(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/v1/tasks", json={"id": "kept", "needs": 1})).status_code == 201
        process.kill()
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/tasks/kept")).json()["needs"] == 1
        process.send_signal(signal.SIGTERM)
        assert await wait_for_exit(process, within=3) == 0
    assert not (data_dir / "postgres" / "postmaster.pid").exists(), "PostgreSQL was not stopped cleanly"


async def test_when_its_terminal_is_closed_it_stops_its_database_too(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        process.send_signal(signal.SIGHUP)
        assert await wait_for_exit(process, within=5) == 0
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


async def test_two_brokers_on_one_folder_are_told_apart(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (_, url):
        await wait_until_ready(url)
        with serving(BROKER_DATA_DIR=str(data_dir)) as (second, _):
            assert await wait_for_exit(second, within=20) == 1
            said = second.stderr.read().decode()
    assert str(data_dir) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("host", "says"),
    [("127.0.0.1", "--port takes another one"), ("no.such.host.invalid", "Cannot listen on")],
)
async def test_an_address_that_cannot_be_had_is_told_before_anything_is_started(
    host: str, says: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        served = await run(
            "", "serve", "--host", host, "--port", port, BROKER_DATA_DIR=str(tmp_path / "data")
        )
    assert (served.status, says in served.err) == (1, True)
    assert "Traceback" not in served.err
    assert not (tmp_path / "data").exists()
