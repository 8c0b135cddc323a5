"""/v1/stats: the state of the broker in a few numbers."""

from litestar import Controller, get
from litestar.di import NamedDependency

from broker.http.guards import ALL, allow
from broker.schemas.stats import Stats
from broker.service import Service
from broker.store import stats


class StatsController(Controller):
    """The state of the broker in a few numbers."""

    path = "/v1/stats"
    tags = ("Health",)

    @get(guards=[allow(operator=ALL)])
    async def read(self, service: NamedDependency[Service]) -> Stats:
        """Count tasks, tools and work by their state, and what has happened in the last minute.

        The answer is no older than the request. Those who ask at the same time share one; with very many
        tasks waiting it may be two seconds until the next one is made.
        """
        return await service.shared_queries.read(stats.read)
