"""/metrics: what there is to watch, as Prometheus reads it."""

from collections.abc import Iterator

from litestar import Controller, MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from broker.api.access import ALL, allow
from broker.api.service import Service


class Metrics(Controller):
    """For Prometheus."""

    path = "/metrics"
    tags = ("Health",)

    @get(media_type=MediaType.TEXT, guards=[allow(operator=ALL)])
    async def read(self, service: NamedDependency[Service]) -> Response[bytes]:
        """How the service is: counters and gauges of this process."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_OfProcess(service))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _OfProcess(Collector):
    """What one process knows of itself, read when it is asked for: nothing is counted twice."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        yield from self._of_listener()
        yield GaugeMetricFamily(
            "broker_waiting_requests", "Requests and loops that wait to be woken.", len(self._service.waiters)
        )
        yield GaugeMetricFamily(
            "broker_database_connections_in_use",
            "Connections of the pool in use.",
            self._service.store.in_use(),
        )
        yield from self._of_feed()
        done = CounterMetricFamily(
            "broker_upkeep", "What the upkeep has dealt with: tasks, work, tools, records.", labels=["chore"]
        )
        for chore, count in self._service.upkeep.done.items():
            done.add_metric([chore], count)
        yield done

    def _of_listener(self) -> Iterator[Metric]:
        listener = self._service.listener
        yield GaugeMetricFamily(
            "broker_listener_connected",
            "Whether notifications are heard; if not, waiting requests look every second.",
            int(listener.connected.is_set()),
        )
        yield CounterMetricFamily(
            "broker_listener_connects", "How often the listener has connected.", listener.connects
        )
        yield CounterMetricFamily("broker_listener_notifications", "Notifications heard.", listener.heard)
        if listener.probe_latency_seconds is not None:
            yield GaugeMetricFamily(
                "broker_listener_probe_seconds",
                "How long the last probe took from NOTIFY until it was heard.",
                listener.probe_latency_seconds,
            )

    def _of_feed(self) -> Iterator[Metric]:
        feed = self._service.feed
        yield GaugeMetricFamily("broker_events_watchers", "Clients that watch /v1/events.", feed.watchers)
        yield CounterMetricFamily(
            "broker_events_told", "Events told, each once however many watch.", feed.told
        )
        yield CounterMetricFamily(
            "broker_events_resyncs", "How often clients were told to read anew.", feed.resyncs
        )
