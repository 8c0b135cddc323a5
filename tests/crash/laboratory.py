"""A laboratory for crash tests: brokers, tools and an assigner in their own processes, and submitters.

The submitters record the acknowledged tasks. The audit at the end checks that each of them ended exactly
once. The fallback queries of the brokers run only once a minute, so a faster response proves a notification.
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
from tests.crash.submitters import KINDS, PATIENCE_SECONDS, Kind, Submitters
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
    """A process that can be killed, stopped and started again.

    Args:
        name: The name of its log.
        command: Its arguments, after `python -m`.
        environment: Its further environment variables.
        folder: The folder of its log.
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
        """Send SIGKILL and wait until the process has ended."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
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
    """A `broker serve` process, with the same port after each restart."""

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
    """Brokers, tools, an assigner and submitters on one database.

    Args:
        database: The URL of the database.
        folder: The folder for logs and notes.
        brokers: The number of brokers. Tools and submitters are spread over them.
        tools: The number of tools.
        through: The URL at which the brokers reach the database, if it is another one.
        kinds: The kinds of tasks that the submitters submit.
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
        self.submitters = Submitters(urls, kinds)

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
        """Check that every acknowledged task has ended exactly once, and that no work or load is left."""
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
        assert self.submitters.outcomes.keys() == self.submitters.acknowledged
        assert len(ends) == len(self.submitters.acknowledged)
        assert {end["task_id"]: end["outcome"] for end in ends} == self.submitters.outcomes
        runs = Counter(line.split()[1] for line in self._runs.read_text().splitlines())
        succeeded = [str(end["work_id"]) for end in ends if end["outcome"] == "succeeded"]
        assert all(runs[work_id] == 1 for work_id in succeeded), "a task has a result, but no run"

    def logs(self) -> str:
        """Return the ends of the logs of all processes, for a failed test."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)


@asynccontextmanager
async def running_laboratory(database: str, folder: Path, **options: Any) -> AsyncIterator[Laboratory]:
    """Run a laboratory while the block runs. If the block fails, print the logs of its processes."""
    async with AsyncExitStack() as stack:
        laboratory = Laboratory(database, folder, **options)
        try:
            await stack.enter_async_context(laboratory)
            yield laboratory
        except BaseException:
            print(laboratory.logs())  # noqa: T201 - pytest shows it
            raise
