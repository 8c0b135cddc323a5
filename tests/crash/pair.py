"""A primary and a synchronous standby, from the programs of the embedded PostgreSQL."""

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
    """A PostgreSQL server, primary or standby.

    Args:
        programs: The programs of PostgreSQL, with the account that runs them.
        folder: The folder of its data and its socket.
    """

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "postgres"
        self._socket = programs.account.make_private(folder / "socket")
        self._settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            # A commit waits for a standby that has lost its primary, so the standby reconnects quickly.
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
            while not (self.runs() and self._is_ready()):
                if not self.runs():
                    # A new server ends at once while backends of a killed server still use the data.
                    self._process = self._programs.account.spawn(command, output=subprocess.DEVNULL)
                await asyncio.sleep(0.02)

    def sql(self, statement: str) -> str:
        where = ("-h", self._socket, "-U", "broker", "-d", "broker", "-Atqc", statement)
        return self._programs.run("psql", *where)

    async def become_standby_of(self, primary: "Server") -> None:
        """Restart as a standby with a copy of the primary's data, and make the primary wait for it."""
        await asyncio.to_thread(shutil.rmtree, self._data, ignore_errors=True)
        where = ("-h", primary._socket, "-U", "broker", "-D", self._data)
        how = ("-R", "-X", "stream", "-c", "fast")
        await asyncio.to_thread(self._programs.run, "pg_basebackup", *where, *how)
        await self.start()
        # The copy must not have this setting: a promoted standby has no other standby to wait for.
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
        """Kill the server with SIGKILL."""
        if self._process is None or not self.runs():
            return
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _is_ready(self) -> bool:
        status, _ = self._programs.account.run([self._programs.path("pg_isready"), "-h", self._socket])
        return status == 0


class Pair:
    """A primary and a standby, each behind a proxy. The first proxy leads to the original primary."""

    def __init__(self, primary: Server, standby: Server, proxies: tuple[Proxy, Proxy]) -> None:
        self.primary = primary
        self.standby = standby
        self.proxies = proxies
        self._behind = dict(zip(proxies, (primary, standby), strict=True))

    def proxy_to_primary(self) -> Proxy:
        """Return the proxy of the current primary."""
        return next(proxy for proxy, server in self._behind.items() if server is self.primary)

    async def fail_over(self) -> None:
        """Kill the primary and promote the standby."""
        await self.primary.kill()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    async def restore_standby(self) -> None:
        """Start a new standby if the old one does not run."""
        if not self.standby.runs():
            await self.standby.become_standby_of(self.primary)

    @property
    def url(self) -> str:
        """The URL with both servers, for `BROKER_DATABASE_URL`."""
        first, second = (f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        return f"postgresql://broker@{first},{second}/broker"


@asynccontextmanager
async def running_pair(folder: Path) -> AsyncIterator[Pair]:
    """Run a primary and a standby that has everything that the primary has committed."""
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
        await standby.become_standby_of(primary)
        first, second = [await stack.enter_async_context(Proxy(server.url)) for server in (primary, standby)]
        yield Pair(primary, standby, (first, second))
