"""Fixtures: one PostgreSQL for each test process, and for each test a new database, copied from a template.

`BROKER_TEST_DATABASE_URL` names another PostgreSQL to test against. Its user must have the right to create
databases. Without the variable the tests start the embedded PostgreSQL, without its durable settings. With
`BROKER_TEST_POOLER=1` the brokers connect through PgBouncer in transaction mode.
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

# The process id is part of the name because several test processes may share a server.
TEMPLATE = f"broker_template_{os.getpid()}"
_numbers = count()
# Holds the PgBouncer in front of PostgreSQL, if the tests use one.
_poolers: list[Pooler] = []

# The slowest test files, about the slowest first.
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

# A file system in memory, and the free bytes that the databases of all test processes need there.
MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 5 * 2**30

# Each HTTP client would read the list of certificate authorities, which takes 20 ms. The tests share one.
_default.create_ssl_context = functools.cache(_default.create_ssl_context)


def pytest_configure() -> None:
    """Prepare this process and the environment that its child processes inherit.

    Signals: under nohup or behind a shell's `&`, child processes would inherit that a signal is ignored. They
    do not inherit a handler, so this function installs one for each ignored signal.

    Bytecode: it is written to disk. Otherwise hundreds of child processes would compile the same modules.

    Garbage collection: it is off while pytest collects the tests, because nothing becomes garbage then.

    Logging: tracebacks show no local variables, as in production. With them each traceback takes a second.
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
    """Return the number of cores plus two, because many tests wait for a timer or for another process."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first. If one started last, the other processes would wait for it at the end."""
    positions = {Path(__file__).parent / name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: positions.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Turn garbage collection on again, and exclude the tests, as each broker collects when it starts."""
    gc.freeze()
    gc.enable()


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the factory of the event loop: `NEW_LOOP` of the test's module, or asyncio's."""
    return {"loop": getattr(getattr(item, "module", None), "NEW_LOOP", asyncio.new_event_loop)}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Provide the URL of a PostgreSQL server to create databases on."""
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
    """Provide a data folder for an embedded PostgreSQL that the test starts itself."""
    with temporary_folder() as folder:
        yield folder / "data"


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """Create a migrated database that serves as the template of all others."""
    asyncio.run(run_sql(postgres, f"drop database if exists {TEMPLATE}", f"create database {TEMPLATE}"))
    asyncio.run(migration.migrate(with_database(postgres, TEMPLATE)))
    yield TEMPLATE
    asyncio.run(run_sql(postgres, f"drop database {TEMPLATE}"))


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """Provide the URL of a database without tables."""
    async with temporary_database(postgres) as url:
        yield url


@pytest.fixture
async def database(postgres: str, template: str) -> AsyncIterator[str]:
    """Provide the URL of a database with the current schema and no rows."""
    async with temporary_database(postgres, template) as url:
        yield url


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to the broker's database, to inspect its tables or to block its transactions."""
    connection = await asyncpg.connect(libpq_url(database))
    yield connection
    await connection.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """Open a store on the test's database."""
    store = Store(database)
    yield store
    await store.close()


Serve = Callable[..., Awaitable["Running"]]


class Running:
    """A broker that runs in the test's event loop, with a real uvicorn and real sockets."""

    def __init__(self, server: Server, task: asyncio.Task[None], client: httpx.AsyncClient) -> None:
        self.server = server
        self.task = task
        self.client = client
        self.url = str(client.base_url)

    async def stop(self) -> None:
        """Stop the broker as SIGTERM does."""
        self.server.should_exit = True
        await self.task


@pytest.fixture
async def serve(database: str) -> AsyncIterator[Serve]:
    """Return a function that starts a broker on the test's database, with settings as keyword arguments."""
    async with AsyncExitStack() as running:

        async def start(**settings: object) -> Running:
            return await running.enter_async_context(
                running_broker(Settings(database_url=database, **settings))
            )

        yield start


@pytest.fixture
async def broker(serve: Serve) -> Running:
    """Start a broker and wait until it is ready."""
    return await serve()


@pytest.fixture
def http(broker: Running) -> httpx.AsyncClient:
    """Return an HTTP client of the broker."""
    return broker.client


@functools.cache
def databases_folder() -> Path | None:
    """Return the folder for databases: one in memory if there is space, else None (the temporary folder).

    Each database has 300 files. On ext4, to create files where others were just deleted takes 0.3 s a
    database.
    """
    with contextlib.suppress(OSError):
        free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
        # For root, the embedded PostgreSQL may copy its programs into the data folder and run them there.
        runs_programs = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
        if free >= ENOUGH_MEMORY and runs_programs and os.access(MEMORY, os.W_OK):
            return MEMORY
    return None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder that PostgreSQL's account can read, unlike the folders that pytest creates as root."""
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
    """Start a broker, wait until it is ready, and stop it at the end of the block.

    Args:
        settings: The settings of the broker.
        port: The port to listen on. 0 chooses a free one.
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
                assert not task.done(), "the server ended before it was ready"
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
    # Twice as fast as a copy through the write-ahead log, as this server does not wait for the disk.
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
