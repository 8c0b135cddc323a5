"""`broker serve` as its users run it: as a process that is stopped, killed and restarted."""

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

from broker.server.http_server import Server, create_server
from broker.settings import Settings
from broker.store.address import libpq_url
from tests.support.cli import run
from tests.support.processes import serving, wait_for_exit, wait_until_ready

LONG_POLLS = 1_000


class LongPoll:
    """A long poll over a plain socket. A thousand of them need few resources."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, url: str, path: str) -> "LongPoll":
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
        return cls(reader, writer)

    async def read_response(self) -> tuple[int, object]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await self._reader.readexactly(length)
        self._writer.close()
        return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def connect_to(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(libpq_url(database))
    yield connection
    await connection.close()


async def test_sigterm_ends_a_thousand_long_polls_and_the_process_within_two_seconds(database: str) -> None:
    with serving(BROKER_DATABASE_URL=database, BROKER_FALLBACK_SECONDS="60") as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post("/v1/tools", json={"id": "t", "skills": {}})
        polls = await asyncio.gather(
            *(LongPoll.start(url, "/v1/tools/t/work?wait=60") for _ in range(LONG_POLLS))
        )
        async with connect_to(database) as sql:
            await _wait_until_idle(sql)
            active = await sql.fetchval(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and state <> 'idle' and pid <> pg_backend_pid()"
            )
            connections = await sql.fetchval(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and backend_type = 'client backend'"
            )
        assert active == 0, "a long poll holds a statement or a transaction"
        assert connections <= 10, "long polls hold connections"

        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        responses = await asyncio.gather(*(poll.read_response() for poll in polls))
        assert responses == [(200, {"items": []})] * LONG_POLLS
        assert await wait_for_exit(process, within=2 - (time.monotonic() - began)) == 0


async def _wait_until_idle(sql: asyncpg.Connection) -> None:
    """Wait until all long polls have read: until the database has no further activity of the broker."""
    before, now = -1, 0
    async with asyncio.timeout(30):
        while before != now:
            before = now
            await sql.execute("select pg_sleep(0.3)")
            now = await sql.fetchval(
                "select count(*) filter (where state <> 'idle') + max(extract(epoch from state_change))"
                " from pg_stat_activity where application_name = 'broker'"
            )


async def test_error_about_an_old_schema_names_the_migrate_command(empty_database: str) -> None:
    with serving(BROKER_DATABASE_URL=empty_database) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        log = process.stderr.read().decode()
    assert "broker migrate" in log
    assert "Traceback" not in log


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
async def test_error_names_an_invalid_setting(setting: str, value: str) -> None:
    with serving(**{setting: value}) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        log = process.stderr.read().decode()
    assert setting in log
    assert "Traceback" not in log


async def test_service_without_keys_refuses_a_public_bind_address(data_dir: Path) -> None:
    with serving("--host", "0.0.0.0", BROKER_DATA_DIR=str(data_dir)) as (process, _):
        assert await wait_for_exit(process, within=20) == 1
        assert "0.0.0.0" in process.stderr.read().decode()


async def test_acknowledged_tasks_survive_kill_and_restart(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/v1/tasks", json={"id": "stored", "needs": 1})).status_code == 201
        process.kill()
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/tasks/stored")).json()["needs"] == 1
        process.send_signal(signal.SIGTERM)
        assert await wait_for_exit(process, within=3) == 0
    assert not (data_dir / "postgres" / "postmaster.pid").exists(), "PostgreSQL was not stopped cleanly"


async def test_closing_the_terminal_stops_the_embedded_database(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (process, url):
        await wait_until_ready(url)
        process.send_signal(signal.SIGHUP)
        assert await wait_for_exit(process, within=5) == 0
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


async def test_second_broker_on_the_same_folder_is_refused(data_dir: Path) -> None:
    with serving(BROKER_DATA_DIR=str(data_dir)) as (_, url):
        await wait_until_ready(url)
        with serving(BROKER_DATA_DIR=str(data_dir)) as (second, _):
            assert await wait_for_exit(second, within=20) == 1
            log = second.stderr.read().decode()
    assert str(data_dir) in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("host", "message"),
    [("127.0.0.1", "choose another --port"), ("no.such.host.invalid", "Cannot listen on")],
)
async def test_unusable_bind_address_is_refused_before_anything_starts(
    host: str, message: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        served = await run(
            "", "serve", "--host", host, "--port", port, BROKER_DATA_DIR=str(tmp_path / "data")
        )
    assert (served.status, message in served.err) == (1, True)
    assert "Traceback" not in served.err
    assert not (tmp_path / "data").exists()


async def test_first_response_has_the_headers_of_every_response(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup_may_end = asyncio.Event()
    monkeypatch.setattr(Server, "_warn_if_open", lambda _: startup_may_end.wait())
    server = create_server(Settings(database_url=database), port=0)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            response = await client.get("/health/live")
        startup_may_end.set()
        server.should_exit = True
        await task
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "date" in response.headers
