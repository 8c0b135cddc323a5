"""Restart two brokers behind nginx one after the other, and reload nginx, while 1,000 tools wait.

    python -m tests.containers.rolling [--tools 1000]

nginx uses the configuration of containers/nginx/, and the brokers are `broker serve` on one database. Before
each of the three changes, every tool waits in a long poll. During the change, each tool gets a task. Clients
repeat only failed requests, which the script counts. At the end, each tool must have received its task once,
and the archive must contain each task once.
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from broker.postgres.cluster import EmbeddedPostgres
from broker.store import migration
from tests.conftest import temporary_folder
from tests.containers.nginx import Nginx
from tests.crash.laboratory import Service
from tests.support.waiting import wait_until

Json = dict[str, Any]

_SLICE = 50
_ASSIGNER = "assigner"
_PATIENCE_SECONDS = 90


class Clients:
    """Tools that wait for work, and an assigner. All of them connect to nginx.

    Args:
        url: The URL of nginx.
        tools: The number of tools.
    """

    def __init__(self, url: str, tools: int) -> None:
        self.names = [f"tool-{number}" for number in range(tools)]
        # One HTTP client each, because a shared one would search all its connections for every request.
        trust = ssl.create_default_context()
        self._http = {
            name: httpx.AsyncClient(base_url=url, verify=trust, timeout=_PATIENCE_SECONDS)
            for name in [*self.names, _ASSIGNER]
        }
        self.received: dict[str, list[str]] = {}
        self.completed: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._more = asyncio.Condition()

    async def request(self, client: str, method: str, path: str, **options: Any) -> Json:
        """Send a request, and repeat it until it succeeds."""
        async with asyncio.timeout(2 * _PATIENCE_SECONDS):
            while True:
                try:
                    response = await self._http[client].request(method, path, **options)
                except httpx.TransportError as error:
                    self.failures[f"{method}: {type(error).__name__}"] += 1
                else:
                    if response.is_success:
                        return response.json()
                    assert response.status_code in (502, 503, 504), f"{method} {path}: {response.text}"
                    self.failures[f"{method}: {response.status_code}"] += 1
                # A random delay, so the clients do not all return at the same time.
                await asyncio.sleep(random.uniform(0.05, 0.5))

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Register all tools, and let them poll for work and complete it until the end of the block."""
        for first in range(0, len(self.names), _SLICE):
            registered = (
                self.request(name, "POST", "/v1/tools", json={"id": name, "skills": {}, "lease_seconds": 600})
                for name in self.names[first : first + _SLICE]
            )
            await asyncio.gather(*registered)
        async with asyncio.TaskGroup() as tools:
            waiting = [tools.create_task(self._work(name)) for name in self.names]
            yield
            for task in waiting:
                task.cancel()
        for http in self._http.values():
            await http.aclose()

    async def _work(self, name: str) -> None:
        while True:
            response = await self.request(name, "GET", f"/v1/tools/{name}/work", params={"wait": 60})
            for work in response["items"]:
                self.received.setdefault(work["task_id"], []).append(work["id"])
                end = {"outcome": "succeeded", "result": name}
                done = await self.request(name, "POST", f"/v1/work/{work['id']}/complete", json=end)
                assert done["archived"]["tool_id"] == name
                async with self._more:
                    self.completed[work["task_id"]] += 1
                    self._more.notify_all()

    async def assign_tasks(self, prefix: str) -> None:
        """Assign a task to each tool, in slices. Each slice must be complete before the next one begins."""
        for first in range(0, len(self.names), _SLICE):
            tasks = {f"{prefix}-{name}": name for name in self.names[first : first + _SLICE]}
            items: list[Json] = [{"id": task, "needs": {}} for task in tasks]
            await self.request(_ASSIGNER, "POST", "/v1/tasks/batch", json={"items": items})
            items = [{"task_id": task, "tool_id": tool} for task, tool in tasks.items()]
            response = await self.request(_ASSIGNER, "POST", "/v1/work/batch", json={"items": items})
            assert {item["status"] for item in response["items"]} <= {
                "assigned",
                "exists",
                "task_unavailable",
            }
            async with asyncio.timeout(_PATIENCE_SECONDS), self._more:
                await self._more.wait_for(lambda tasks=tasks: tasks.keys() <= self.completed.keys())


async def rolling(database: str, folder: Path, *, tools: int) -> Counter[str]:
    """Reload nginx and restart two brokers while tools wait, and check that nothing is lost.

    Args:
        database: The URL of an empty database with the current schema.
        folder: The folder for logs.
        tools: The number of waiting tools.

    Returns:
        The failures of requests that clients have repeated, with their number.

    Raises:
        AssertionError: Something was lost or happened twice, or a request failed permanently.
    """
    first, second = _ports()
    brokers = [
        Service("broker0", database, folder, port=first),
        Service("broker1", database, folder, port=second),
    ]
    front = Nginx(folder, [broker.url.removeprefix("http://") for broker in brokers])
    async with contextlib.AsyncExitStack() as stack:
        for broker in brokers:
            broker.start()
            stack.push_async_callback(broker.kill)
            await broker.until_ready()
        await stack.enter_async_context(front.running())
        clients = Clients(front.url, tools)
        await wait_until(lambda: _is_ready(clients), _PATIENCE_SECONDS)
        async with clients.at_work():
            changes: dict[str, Callable[[], Awaitable[None]]] = {
                "reload": front.reload,
                "first": lambda: _restart(brokers[0]),
                "second": lambda: _restart(brokers[1]),
            }
            for name, change in changes.items():
                await wait_until(lambda: _all_wait(brokers, tools), _PATIENCE_SECONDS)
                async with asyncio.TaskGroup() as at_once:
                    at_once.create_task(change())
                    at_once.create_task(clients.assign_tasks(name))
        await _check_nothing_is_lost(brokers[0].url, clients, set(changes))
    return clients.failures


def _ports() -> tuple[int, int]:
    """Return two free ports outside the range that the system uses for outgoing connections."""
    free: list[int] = []
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == 2:
            break
    first, second = free
    return first, second


async def _restart(broker: Service) -> None:
    began = time.monotonic()
    assert await broker.terminate() == 0
    assert time.monotonic() - began < 5, "the broker did not exit in time"
    broker.start()
    await broker.until_ready()


async def _is_ready(clients: Clients) -> bool:
    return bool(await clients.request(_ASSIGNER, "GET", "/health/ready"))


async def _all_wait(brokers: list[Service], tools: int) -> bool:
    waiting = 0.0
    async with httpx.AsyncClient() as http:
        for broker in brokers:
            metrics = (await http.get(f"{broker.url}/metrics")).text
            waiting += float(metrics.split('\nbroker_parked_requests{topic="tool"} ')[1].split("\n")[0])
    return waiting >= tools


async def _check_nothing_is_lost(url: str, clients: Clients, changes: set[str]) -> None:
    """Check that each tool received its task once, and that the archive contains each task once."""
    expected = {f"{change}-{name}": name for change in changes for name in clients.names}
    assert clients.received.keys() == expected.keys()
    assert {task for task, works in clients.received.items() if len(set(works)) != 1} == set()
    archived: dict[str, list[Json]] = {}
    async with httpx.AsyncClient(base_url=url) as http, http.stream("GET", "/v1/archive/export") as export:
        async for line in export.aiter_lines():
            record = httpx.Response(200, text=line).json()
            archived.setdefault(record["task_id"], []).append(record)
    assert {
        task: [(record["tool_id"], record["outcome"], record["work_id"]) for record in records]
        for task, records in archived.items()
    } == {task: [(tool, "succeeded", clients.received[task][0])] for task, tool in expected.items()}


def main() -> None:
    """Run the check on a new database, and print the failures of requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", type=int, default=1000)
    tools = parser.parse_args().tools
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    with temporary_folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        asyncio.run(migration.migrate(postgres.url()))
        logs = folder / "logs"
        logs.mkdir()
        began = time.monotonic()
        failures = asyncio.run(rolling(postgres.url(), logs, tools=tools))
    lines = [f"{count:8} {name}" for name, count in failures.most_common()] or ["       0"]
    took = f"{time.monotonic() - began:.0f} s"
    sys.stdout.write(
        "\n".join([f"{3 * tools} tasks in {took}, nothing lost. Repeated requests:", *lines, ""])
    )


if __name__ == "__main__":
    main()
