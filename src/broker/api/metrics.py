"""/metrics: the metrics for Prometheus."""

from litestar import Controller, MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from broker.errors import Unavailable
from broker.http.guards import ALL, allow
from broker.service import Service
from broker.store import stats
from broker.telemetry.database_metrics import database_metrics


class MetricsController(Controller):
    """The metrics for Prometheus."""

    path = "/metrics"
    tags = ("Health",)

    @get(media_type=MediaType.TEXT, guards=[allow(operator=ALL)])
    async def read(self, service: NamedDependency[Service]) -> Response[bytes]:
        """Return the metrics in the Prometheus text format.

        Metrics of the database are the same in every instance of the broker, so do not add them up. All other
        metrics describe the worker processes that serve this address.
        """
        service.update_metrics()
        try:
            database_text = database_metrics(*await service.shared_queries.read(stats.read_with_server))
        except Unavailable:
            database_text = database_metrics(None, None)
        return Response(
            await service.metrics.exposition() + database_text, headers={"content-type": CONTENT_TYPE_LATEST}
        )
