"""Metrics of the database, which are the same in every process of the service."""

from collections.abc import Iterator, Mapping

from msgspec import structs
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from broker.schemas.stats import Stats
from broker.store.stats import ServerState


def database_metrics(found: Stats | None, server: ServerState | None) -> bytes:
    """Return the metrics of the database as Prometheus reads them.

    Args:
        found: How many of everything there are; None: the database does not respond.
        server: The state of its server.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_DatabaseMetrics(found, server))
    return generate_latest(registry)


class _DatabaseMetrics(Collector):
    """What the database says.

    Args:
        found: How many of everything there are; None: it does not answer.
        server: The state of its server.
    """

    def __init__(self, found: Stats | None, server: ServerState | None) -> None:
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
