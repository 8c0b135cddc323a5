"""Metrics of the database, which are the same in all processes of the service."""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import structs
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from broker.schemas.stats import Stats
from broker.store.stats import ServerState
from broker.telemetry import metric_definitions
from broker.telemetry.metric_definitions import MetricDefinition

#: A metric and its value. A metric with a label has a value for each value of the label.
MetricValue = tuple[MetricDefinition, float | Mapping[str, float]]


def database_metrics(statistics: Stats | None, server: ServerState | None) -> bytes:
    """Return the metrics of the database in the Prometheus text format.

    Without arguments (None), report that the database does not respond.
    """
    values: list[MetricValue] = [(metric_definitions.DATABASE_UP, int(statistics is not None))]
    if statistics is not None and server is not None:
        values += _values(statistics, server)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_DatabaseCollector(values))
    return generate_latest(registry)


def _values(statistics: Stats, server: ServerState) -> Iterator[MetricValue]:
    tools = structs.asdict(statistics.tools)
    yield metric_definitions.TOOLS_ROOM, tools.pop("room")
    work = structs.asdict(statistics.work)
    yield metric_definitions.WORK_CANCEL_REQUESTED, work.pop("cancel_requested")
    yield metric_definitions.TASKS, structs.asdict(statistics.tasks)
    yield metric_definitions.TOOLS, tools
    yield metric_definitions.WORK, work
    yield metric_definitions.OLDEST_AVAILABLE_SECONDS, statistics.oldest_available_seconds or 0
    if statistics.assigner_seen_at is not None:
        yield metric_definitions.ASSIGNER_SEEN, statistics.assigner_seen_at.timestamp()
    yield metric_definitions.DATABASE_TIME, statistics.at.timestamp()
    yield metric_definitions.NOTIFICATION_QUEUE_USAGE, server.queue_usage
    yield metric_definitions.OLDEST_TRANSACTION_SECONDS, server.oldest_transaction_seconds


class _DatabaseCollector(Collector):
    """Gauges with values that were read before. The library's own gauges would be shared by all processes."""

    def __init__(self, values: Iterable[MetricValue]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for definition, value in self._values:
            family = GaugeMetricFamily(definition.name, definition.help, labels=definition.labels)
            if isinstance(value, Mapping):
                for label, number in value.items():
                    family.add_metric([label], number)
            else:
                family.add_metric([], value)
            yield family
