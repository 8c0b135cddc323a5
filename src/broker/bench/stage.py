"""Set up the measured services: a database server, and for each round a new database and service on it."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from itertools import count
from pathlib import Path

from msgspec import Struct, field

from broker.bench.database import execute
from broker.bench.http import BenchError, HttpConnection
from broker.bench.meter import Meter
from broker.postgres.cluster import EmbeddedPostgres
from broker.server.child_process import child_process, free_port
from broker.store import migration
from broker.store.address import libpq_url

_READY_SECONDS = 30
_numbers = count()


class BenchService(Struct, frozen=True, kw_only=True):
    """A running service.

    Args:
        url: The URL of the service.
        pid: The process id; 0 for a given service.
        database: The URL of the database for libpq; empty for a given service.
        meter: Measures the cost of the tasks. It measures nothing for a given service.
    """

    url: str
    pid: int = 0
    database: str = ""
    meter: Meter = field(default_factory=Meter)


class Stage:
    """The databases and services of the measurements.

    Args:
        postgres: A running embedded PostgreSQL; None to measure a given service.
        given: The URL of the given service.
    """

    def __init__(self, postgres: EmbeddedPostgres | None, given: str | None = None) -> None:
        self._postgres = postgres
        self._given = given
        self._shared: dict[str, str] = {}

    @property
    def is_own(self) -> bool:
        """Return whether the stage can start services and databases, to measure the limits of the machine."""
        return self._postgres is not None

    @property
    def pgbench(self) -> Path:
        """Return the path of pgbench, the benchmark of PostgreSQL."""
        return self._own.program("pgbench")

    @property
    def postgres_version(self) -> str | None:
        """Return the version of the database server; None for a given service."""
        if not self.is_own:
            return None
        shown = subprocess.run([self.pgbench, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
        return str(shown.stdout.split()[-1])

    @property
    def postmaster(self) -> int:
        """Return the process id of the database server."""
        pid = self._own.pid
        if pid is None:
            raise BenchError("PostgreSQL has stopped.")
        return pid

    @property
    def _own(self) -> EmbeddedPostgres:
        if self._postgres is None:
            raise BenchError("With --url, only the service itself can be measured.")
        return self._postgres

    @asynccontextmanager
    async def service(
        self, database: str | None = None, *, workers: int = 1, **environment: str
    ) -> AsyncIterator[BenchService]:
        """Run a service during the block, or yield the given one.

        Args:
            database: The database's URL; None for a new database.
            workers: The number of worker processes.
            environment: Settings of the service.
        """
        if self._given is not None:
            yield BenchService(url=self._given)
            return
        async with self.database() if database is None else nullcontext(database) as url_of_database:
            port = str(free_port())
            command = ["broker.cli", "serve", "--workers", str(workers), "--port", port]
            settings = _environment(BROKER_DATABASE_URL=url_of_database, **environment)
            with child_process(*command, environment=settings) as pid:
                url = f"http://127.0.0.1:{port}"
                await _until_ready(url, "/health/ready")
                meter = Meter([pid], self.postmaster, url_of_database)
                yield BenchService(url=url, pid=pid, database=url_of_database, meter=meter)
            if database is None:
                await meter.read_dead_tuples()

    @asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """Yield the URL of a new database. A checkpoint comes first, so that no round delays the next one.

        Args:
            migrated: Whether the database has the tables of the broker.
        """
        name = f"bench_{next(_numbers)}"
        try:
            yield await self._create(name, migrated=migrated)
        finally:
            await execute(self._server, f"drop database {name} with (force)")

    async def shared_database(self, name: str, fill: Callable[[str], Awaitable[None]]) -> str:
        """Return the URL of a database that all rounds share, and `fill` it if it is new."""
        if name not in self._shared:
            url = await self._create(name)
            await fill(url)
            self._shared[name] = url
        return self._shared[name]

    @property
    def _server(self) -> str:
        return libpq_url(self._own.url("postgres"))

    async def _create(self, name: str, *, migrated: bool = True) -> str:
        await execute(self._server, f"create database {name}")
        url = self._own.url(name)
        if migrated:
            await migration.migrate(url)
        await execute(self._server, "checkpoint")
        return libpq_url(url)

    @asynccontextmanager
    async def echo(self) -> AsyncIterator[str]:
        """Run a bare Litestar during the block, and yield its URL."""
        port = str(free_port())
        with child_process("broker.bench.echo", port, environment=_environment()):
            url = f"http://127.0.0.1:{port}"
            await _until_ready(url, "/echo")
            yield url


def _environment(**settings: str) -> dict[str, str]:
    """Return the environment of a measured process, which logs only errors and needs no key."""
    variables = os.environ | {"BROKER_LOG_LEVEL": "error"} | settings
    for name in ("BROKER_ADMIN_KEY", "BROKER_ADMIN_KEY_FILE"):
        variables.pop(name, None)
    return variables


async def _until_ready(url: str, path: str) -> None:
    async with asyncio.timeout(_READY_SECONDS):
        while True:
            with contextlib.suppress(OSError, BenchError):
                async with HttpConnection(url) as connection:
                    if (await connection.send("GET", path)).status < 500:
                        return
            await asyncio.sleep(0.02)
