"""/metrics: what there is to watch, as Prometheus reads it."""

from collections.abc import Iterator, Mapping

from litestar import Controller, MediaType, Response, get
from litestar.di import NamedDependency
from msgspec import structs
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from broker.errors import Unavailable
from broker.http.guards import ALL, allow
from broker.schemas.stats import Stats
from broker.service import Service
from broker.store import stats
from broker.wake.listener import CANDIDATES, TASK, TOOL, WORK
from broker.wake.waiters import Waiters

# What requests wait for; `/v1/events` has a gauge of its own.
_TOPICS = (CANDIDATES, TASK, TOOL, WORK)


class MetricsPage(Controller):
    """For Prometheus."""

    path = "/metrics"
    tags = ("Health",)

    @get(media_type=MediaType.TEXT, guards=[allow(operator=ALL)])
    async def read(self, service: NamedDependency[Service]) -> Response[bytes]:
        """How the service is.

        What is in the database is the same whichever process of the service is asked: it is not to be added
        up. The rest is of the processes that serve this address.
        """
        note(service)
        of_database = CollectorRegistry(auto_describe=False)
        try:
            found, server = await service.shared_queries.read(stats.read_with_server)
            of_database.register(_OfDatabase(found, server))
        except Unavailable:
            of_database.register(_OfDatabase(None, None))
        return Response(
            await service.metrics.told() + generate_latest(of_database),
            headers={"content-type": CONTENT_TYPE_LATEST},
        )


def note(service: Service) -> None:
    """Have the metrics of a process know what its parts know."""
    gauge, count = service.metrics.gauge, service.metrics.count
    service.metrics.note_process()
    _note_listener(service)
    for topic, parked in _parked(service.waiters).items():
        gauge("broker_parked_requests", "Requests that wait to be woken, by what for.", parked, topic=topic)
    settings = service.settings
    gauge("broker_parked_requests_max", "How many may wait in all (BROKER_MAX_WAITS).", settings.max_waits)
    gauge("broker_database_connections_in_use", "Connections of the pool in use.", service.store.in_use())
    gauge("broker_database_connections_max", "How many the pool may have.", settings.pool_size)
    gauge(
        "broker_lists_waiting",
        "Lists, exports and dashboards that wait for a database connection (BROKER_READ_POOL_SIZE).",
        service.replica_reads.waiting,
    )
    count(
        "broker_lists_not_from_copy",
        "Lists that were read from the database itself though there is BROKER_READ_URL.",
        service.replica_reads.missed,
    )
    for step, waiting in service.store.waiting().items():
        gauge(
            "broker_group_commit_waiting",
            "Calls that wait for the next set, which are refused beyond 10,000.",
            waiting,
            step=step,
        )
    feed = service.event_stream
    gauge("broker_events_watchers", "Clients that watch /v1/events.", feed.watchers)
    count("broker_events_told", "Events told, each once however many watch.", feed.told)
    count("broker_events_resyncs", "How often clients were told to read anew.", feed.resyncs)
    for chore, done in service.upkeep.done.items():
        count(
            "broker_upkeep", "What the upkeep has dealt with: tasks, work, tools, records.", done, chore=chore
        )
    count(
        "broker_leases_expired",
        "Tools that were silent past their lease, and are offline for it.",
        service.upkeep.done["tools"],
    )


def _note_listener(service: Service) -> None:
    gauge, count, listener = service.metrics.gauge, service.metrics.count, service.listener
    gauge(
        "broker_listener_connected",
        "Whether notifications are heard, in every process; if not, waiting requests look every second.",
        int(listener.connected.is_set()),
        of_all="livemin",
    )
    count("broker_listener_connects", "How often the listener has connected.", listener.connects)
    count("broker_listener_notifications", "Notifications heard.", listener.heard)
    if listener.probe_latency_seconds is not None:
        gauge(
            "broker_listener_probe_seconds",
            "How long the last probe took from NOTIFY until it was heard.",
            listener.probe_latency_seconds,
            of_all="livemax",
        )


def _parked(waiters: Waiters) -> dict[str, int]:
    counts = waiters.counts()
    return {topic.removeprefix("broker_"): counts[topic] for topic in _TOPICS}


class _OfDatabase(Collector):
    """What the database says.

    Args:
        found: How many of everything there are; None: it does not answer.
        server: The state of its server.
    """

    def __init__(self, found: Stats | None, server: stats.Server | None) -> None:
        self._found = found
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        found, server = self._found, self._server
        yield GaugeMetricFamily(
            "broker_database_up", "Whether the database has answered just now.", int(found is not None)
        )
        if found is None or server is None:
            return
        room = structs.asdict(found.tools)
        yield GaugeMetricFamily(
            "broker_tools_room", "How much more work the available tools can take.", room.pop("room")
        )
        work = structs.asdict(found.work)
        yield GaugeMetricFamily(
            "broker_work_cancel_requested", "Work that was asked to stop.", work.pop("cancel_requested")
        )
        yield _by_state("broker_tasks", "Live tasks, by state.", structs.asdict(found.tasks))
        yield _by_state("broker_tools", "Tools, by state.", room)
        yield _by_state("broker_work", "Work under way, by state.", work)
        yield GaugeMetricFamily(
            "broker_oldest_available_seconds",
            "How long ago the oldest available task was submitted; 0: there is none.",
            found.oldest_available_seconds or 0,
        )
        if found.assigner_seen_at is not None:
            yield GaugeMetricFamily(
                "broker_assigner_seen_timestamp_seconds",
                "When an assigner last asked.",
                found.assigner_seen_at.timestamp(),
            )
        yield GaugeMetricFamily(
            "broker_database_timestamp_seconds", "What time it is by the database.", found.at.timestamp()
        )
        yield GaugeMetricFamily(
            "broker_notification_queue_usage",
            "How full PostgreSQL's queue of notifications is, from 0 to 1; when it is full, writes fail.",
            server.queue_usage,
        )
        yield GaugeMetricFamily(
            "broker_oldest_transaction_seconds",
            "How long the oldest open transaction of PostgreSQL has been open; 0: there is none.",
            server.oldest_transaction_seconds,
        )


def _by_state(name: str, told: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, told, labels=["state"])
    for state, count in counts.items():
        family.add_metric([state], count)
    return family
