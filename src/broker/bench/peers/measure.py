"""Measure a workload: with the broker, and with a peer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from broker.bench.clients import Fifo, registered
from broker.bench.database import connected
from broker.bench.figures import Figures, latencies
from broker.bench.http import HttpConnection
from broker.bench.load import background, connections
from broker.bench.meter import Meter
from broker.bench.peers.peer import Peer, PeerError
from broker.bench.peers.subprocesses import Program, running
from broker.bench.peers.workloads import BATCH, CLIENTS, INTERVAL_SECONDS, Workload, costs
from broker.bench.scenarios import Size, bulk, drain
from broker.bench.stage import BenchService, Stage
from broker.bench.work import SUCCEEDED, task

_DRAIN_TOOLS = 64
# Each step of the broker gets as many tasks in a request as its peers get in a call.
_BATCHES = bulk.Batches(size=BATCH, submitters=1, capacity=BATCH)
_POLL_SECONDS = 0.005
# A rate below this many tasks per second means that something hangs.
_SLOWEST = 100


async def measure_broker(stage: Stage, workload: Workload, size: Size) -> Figures:
    """Run a workload with the broker: submit, assign and complete its tasks over HTTP."""
    number = workload.number(size)
    async with stage.service() as service:
        if workload.mode == "paced":
            return latencies(await _paced(service, number))
        if workload.mode == "batch":
            figures = {"tasks/s": number / await bulk.run_life_cycles(service, number, _BATCHES)}
        else:
            async with registered(service.url, _DRAIN_TOOLS) as tools:
                figures = await drain.drain([service.url], tools, number, service.meter)
        return figures | costs(service.meter)


async def _paced(service: BenchService, number: int) -> list[float]:
    """Submit tasks at a steady rate, and return the time of each until a tool receives it, in seconds."""
    submitted_at: dict[str, float] = {}
    durations: list[float] = []
    all_received = asyncio.Event()

    async def work(connection: HttpConnection, tool: str) -> None:
        while True:
            items = (await connection.call("GET", f"/v1/tools/{tool}/work?wait=30"))["items"]
            now = time.perf_counter()
            for item in items:
                durations.append(now - submitted_at[item["task_id"]])
                if len(durations) == number:
                    all_received.set()
                await connection.call("POST", f"/v1/work/{item['id']}/complete", SUCCEEDED, into=None)

    async def submit(connection: HttpConnection, index: int) -> None:
        id_ = f"paced-{index}"
        submitted_at[id_] = time.perf_counter()
        await connection.call("POST", "/v1/tasks", task(index) | {"id": id_}, into=None)

    async with (
        registered(service.url, CLIENTS) as tools,
        connections(service.url, number=CLIENTS) as submitters,
        connections(service.url, number=CLIENTS) as open_,
        asyncio.timeout(_limit(number)),
        background(Fifo(service.url).run(), *map(work, open_, tools)),
    ):
        await asyncio.sleep(1)
        started_at = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(number):
                await asyncio.sleep(started_at + index * INTERVAL_SECONDS - time.perf_counter())
                group.create_task(submit(submitters[index % CLIENTS], index))
        await all_received.wait()
    return durations


async def measure_peer(stage: Stage, peer: Peer, folder: Path, workload: Workload, size: Size) -> Figures:
    """Run a workload with a peer: one process submits its tasks, another one handles them.

    Raises:
        PeerError: A program of the peer failed.
    """
    order = workload.order(size)
    work, submit = (peer.command(folder, role, order) for role in ("worker", "submitter"))
    limit = _limit(order["tasks"])
    try:
        async with (
            asyncio.timeout(limit),
            stage.database(migrated=False) as database,
            # The worker creates the tables before it is ready.
            _ready(work, database) as worker,
            _ready(submit, database) as submitter,
        ):
            meter = Meter([worker.pid, submitter.pid], stage.postmaster, database)
            waited, seconds = await _drain(worker, submitter, database, peer.left, meter)
    except TimeoutError as error:
        raise PeerError(f"It did not finish within {limit:.0f} seconds.") from error
    if workload.mode == "paced":
        return latencies([nanoseconds / 1e9 for nanoseconds in waited])
    return {"tasks/s": len(waited) / seconds} | costs(meter)


@asynccontextmanager
async def _ready(command: Sequence[str], database: str) -> AsyncIterator[Program]:
    """Run a program of a peer, and wait until it reports that it is ready."""
    async with running(command, database) as program:
        await program.read_line()
        yield program


async def _drain(
    worker: Program, submitter: Program, database: str, left: str, meter: Meter
) -> tuple[list[int], float]:
    """Let the programs submit and handle all tasks.

    Returns:
        How long each task waited for its handler, in nanoseconds, and how long all of them took, in seconds.
    """
    async with connected(database) as connection, meter.measuring():
        started_at = time.perf_counter()
        submitter.write_line()
        waited: list[int] = json.loads(await worker.read_line())
        while await connection.fetchval(left):  # noqa: ASYNC110 - other processes end the tasks
            await asyncio.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - started_at
        meter.count(len(waited))
    return waited, seconds


def _limit(number: int) -> float:
    """Return the time limit of a workload with a number of tasks, in seconds."""
    return 60 + number / _SLOWEST + number * INTERVAL_SECONDS
