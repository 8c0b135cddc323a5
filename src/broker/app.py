"""Create the service and the application from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import Scope

from broker.access.keyring import Keyring
from broker.access.ownership import Owners
from broker.api.archive import ArchiveController
from broker.api.candidates import CandidatesController
from broker.api.completion import CompletionController
from broker.api.dashboard import DashboardController
from broker.api.docs import DocsController
from broker.api.events import EventsController
from broker.api.health import HealthController
from broker.api.help import HelpController
from broker.api.keys import KeysController
from broker.api.metrics import MetricsController
from broker.api.overview import OverviewController
from broker.api.stats import StatsController
from broker.api.tasks import TasksController
from broker.api.tools import ToolsController
from broker.api.work import WorkController
from broker.background.event_stream import EventStream
from broker.background.presence import Attendance, Presence
from broker.background.upkeep import Upkeep
from broker.http import problems
from broker.http.body import JsonBodies, JsonRequest
from broker.http.guards import access_of
from broker.http.options import options_response
from broker.http.parameters import check_query
from broker.service import Service
from broker.settings import Settings
from broker.store import Store, tasks, work
from broker.store.address import CONNECT_SECONDS, Address
from broker.store.replica_reads import ReadPool, ReplicaReads
from broker.store.shared_queries import SharedQueries
from broker.telemetry.metrics import Metrics
from broker.telemetry.observer import StoreObserver
from broker.trace_context import TraceContext
from broker.wake.listener import TASK, TOOL, Listener
from broker.wake.sweep import FindReadyKeys, Sweep
from broker.wake.wait_limits import WaitLimits
from broker.wake.waiters import Waiters


def create_service(settings: Settings, *, may_be_open: bool = True) -> Service:
    """Create the parts of a broker. The application starts them.

    Args:
        settings: The settings, with a `database_url`.
        may_be_open: Whether every request is allowed while no keys exist.
    """
    if settings.database_url is None:
        raise ValueError("a service needs a database_url")
    metrics = Metrics()
    store = Store(
        settings.database_url,
        pool_size=settings.pool_size,
        timeout_seconds=settings.database_timeout_seconds,
        group_commit=settings.group_commit,
        observer=StoreObserver(metrics),
        pooled=settings.listen_url is not None,
    )
    # For lists, exports and dashboards. No step of the life cycle uses these connections.
    open_for_reads = partial(
        Store,
        timeout_seconds=min(settings.read_timeout_seconds, settings.database_timeout_seconds),
        pooled=settings.listen_url is not None,
    )
    at_once = settings.read_pool_size
    # The two further connections let the event stream and the statistics run without waiting for lists.
    read_store = open_for_reads(settings.database_url, pool_size=at_once + 2)
    primary_reads = ReadPool(read_store, at_once=at_once)
    replica = None
    if settings.read_url is not None:
        standby = open_for_reads(settings.read_url, pool_size=at_once, accepts_writes=False)
        replica = ReadPool(standby, at_once=at_once)
    replica_reads = ReplicaReads(primary_reads, replica)
    waiters = Waiters()
    event_stream = EventStream(read_store)
    listener = Listener(
        waiters,
        Address(
            str(settings.direct_url),
            connect_seconds=min(settings.database_timeout_seconds, CONNECT_SECONDS),
        ).connect,
        probe_seconds=settings.probe_seconds,
        sink=event_stream,
    )
    owners = Owners(store)
    ready_keys: dict[str, FindReadyKeys] = {
        TASK: lambda ids: store.read(tasks.ready_tasks, ids),
        TOOL: lambda ids: store.read(work.ready_tools, ids),
    }
    return Service(
        settings=settings,
        metrics=metrics,
        store=store,
        replica_reads=replica_reads,
        primary_reads=primary_reads,
        owners=owners,
        keyring=Keyring(store, owners, admin_key=settings.load_admin_key(), may_be_open=may_be_open),
        waiters=waiters,
        listener=listener,
        wait_limits=WaitLimits(for_each=settings.max_waits_per_client, in_all=settings.max_waits),
        sweep=Sweep(waiters, listener, ready_keys, seconds=settings.fallback_seconds),
        presence=Presence(store),
        attendance=Attendance(store),
        shared_queries=SharedQueries(ReadPool(read_store, at_once=1)),
        archive_queries=SharedQueries(replica_reads),
        event_stream=event_stream,
        upkeep=Upkeep(
            store,
            waiters,
            retention_days=settings.archive_retention_days,
            reachability_changed_at=lambda: listener.reachability_changed_at,
        ),
    )


def create_app(service: Service) -> Litestar:
    """Create the application. Its lifespan starts and stops the background parts."""
    parts = (service.listener, service.sweep, service.presence, service.upkeep, service.event_stream)
    stores = (service.store, service.primary_reads.store, service.replica_reads)

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        for part in parts:
            part.start()
        try:
            yield
        finally:
            # The server has waited for requests before it ends the lifespan.
            for store in stores:
                store.abort_connections()
            for part in reversed(parts):
                await part.stop()
            for store in stores:
                await store.close()

    handle_error = partial(problems.response, metrics=service.metrics)
    return Litestar(
        route_handlers=[
            ToolsController,
            TasksController,
            CandidatesController,
            WorkController,
            CompletionController,
            ArchiveController,
            EventsController,
            OverviewController,
            StatsController,
            KeysController,
            HealthController,
            MetricsController,
            DocsController,
            DashboardController,
            HelpController,
        ],
        lifespan=[running],
        dependencies={
            "service": Provide(lambda: service, sync_to_thread=False),
            "access": Provide(access_of, sync_to_thread=False),
            "trace_context": Provide(_trace_context, sync_to_thread=False),
        },
        exception_handlers={HTTPException: handle_error, Exception: handle_error},
        before_request=_before_request,
        request_class=JsonRequest,
        request_max_body_size=service.settings.max_body_bytes,
        plugins=[JsonBodies()],
        # broker.http.openapi generates the document.
        openapi_config=None,
        state=State({"service": service}),
        # The service logs with structlog. Litestar's default would run a thread that wakes up continually.
        logging_config=None,
    )


def _trace_context(scope: Scope) -> TraceContext | None:
    """Return the trace context of a request."""
    return TraceContext.of(scope["headers"])


async def _before_request(request: Request[Any, Any, Any]) -> Response[None] | None:
    """Respond to OPTIONS. Check the query of every other request."""
    if response := options_response(request):
        return response
    await check_query(request)
    return None
