"""One PostgreSQL for each process that tests, and for each test a database of its own, cut from a template.

`BROKER_TEST_DATABASE_URL` names another PostgreSQL to test against (its user may create databases);
otherwise the embedded one runs, without its durable settings. With `BROKER_TEST_POOLER=1` the brokers reach
it through PgBouncer in transaction mode.
"""

import asyncio
import contextlib
import functools
import gc
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import asyncpg
import httpx
import msgspec
import psutil
import pytest
import structlog
from httpx._transports import default as _default
from sqlalchemy import make_url

from broker.postgres.cluster import EmbeddedPostgres
from broker.server.http_server import Server, create_server
from broker.settings import Settings
from broker.store import Store, migration
from broker.store.address import libpq_url
from tests.support.pooler import Pooler

# Of this process alone: several that test at once may share a server.
TEMPLATE = f"broker_template_{os.getpid()}"
_numbers = count()
# What stands before that PostgreSQL, if anything does.
_poolers: list[Pooler] = []

# The files that take longest, and about the longest of them first.
LONGEST = (
    "crash/test_crash.py",
    "postgres/test_backup.py",
    "store/test_plans_of_a_backlog.py",
    "server/test_workers.py",
    "access/test_keys.py",
    "http/test_openapi.py",
    "docs/test_docs.py",
    "server/test_connections.py",
    "web/test_dashboard.py",
    "http/test_guards.py",
    "server/test_serve.py",
    "bench/test_bench.py",
    "store/test_migrations.py",
    "demo/test_demo.py",
    "api/test_keys.py",
    "store/test_upgrade.py",
    "life_cycle/test_life_cycle.py",
    "postgres/test_embedded.py",
)

# A file system in memory, and the free bytes that it needs to hold the databases of all test processes.
MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 5 * 2**30

# Each HTTP client reads the list of certificate authorities, which takes 20 ms. Tests share one.
_default.create_ssl_context = functools.cache(_default.create_ssl_context)


def pytest_configure() -> None:
    """Prepare what the processes that tests start inherit.

    They get the usual signals, also under nohup or behind a shell's `&`: a program inherits that a signal is
    ignored, and does not inherit a handler. They keep the bytecode of what they import: hundreds of them
    would each compile the same modules. This process keeps that of the test modules.

    While tests are collected, nothing becomes garbage.

    The log of brokers in this process shows no local variables in tracebacks, as in production: each
    traceback would take a second.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    gc.disable()
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_xdist_auto_num_workers() -> int:
    """Return two processes more than there are cores: many tests wait, for a timer or for another process."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: one that began last would keep a single process busy."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Collect garbage again, but never look through the tests: each broker collects when it starts."""
    gc.freeze()
    gc.enable()


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of a module's tests: its `NEW_LOOP`, where it has one."""
    return {"loop": getattr(getattr(item, "module", None), "NEW_LOOP", asyncio.new_event_loop)}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server to make databases on."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get("BROKER_TEST_DATABASE_URL")
        if not url:
            folder = stack.enter_context(temporary_folder())
            url = stack.enter_context(EmbeddedPostgres(folder / "data", durable=False)).url()
        if os.environ.get("BROKER_TEST_POOLER"):
            _poolers.append(stack.enter_context(Pooler(url)))
            stack.callback(_poolers.clear)
        yield url


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for an embedded PostgreSQL of the test's own."""
    with temporary_folder() as folder:
        yield folder / "data"


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """A migrated database that others are cut from."""
    asyncio.run(run_sql(postgres, f"drop database if exists {TEMPLATE}", f"create database {TEMPLATE}"))
    asyncio.run(migration.migrate(with_database(postgres, TEMPLATE)))
    yield TEMPLATE
    asyncio.run(run_sql(postgres, f"drop database {TEMPLATE}"))


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """The URL of a database with nothing in it."""
    async with temporary_database(postgres) as url:
        yield url


@pytest.fixture
async def database(postgres: str, template: str) -> AsyncIterator[str]:
    """The URL of a database with the current schema and no rows."""
    async with temporary_database(postgres, template) as url:
        yield url


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the broker's: to look at its tables, or to be in its way."""
    connection = await asyncpg.connect(libpq_url(database))
    yield connection
    await connection.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """A store on a database of its own."""
    store = Store(database)
    yield store
    await store.close()


Serve = Callable[..., Awaitable["Running"]]


class Running:
    """A broker that runs in the test's own loop: real uvicorn, real sockets."""

    def __init__(self, server: Server, task: asyncio.Task[None], client: httpx.AsyncClient) -> None:
        self.server = server
        self.task = task
        self.client = client
        self.url = str(client.base_url)

    async def stop(self) -> None:
        """What SIGTERM does."""
        self.server.should_exit = True
        await self.task


@pytest.fixture
async def serve(database: str) -> AsyncIterator[Serve]:
    """Starts brokers on the test's database; each takes settings as keywords."""
    async with AsyncExitStack() as running:

        async def start(**settings: object) -> Running:
            return await running.enter_async_context(
                running_broker(Settings(database_url=database, **settings))
            )

        yield start


@pytest.fixture
async def broker(serve: Serve) -> Running:
    """A broker that is ready."""
    return await serve()


@pytest.fixture
def http(broker: Running) -> httpx.AsyncClient:
    """A client of the broker."""
    return broker.client


@functools.cache
def databases_folder() -> Path | None:
    """Return the folder for databases: in memory if it has room; None is the usual temporary folder.

    Each database has 300 files. Creating files where others were just deleted takes ext4 0.3 s a database.
    """
    with contextlib.suppress(OSError):
        free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
        # As root, PostgreSQL's programs may be copied to the data, and run there.
        runs_programs = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
        if free >= ENOUGH_MEMORY and runs_programs and os.access(MEMORY, os.W_OK):
            return MEMORY
    return None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Not pytest's: as root that is closed to the account that Postgres runs under."""
    folder = Path(tempfile.mkdtemp(prefix="broker-tests-", dir=databases_folder()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def running_broker(
    settings: Settings, port: int = 0, *, without_grace: bool = True
) -> AsyncIterator[Running]:
    """A broker.

    Args:
        settings: Its settings.
        port: 0: a free one.
        without_grace: Expire the leases of silent tools at once, although the broker has just started.
    """
    for pooler in _poolers:
        if settings.database_url and settings.listen_url is None:
            settings = msgspec.structs.replace(
                settings,
                database_url=pooler.pooled_url(settings.database_url),
                listen_url=settings.database_url,
            )
    server = create_server(settings, port=port)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                assert not task.done(), "the server ended before it began"
                await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=70, limits=limits) as client:
            async with asyncio.timeout(30):
                while (await client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.005)
            if without_grace:
                server.service.upkeep.away_at = server.service.listener.reachability_changed_at = -math.inf
            yield Running(server, task, client)
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def temporary_database(postgres: str, template: str = "template1") -> AsyncIterator[str]:
    name = f"broker_test_{os.getpid()}_{next(_numbers)}"
    # A copy of the files takes half the time of one through the log, as nothing waits for the disk here.
    await run_sql(postgres, f"create database {name} template {template} strategy file_copy")
    try:
        yield with_database(postgres, name)
    finally:
        await run_sql(postgres, f"drop database {name} with (force)")


async def run_sql(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(libpq_url(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)
