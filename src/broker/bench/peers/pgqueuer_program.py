"""Submit or handle tasks with PgQueuer. `broker bench --peers` runs this file in PgQueuer's environment.

The arguments are the role, `worker` or `submitter`, and the order of the workload as JSON. Variables such as
PGHOST name the database. The program ends when its input ends.
"""

import asyncio
import json
import sys
import time
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgPoolDriver

NAME = "task"
LISTEN_SECONDS = 2


async def work(order: dict[str, Any]) -> None:
    """Handle the tasks, and print how long each one waited, in nanoseconds."""
    waited: list[int] = []

    async def handle(job: Any) -> None:
        waited.append(time.monotonic_ns() - json.loads(job.payload)["at"])
        if len(waited) == order["tasks"]:
            print(json.dumps(waited), flush=True)  # noqa: T201 - the runner reads it

    async with asyncpg.create_pool(min_size=4, max_size=20) as pool:
        await Queries(AsyncpgPoolDriver(pool)).install()
        queue = PgQueuer.from_asyncpg_pool(pool)
        queue.entrypoint(NAME)(handle)
        # Larger batches are what PgQueuer recommends for throughput.
        running = asyncio.create_task(queue.run(batch_size=100))
        # It does not report when it listens.
        await asyncio.sleep(LISTEN_SECONDS)
        print("ready", flush=True)  # noqa: T201
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()


async def submit(order: dict[str, Any]) -> None:
    """Submit the tasks when a line arrives."""
    number, clients = order["tasks"], order["clients"]
    async with asyncpg.create_pool(min_size=clients, max_size=clients) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))

        def payload() -> bytes:
            return json.dumps(order["payload"] | {"at": time.monotonic_ns()}).encode()

        async def client() -> None:
            for _ in numbers:
                await queries.enqueue(NAME, payload())

        print("ready", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.readline)
        if order["mode"] == "batch":
            for first in range(0, number, order["batch"]):
                size = min(order["batch"], number - first)
                await queries.enqueue([NAME] * size, [payload() for _ in range(size)], [0] * size)
        elif order["mode"] == "paced":
            started_at = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for index in range(number):
                    due = started_at + index * order["interval_seconds"]
                    await asyncio.sleep(due - time.monotonic())
                    group.create_task(queries.enqueue(NAME, payload()))
        else:
            numbers = iter(range(number))
            await asyncio.gather(*(client() for _ in range(clients)))
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run({"worker": work, "submitter": submit}[sys.argv[1]](json.loads(sys.argv[2])))
