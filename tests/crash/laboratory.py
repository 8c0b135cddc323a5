"""A laboratory to be shot at: brokers, tools and an assigner as processes of their own, and customers.

The customers know what was acknowledged; the audit at the end says whether every one of those tasks ended
exactly once. The brokers look by themselves only once a minute, so that what is done sooner was woken.
"""

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from broker.store.address import Address
from tests import ROOT
from tests.crash.customers import KINDS, PATIENCE_SECONDS, Customers, Kind
from tests.support import steps
from tests.support.processes import clean_environment, free_port, start, wait_until_ready
from tests.support.proxy import Gateway

SETTINGS = {
    "BROKER_FALLBACK_SECONDS": "60",
    "BROKER_PROBE_SECONDS": "1",
    "BROKER_DATABASE_TIMEOUT_SECONDS": "2",
    "BROKER_LOG_LEVEL": "warning",
}


class Process:
    """A process that can be killed, told to stop, and started again.

    Args:
        name: What its log is called.
        command: Its arguments, after `python -m`.
        environment: What it finds there, beside ours.
        folder: Where its log is kept.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self._command = command
        self._environment = clean_environment(**environment)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = start(
                *self._command, environment=self._environment, cwd=ROOT, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL: it has no say in it."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """SIGTERM; its exit status."""
        return await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        self._process = None
        process.send_signal(how)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while process.poll() is None:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            process.kill()
            raise
        return process.returncode


class Service(Process):
    """A `broker serve` on a port that stays the same."""

    def __init__(
        self, name: str, database: str, folder: Path, *, port: int | None = None, **settings: str
    ) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = SETTINGS | {"BROKER_DATABASE_URL": database} | settings
        super().__init__(name, ["broker.cli", "serve", "--port", str(port)], environment, folder)

    async def until_ready(self) -> None:
        await wait_until_ready(self.url, within=PATIENCE_SECONDS)


class Laboratory:
    """Brokers, tools, an assigner and customers on one database.

    Args:
        database: Where we find it.
        folder: For logs and notes.
        brokers: How many brokers; tools and customers are shared out among them.
        tools: How many tools.
        through: How the brokers reach the database, where that is another way.
        kinds: What the customers submit.
        gateways: Whether clients reach each broker through an HTTP proxy.
    """

    def __init__(
        self,
        database: str,
        folder: Path,
        *,
        brokers: int = 1,
        tools: int = 2,
        through: str | None = None,
        kinds: Sequence[Kind] = KINDS,
        gateways: bool = False,
    ) -> None:
        self.database = database
        self._folder = folder
        self._runs = folder / "runs.txt"
        self.brokers = [Service(f"broker{n}", through or database, folder) for n in range(brokers)]
        self.gateways = [Gateway(broker.url, port=free_port()) for broker in self.brokers if gateways]
        urls = [each.url for each in self.gateways or self.brokers]
        self.tools = [
            self._program("tool", f"t{n}", urls[n % brokers], "--runs", str(self._runs)) for n in range(tools)
        ]
        self.assigner = self._program("assigner", "assigner", urls[-1])
        self.customers = Customers(urls, kinds)

    def _program(self, kind: str, name: str, url: str, *arguments: str) -> Process:
        command = ["tests.crash.program", kind, "--id", name, *arguments]
        return Process(name, command, {"BROKER_URL": url}, self._folder)

    async def __aenter__(self) -> Self:
        self._runs.touch()
        for gateway in self.gateways:
            await gateway.start()
        for process in (*self.brokers, *self.tools, self.assigner):
            process.start()
        for broker in self.brokers:
            await broker.until_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in (*self.tools, self.assigner, *self.brokers):
            await process.kill()
        for gateway in self.gateways:
            await gateway.stop()

    async def audit(self) -> None:
        """Every acknowledged task has ended exactly once; none is lost or stuck, every tool has room."""
        connection = await Address(self.database).connect()
        try:
            await steps.check_invariants(connection)
            assert await connection.fetchval("select count(*) from tasks") == 0
            assert await connection.fetchval("select count(*) from work") == 0
            assert await connection.fetchval("select coalesce(sum(load), 0) from tools") == 0
            ends = await connection.fetch(
                "select task_id, work_id, outcome from work_archive "
                "where outcome in ('succeeded', 'cancelled')"
            )
        finally:
            await connection.close()
        assert self.customers.answered.keys() == self.customers.acknowledged
        assert len(ends) == len(self.customers.acknowledged)
        assert {end["task_id"]: end["outcome"] for end in ends} == self.customers.answered
        runs = Counter(line.split()[1] for line in self._runs.read_text().splitlines())
        succeeded = [str(end["work_id"]) for end in ends if end["outcome"] == "succeeded"]
        assert all(runs[work_id] == 1 for work_id in succeeded), "a result without its run"

    def said(self) -> str:
        """The logs of all processes, for a test that failed."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


@asynccontextmanager
async def a_laboratory(database: str, folder: Path, **given: Any) -> AsyncIterator[Laboratory]:
    """A laboratory that runs; what its processes said is shown where the block fails."""
    async with AsyncExitStack() as stack:
        laboratory = Laboratory(database, folder, **given)
        try:
            await stack.enter_async_context(laboratory)
            yield laboratory
        except BaseException:
            print(laboratory.said())  # noqa: T201 - pytest shows it
            raise
