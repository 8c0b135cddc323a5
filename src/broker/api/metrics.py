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
        """How the service is.

        What is in the database is the same whichever process of the service is asked: it is not to be added
        up. The rest is of the processes that serve this address.
        """
        service.update_metrics()
        try:
            of_database = database_metrics(*await service.shared_queries.read(stats.read_with_server))
        except Unavailable:
            of_database = database_metrics(None, None)
        return Response(
            await service.metrics.exposition() + of_database, headers={"content-type": CONTENT_TYPE_LATEST}
        )
