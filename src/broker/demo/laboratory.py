"""The laboratory: a service, five tools, an assigner, and instruments that submit what they have taken."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
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
from broker.schemas.tools import ToolPage
from broker.schemas.work import WorkWithReports

_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_WAIT_SECONDS = 10.0


class Step(NamedTuple):
    """Something that has happened to a task."""

    picture: Picture
    state: str
    tool: str | None = None
    progress: float | None = None
    message: str | None = None


Tell = Callable[[Step], None]


@contextlib.contextmanager
def service(data_dir: Path, port: int) -> Iterator[str]:
    """A service of its own with an embedded database, for as long as the block runs; yields its URL."""
    port = port or _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    environment |= {"BROKER_DATA_DIR": str(data_dir), "BROKER_LOG_LEVEL": "error"}
    with _process("-m", "broker.cli", "serve", "--port", str(port), environment=environment):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def tools(url: str) -> Iterator[None]:
    """Every tool of the laboratory, each a process of its own."""
    # Each measures on one core; numerical libraries would start as many threads as there are.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for name in SKILLS:
            running.enter_context(_process("-m", "broker.demo.tool", name, url, environment=environment))
        yield


async def until_ready(url: str) -> None:
    """Wait until the service is ready; that it is not yet is no news."""
    log = logging.getLogger("broker.client")
    log.setLevel(logging.ERROR)
    try:
        async with asyncio.timeout(_READY_SECONDS), Connection(url) as connection:
            await connection.call("GET", "/health/ready", Ready)
    finally:
        log.setLevel(logging.NOTSET)


async def work(url: str, tell: Tell) -> list[ArchiveRecord]:
    """Submit every picture, and follow each until its record is in the archive.

    Args:
        url: The service.
        tell: Is told what happens.

    Returns:
        The records, in the order of the pictures.
    """
    # The laboratory has been at it before, and each time these are new tasks.
    day = token_hex(3)
    pictures = {
        f"{Path(picture.file).stem}.{picture.needs['analysis']}.{day}": picture for picture in PICTURES
    }
    async with AsyncBroker(url) as broker, asyncio.TaskGroup() as group:
        connection = broker.connection

        def assigned(pair: AssignedPair) -> None:
            picture = pictures[pair.task_id]
            tell(Step(picture, "assigned", pair.tool_id))
            group.create_task(_follow(connection, picture, pair, tell))

        async def submit(id_: str, picture: Picture) -> ArchiveRecord:
            tell(Step(picture, "submitted"))
            payload = {"file": str(path_of(picture)), "instrument": picture.instrument}
            handle = await broker.submit(picture.needs, payload, id=id_)
            task = await handle.wait()
            return await _last_record(connection, task)

        assigning = group.create_task(Assigner(url=url, on_assigned=assigned).assign())
        records = await asyncio.gather(*(submit(id_, picture) for id_, picture in pictures.items()))
        assigning.cancel()
    return records


async def tools_known(url: str) -> int:
    """How many tools have registered."""
    async with Connection(url) as connection:
        return len((await connection.call("GET", "/v1/tools", ToolPage)).items)


async def _follow(connection: Connection, picture: Picture, pair: AssignedPair, tell: Tell) -> None:
    """Tell of every report, as it comes: each wait ends when the work has changed."""
    async for seen in _versions(connection, f"/v1/work/{pair.work_id}"):
        message = seen.reports[-1].message if seen.reports else None
        tell(Step(picture, seen.state, seen.tool_id, seen.progress, message))


async def _versions(connection: Connection, path: str) -> AsyncIterator[WorkWithReports]:
    version = 0
    while True:
        query = {"wait": _WAIT_SECONDS, "after_version": version}
        seen = await connection.call("GET", path, WorkWithReports, query=query, wait=_WAIT_SECONDS)
        if seen.version > version:
            version = seen.version
            yield seen
        if seen.state not in WORK_STATES:
            return


async def _last_record(connection: Connection, task: Task) -> ArchiveRecord:
    query = {"task_id": task.id, "limit": 1}
    return (await connection.call("GET", "/v1/archive", ArchivePage, query=query)).items[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(*arguments: str, environment: dict[str, str]) -> Iterator[None]:
    """A Python process for as long as the block runs, then told to stop."""
    process = subprocess.Popen([sys.executable, *arguments], env=environment)  # noqa: S603 - our own modules
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
