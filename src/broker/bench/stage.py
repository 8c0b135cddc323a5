"""The stage: a database server, and on it, for each round anew, a database and a service to measure."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import asyncpg
from msgspec import Struct

from broker.bench.http import BenchError, Connection
from broker.postgres.cluster import EmbeddedPostgres
from broker.store import migration
from broker.store.address import libpq_url

_READY_SECONDS = 30
_STOP_SECONDS = 10
_numbers = count()


class Service(Struct, frozen=True, kw_only=True):
    """A service that is up.

    Args:
        url: Where it is.
        pid: Its process; None where it was given.
        database: Its database's URL, as libpq reads it; None where it was given.
    """

    url: str
    pid: int | None = None
    database: str | None = None


class Stage:
    """Where the measurements take place.

    Args:
        postgres: A running embedded PostgreSQL; None: a service was given.
        given: The URL of that service.
    """

    def __init__(self, postgres: EmbeddedPostgres | None, given: str | None = None) -> None:
        self._postgres = postgres
        self._given = given
        self._kept: dict[str, str] = {}

    @property
    def ours(self) -> bool:
        """Whether services and databases can be made, so that ceilings can be measured."""
        return self._postgres is not None

    @property
    def pgbench(self) -> Path:
        """PostgreSQL's own benchmark."""
        return self._own.program("pgbench")

    @property
    def postmaster(self) -> int:
        """The process of the database server."""
        pid = self._own.pid
        if pid is None:
            raise BenchError("PostgreSQL is gone.")
        return pid

    @property
    def _own(self) -> EmbeddedPostgres:
        if self._postgres is None:
            raise BenchError("A service was given; what else there is cannot be measured.")
        return self._postgres

    @asynccontextmanager
    async def service(
        self, database: str | None = None, *, workers: int = 1, **environment: str
    ) -> AsyncIterator[Service]:
        """A service for the length of the block, or the one that was given.

        Args:
            database: Its database's URL; none: one of its own, which is empty.
            workers: How many processes serve it.
            environment: Settings of its own.
        """
        if self._given is not None:
            yield Service(url=self._given)
            return
        async with AsyncExitStack() as stack:
            if database is None:
                database = await stack.enter_async_context(self.database())
            command = ["-m", "broker.cli", "serve", "--workers", str(workers)]
            with _process(command, database, environment) as (url, pid):
                await _ready(url, "/health/ready")
                yield Service(url=url, pid=pid, database=database)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """An empty database with the schema, after a checkpoint, so that no round pays for another."""
        name = f"bench_{next(_numbers)}"
        try:
            yield await self._create(name)
        finally:
            await execute(self._server, f"drop database {name} with (force)")

    async def kept(self, name: str, fill: Callable[[str], Awaitable[None]]) -> str:
        """The URL of a database that all rounds share.

        Args:
            name: What it is called.
            fill: Is given its URL when it is first asked for.
        """
        if name not in self._kept:
            url = await self._create(name)
            await fill(url)
            self._kept[name] = url
        return self._kept[name]

    @property
    def _server(self) -> str:
        return libpq_url(self._own.url("postgres"))

    async def _create(self, name: str) -> str:
        await execute(self._server, f"create database {name}")
        url = self._own.url(name)
        await migration.migrate(url)
        await execute(self._server, "checkpoint")
        return libpq_url(url)

    @asynccontextmanager
    async def echo(self) -> AsyncIterator[str]:
        """A bare Litestar for the length of the block; its URL."""
        with _process(["-m", "broker.bench.echo"], None, {}) as (url, _):
            await _ready(url, "/echo")
            yield url


@contextmanager
def _process(
    arguments: list[str], database: str | None, environment: dict[str, str]
) -> Iterator[tuple[str, int]]:
    port = _free_port()
    broker = "serve" in arguments
    command = [sys.executable, *arguments, *(["--port", str(port)] if broker else [str(port)])]
    variables = os.environ | {"BROKER_LOG_LEVEL": "error"} | environment
    for name in ("BROKER_ADMIN_KEY", "BROKER_ADMIN_KEY_FILE"):
        variables.pop(name, None)
    if database is not None:
        variables["BROKER_DATABASE_URL"] = database
    process = subprocess.Popen(command, env=variables)  # noqa: S603 - our own modules
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _ready(url: str, path: str) -> None:
    async with asyncio.timeout(_READY_SECONDS):
        while True:
            with contextlib.suppress(OSError, BenchError):
                async with Connection(url) as connection:
                    if (await connection.send("GET", path)).status < 500:
                        return
            await asyncio.sleep(0.02)


async def execute(url: str, statement: str) -> None:
    """Run a statement, or several without arguments."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
