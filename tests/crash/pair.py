"""A primary and a standby that has all that was acknowledged, from the embedded PostgreSQL's programs."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.programs import Programs
from broker.store import migration
from tests.support.proxy import Proxy

PATIENCE_SECONDS = 30


class Server:
    """One of the two.

    Args:
        programs: PostgreSQL's programs, and the account that runs them.
        folder: Where its data are, and its socket is made.
    """

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "postgres"
        self._socket = programs.account.make_private(folder / "socket")
        self._settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            # What is committed waits for a standby that has lost its primary.
            "wal_retrieve_retry_interval": "100ms",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://broker@/broker?host={self._socket}&port=5432"

    async def start(self) -> None:
        options = [part for item in self._settings.items() for part in ("-c", "=".join(item))]
        command = [self._programs.path("postgres"), "-D", self._data, *options]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (self.runs() and self._answers()):
                if not self.runs():
                    # Once more where backends of one that was killed are still at it.
                    self._process = self._programs.account.spawn(command, output=subprocess.DEVNULL)
                await asyncio.sleep(0.02)

    def sql(self, statement: str) -> str:
        where = ("-h", self._socket, "-U", "broker", "-d", "broker", "-Atqc", statement)
        return self._programs.run("psql", *where)

    async def begin_as_standby_of(self, primary: "Server") -> None:
        """Begin anew, with the primary's data; from then on it commits nothing that this does not have."""
        await asyncio.to_thread(shutil.rmtree, self._data, ignore_errors=True)
        where = ("-h", primary._socket, "-U", "broker", "-D", self._data)
        how = ("-R", "-X", "stream", "-c", "fast")
        await asyncio.to_thread(self._programs.run, "pg_basebackup", *where, *how)
        await self.start()
        # After the copy was made: promoted, this one has no standby to wait for.
        primary.sql("alter system set synchronous_standby_names = '*'")
        primary.sql("select pg_reload_conf()")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while primary.sql("select sync_state from pg_stat_replication") != "sync":
                await asyncio.sleep(0.02)

    def promote(self) -> None:
        self._programs.run("pg_ctl", "promote", "-D", self._data, "-w")

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def kill(self) -> None:
        """End it without a word."""
        if self._process is None or not self.runs():
            return
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _answers(self) -> bool:
        status, _ = self._programs.account.run([self._programs.path("pg_isready"), "-h", self._socket])
        return status == 0


class Pair:
    """A primary, a standby, and the ways to them over the network: first to the one that began as primary."""

    def __init__(self, primary: Server, standby: Server, ways: tuple[Proxy, Proxy]) -> None:
        self.primary = primary
        self.standby = standby
        self.ways = ways
        self._behind = dict(zip(ways, (primary, standby), strict=True))

    def way_to_primary(self) -> Proxy:
        """The way that leads to it at present."""
        return next(way for way, server in self._behind.items() if server is self.primary)

    async def fail_over(self) -> None:
        """The primary dies, and the standby takes over."""
        await self.primary.kill()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    async def mend(self) -> None:
        """Have a standby again."""
        if not self.standby.runs():
            await self.standby.begin_as_standby_of(self.primary)

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
        await migration.migrate(embedded.url())
        assert embedded._postmaster is not None
        programs = embedded._postmaster.programs
    for name in ("one", "two"):
        programs.account.make_private(folder / name)
    shutil.move(folder / "data" / "postgres", folder / "one" / "postgres")
    primary, standby = (Server(programs, folder / name) for name in ("one", "two"))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(primary.kill)
        await primary.start()
        stack.push_async_callback(standby.kill)
        await standby.begin_as_standby_of(primary)
        ways = [await stack.enter_async_context(Proxy(server.url)) for server in (primary, standby)]
        yield Pair(primary, standby, (ways[0], ways[1]))
