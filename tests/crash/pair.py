"""A primary and a standby that has all that was acknowledged, from the embedded PostgreSQL's programs."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from broker.embedded import EmbeddedPostgres
from broker.embedded.programs import Programs
from broker.store import schema
from tests.proxy import Proxy

PATIENCE_SECONDS = 30


class Server:
    """One of the two.

    Args:
        programs: PostgreSQL's programs, and the account that runs them.
        folder: Where its data are, and its socket is made.
        settings: Beside what is in its configuration.
    """

    def __init__(self, programs: Programs, folder: Path, **settings: str) -> None:
        self._programs = programs
        self._data = folder / "postgres"
        self._socket = programs.account.make_private(folder / "socket")
        self._settings = {"listen_addresses": "", "unix_socket_directories": str(self._socket)} | settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://broker@/broker?host={self._socket}&port=5432"

    async def start(self) -> None:
        options = [part for item in self._settings.items() for part in ("-c", "=".join(item))]
        command = [self._programs.path("postgres"), "-D", self._data, *options]
        self._process = self._programs.account.spawn(command, output=subprocess.DEVNULL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self._answers():
                assert self._process.poll() is None, "PostgreSQL ended instead of starting"
                await asyncio.sleep(0.02)

    def sql(self, statement: str) -> str:
        where = ("-h", self._socket, "-U", "broker", "-d", "broker", "-Atqc", statement)
        return self._programs.run("psql", *where)

    def copy_to(self, folder: Path) -> None:
        """Make a standby of this in another folder."""
        where = ("-h", self._socket, "-U", "broker", "-D", folder / "postgres")
        self._programs.run("pg_basebackup", *where, "-R", "-X", "stream", "-c", "fast")

    def promote(self) -> None:
        self._programs.run("pg_ctl", "promote", "-D", self._data, "-w")

    async def kill(self) -> None:
        """End it without a word, with everything that it has started."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)

    def _answers(self) -> bool:
        status, _ = self._programs.account.run([self._programs.path("pg_isready"), "-h", self._socket])
        return status == 0


class Pair:
    """A primary, a standby, and the ways to them over the network."""

    def __init__(self, primary: Server, standby: Server, ways: tuple[Proxy, Proxy]) -> None:
        self.primary = primary
        self.standby = standby
        self.ways = ways

    @property
    def url(self) -> str:
        """Both of them, as the broker is told."""
        first, second = (f"127.0.0.1:{way.port}" for way in self.ways)
        return f"postgresql://broker@{first},{second}/broker"


@asynccontextmanager
async def a_pair(folder: Path) -> AsyncIterator[Pair]:
    """A primary and a standby; what the primary commits, the standby has."""
    embedded = EmbeddedPostgres(folder / "data")
    with embedded:
        await schema.migrate(embedded.url())
        assert embedded._postmaster is not None
        programs = embedded._postmaster.programs
    for name in ("one", "two"):
        programs.account.make_private(folder / name)
    shutil.move(folder / "data" / "postgres", folder / "one" / "postgres")
    primary = Server(programs, folder / "one", synchronous_standby_names="*")
    standby = Server(programs, folder / "two")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(primary.kill)
        await primary.start()
        primary.copy_to(folder / "two")
        stack.push_async_callback(standby.kill)
        await standby.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while primary.sql("select sync_state from pg_stat_replication") != "sync":
                await asyncio.sleep(0.02)
        ways = [await stack.enter_async_context(Proxy(server.url)) for server in (primary, standby)]
        yield Pair(primary, standby, (ways[0], ways[1]))
