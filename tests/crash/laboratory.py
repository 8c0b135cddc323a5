"""A laboratory to be shot at: brokers, tools and an assigner as processes of their own, and customers.

The customers submit tasks, wait for their results, and know what was acknowledged; the audit at the end
says whether every one of those ended exactly once. The brokers look by themselves only once a minute, so
that what is done sooner was woken.
"""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import asyncpg

from broker.client import AsyncBroker
from broker.store.address import libpq_url
from tests import store_helpers
from tests.helpers import an_environment, free_port, until_ready

ROOT = Path(__file__).parents[2]
CUSTOMERS = 4
TASKS_AT_ONCE = 5
# Longer than a killed tool's lease and every retry of a client; far shorter than a look of one's own.
PATIENCE_SECONDS = 40
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
        self._command = [sys.executable, "-m", *command]
        self._environment = an_environment(**environment)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=ROOT, stdout=log, stderr=log
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

    def __init__(self, name: str, database: str, folder: Path, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = SETTINGS | {"BROKER_DATABASE_URL": database} | settings
        super().__init__(name, ["broker.cli", "serve", "--port", str(port)], environment, folder)

    async def until_ready(self) -> None:
        await until_ready(self.url, within=PATIENCE_SECONDS)


class Laboratory:
    """Brokers, tools, an assigner and customers on one database.

    Args:
        database: Where the audit finds it.
        folder: For logs and notes.
        brokers: How many brokers; tools and customers are shared out among them.
        tools: How many tools.
        through: How the brokers reach the database, where that is another way.
    """

    def __init__(
        self, database: str, folder: Path, *, brokers: int = 1, tools: int = 2, through: str | None = None
    ) -> None:
        self._database = database
        self._folder = folder
        self._runs = folder / "runs.txt"
        self.brokers = [Service(f"broker{n}", through or database, folder) for n in range(brokers)]
        urls = [broker.url for broker in self.brokers]
        self.tools = [
            self._program("tool", f"t{n}", urls[n % brokers], "--runs", str(self._runs)) for n in range(tools)
        ]
        self.assigner = self._program("assigner", "assigner", urls[-1])
        self._customers: list[asyncio.Task[None]] = []
        self._enough = asyncio.Event()
        #: The tasks that were acknowledged, and those whose result has come back.
        self.acknowledged: set[str] = set()
        self.answered: set[str] = set()

    def _program(self, kind: str, name: str, url: str, *arguments: str) -> Process:
        command = ["tests.crash.program", kind, "--id", name, *arguments]
        return Process(name, command, {"BROKER_URL": url}, self._folder)

    async def __aenter__(self) -> Self:
        self._runs.touch()
        for process in (*self.brokers, *self.tools, self.assigner):
            process.start()
        for broker in self.brokers:
            await broker.until_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        for customer in self._customers:
            customer.cancel()
        await asyncio.gather(*self._customers, return_exceptions=True)
        for process in (*self.tools, self.assigner, *self.brokers):
            await process.kill()

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Customers submit and wait during the block, and have all their results at its end."""
        self._enough.clear()
        urls = [broker.url for broker in self.brokers]
        self._customers = [
            asyncio.create_task(self._be_customer(n, urls[n % len(urls)])) for n in range(CUSTOMERS)
        ]
        await self.more()
        yield
        self._enough.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*self._customers)

    async def more(self, count: int = 20) -> None:
        """Return when so many more results have come back: all is well, or well again."""
        goal = len(self.answered) + count
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.answered) < goal:
                for customer in self._customers:
                    if customer.done():
                        customer.result()
                await asyncio.sleep(0.01)

    async def _be_customer(self, number: int, url: str) -> None:
        async with AsyncBroker(url, patience_seconds=None) as broker:
            rounds = 0
            while not self._enough.is_set():
                rounds += 1
                names = [f"c{number}.{len(self.acknowledged)}.{rounds}.{n}" for n in range(TASKS_AT_ONCE)]
                handles = []
                for name in names:
                    handles.append(await broker.submit({}, name, id=name, max_attempts=1000))
                    self.acknowledged.add(name)
                for handle in handles:
                    assert await handle.result(timeout=PATIENCE_SECONDS) == handle.id
                    self.answered.add(handle.id)

    async def audit(self) -> None:
        """Every acknowledged task has ended exactly once; none is lost or stuck, every tool has room."""
        connection = await asyncpg.connect(libpq_url(self._database))
        try:
            await store_helpers.audit(connection)
            assert await connection.fetchval("select count(*) from tasks") == 0
            assert await connection.fetchval("select count(*) from work") == 0
            assert await connection.fetchval("select coalesce(sum(load), 0) from tools") == 0
            ends = await connection.fetch(
                "select task_id, work_id from work_archive where outcome = 'succeeded'"
            )
        finally:
            await connection.close()
        ended = Counter(row["task_id"] for row in ends)
        assert ended.keys() == self.acknowledged == self.answered
        assert set(ended.values()) <= {1}
        runs = Counter(line.split()[1] for line in self._runs.read_text().splitlines())
        assert all(runs[str(row["work_id"])] == 1 for row in ends), "a result without its run"

    def said(self) -> str:
        """The logs of all processes, for a test that failed."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


@asynccontextmanager
async def a_laboratory(
    database: str, folder: Path, *, brokers: int = 1, tools: int = 2, through: str | None = None
) -> AsyncIterator[Laboratory]:
    """A laboratory that runs; what its processes said is shown where the block fails."""
    async with AsyncExitStack() as stack:
        laboratory = Laboratory(database, folder, brokers=brokers, tools=tools, through=through)
        try:
            await stack.enter_async_context(laboratory)
            yield laboratory
        except BaseException:
            print(laboratory.said())  # noqa: T201 - pytest shows it
            raise
