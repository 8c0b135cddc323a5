"""/v1/stats: counts and rates of tasks, tools and work."""

from litestar import Controller, get
from litestar.di import NamedDependency

from broker.http.guards import ALL, allow
from broker.schemas.stats import Stats
from broker.service import Service
from broker.store import stats


class StatsController(Controller):
    """Counts and rates of tasks, tools and work."""

    path = "/v1/stats"
    tags = ("Health",)

    @get(guards=[allow(operator=ALL)])
    async def read(self, service: NamedDependency[Service]) -> Stats:
        """Count tasks, tools and work by state, and the events of the last minute.

        The counts are never older than the request. Requests at the same time share one query. If very many
        tasks wait, a request may have to wait two seconds for the next query.
        """
        return await service.shared_queries.read(stats.read)
