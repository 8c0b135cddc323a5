"""Run the laboratory: a service, five tools, an assigner, and instruments that submit pictures."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from broker.client import Assigner, AsyncBroker, Connection
from broker.demo.images import PICTURES, Picture, path_of
from broker.demo.tool import SKILLS
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.candidates import AssignedPair
from broker.schemas.health import Ready
from broker.schemas.states import WORK_STATES
from broker.schemas.tasks import Task
from broker.schemas.work import WorkWithReports
from broker.server.child_process import child_process, free_port

_READY_SECONDS = 60.0
_WAIT_SECONDS = 10.0


class DemoStep(NamedTuple):
    """An event in the life of a task."""

    picture: Picture
    state: str
    tool: str | None = None
    progress: float | None = None
    message: str | None = None


ShowStep = Callable[[DemoStep], None]


@contextlib.contextmanager
def service(data_dir: Path, port: int) -> Iterator[str]:
    """Run a service with an embedded database during the block, and yield its URL."""
    port = port or free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    environment |= {"BROKER_DATA_DIR": str(data_dir), "BROKER_LOG_LEVEL": "error"}
    with child_process("broker.cli", "serve", "--port", str(port), environment=environment):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def tools(url: str) -> Iterator[None]:
    """Run every tool of the laboratory in its own process during the block."""
    # Otherwise numerical libraries would start a thread for each core in each tool.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for name in SKILLS:
            running.enter_context(child_process("broker.demo.tool", name, url, environment=environment))
        yield


async def until_ready(url: str) -> None:
    """Wait until the service is ready. Suppress the client's warnings meanwhile."""
    log = logging.getLogger("broker.client")
    log.setLevel(logging.ERROR)
    try:
        async with asyncio.timeout(_READY_SECONDS), Connection(url) as connection:
            await connection.call("GET", "/health/ready", Ready)
    finally:
        log.setLevel(logging.NOTSET)


async def work(url: str, show_step: ShowStep) -> list[ArchiveRecord]:
    """Submit every picture, and follow each until its record is in the archive.

    Args:
        url: The URL of the service.
        show_step: Called with each event.

    Returns:
        The records, in the order of the pictures.
    """
    # Each run of the demo submits new tasks.
    day = token_hex(3)
    pictures = {
        f"{Path(picture.file).stem}.{picture.needs['analysis']}.{day}": picture for picture in PICTURES
    }
    async with AsyncBroker(url) as broker, asyncio.TaskGroup() as group:
        connection = broker.connection

        def assigned(pair: AssignedPair) -> None:
            picture = pictures[pair.task_id]
            show_step(DemoStep(picture, "assigned", pair.tool_id))
            group.create_task(_follow(connection, picture, pair, show_step))

        async def submit(id_: str, picture: Picture) -> ArchiveRecord:
            show_step(DemoStep(picture, "submitted"))
            payload = {"file": str(path_of(picture)), "instrument": picture.instrument}
            handle = await broker.submit(picture.needs, payload, id=id_)
            task = await handle.wait()
            return await _last_record(connection, task)

        assigning = group.create_task(Assigner(url=url, on_assigned=assigned).assign())
        records = await asyncio.gather(*(submit(id_, picture) for id_, picture in pictures.items()))
        assigning.cancel()
    return records


async def _follow(connection: Connection, picture: Picture, pair: AssignedPair, show_step: ShowStep) -> None:
    """Show every report as it arrives. Each long poll ends when the work item has changed."""
    async for work in _versions(connection, f"/v1/work/{pair.work_id}"):
        message = work.reports[-1].message if work.reports else None
        show_step(DemoStep(picture, work.state, work.tool_id, work.progress, message))


async def _versions(connection: Connection, path: str) -> AsyncIterator[WorkWithReports]:
    version = 0
    while True:
        query = {"wait": _WAIT_SECONDS, "after_version": version}
        work = await connection.call("GET", path, WorkWithReports, query=query, wait=_WAIT_SECONDS)
        if work.version > version:
            version = work.version
            yield work
        if work.state not in WORK_STATES:
            return


async def _last_record(connection: Connection, task: Task) -> ArchiveRecord:
    query = {"task_id": task.id, "limit": 1}
    return (await connection.call("GET", "/v1/archive", ArchivePage, query=query)).items[0]
