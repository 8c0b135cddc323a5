"""/v1/overview: summaries of tools, waiting tasks and endings for dashboards."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from broker.http.guards import ALL, allow
from broker.http.parameters import TIME, After, IdFilter, Limit, Since, Until, time_parameter
from broker.schemas.overview import Failures, History, Queue, Timeline, ToolSummaryPage, WaitingTasks
from broker.service import Service
from broker.store.overview import failures, history, queue, timeline, tools, waiting

_MOST_ATTEMPTS = 5_000
_MOST_BUCKETS = 500
# Limited, because the query counts for each task how many are before it.
_MOST_WAITING = 200


class OverviewController(Controller):
    """Summaries for dashboards: without payloads and results, and with long texts shortened."""

    path = "/v1/overview"
    tags = ("Overview",)

    @get("/tools", guards=[allow(operator=ALL)])
    async def tools(
        self, service: NamedDependency[Service], limit: Limit = 100, after: After = None
    ) -> ToolSummaryPage:
        """List the tools, each with the first of its work and the last that was said about that."""
        return await service.primary_reads.read(tools.page, limit=limit, after=after)

    @get("/queue", guards=[allow(operator=ALL)])
    async def queue(self, service: NamedDependency[Service]) -> Queue:
        """Count what is available by needs and priority, and see who is left out."""
        return await service.shared_queries.read(queue.read)

    @get("/waiting", guards=[allow(operator=ALL)])
    async def waiting(
        self,
        service: NamedDependency[Service],
        limit: Annotated[
            int, QueryParameter(ge=1, le=_MOST_WAITING, description="The most tasks to answer.")
        ] = 100,
    ) -> WaitingTasks:
        """List the tasks that wait, those that were submitted first in front, each with the reason why."""
        return await service.shared_queries.read(waiting.read, limit)

    @get("/timeline", guards=[allow(operator=ALL)])
    async def timeline(
        self,
        service: NamedDependency[Service],
        since: Annotated[
            str | None, QueryParameter(description="Were under way then or later.", schema_extra=TIME)
        ] = None,
        until: Annotated[
            str | None, QueryParameter(description="Were assigned before.", schema_extra=TIME)
        ] = None,
        tool_id: IdFilter = None,
        task_id: IdFilter = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=_MOST_ATTEMPTS, description="The most attempts to answer.")
        ] = 1_000,
    ) -> Timeline:
        """List the attempts that were under way in a span of time, those that ended last first.

        What was still under way at its end is found among the 20,000 attempts that were assigned last before.
        """
        span = timeline.TimelineRange(
            time_parameter(since, "since"), time_parameter(until, "until"), tool_id, task_id
        )
        return await service.replica_reads.read(timeline.read, span, limit)

    @get("/history", guards=[allow(operator=ALL)])
    async def history(
        self,
        service: NamedDependency[Service],
        since: Since = None,
        until: Until = None,
        buckets: Annotated[
            int, QueryParameter(ge=1, le=_MOST_BUCKETS, description="In how many parts.")
        ] = 60,
    ) -> History:
        """Count what ended in each part of a span of time, and how long it had waited and run.

        By default that is the last hour. Attempts without a tool are none.
        """
        begin, end = time_parameter(since, "since"), time_parameter(until, "until")
        return await service.archive_queries.read(history.read, begin, end, buckets)

    @get("/failures", guards=[allow(operator=ALL)])
    async def failures(
        self,
        service: NamedDependency[Service],
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Failures:
        """List the attempts that failed, ran out of time or were lost, the newest first."""
        return await service.replica_reads.read(
            failures.page,
            since=time_parameter(since, "since"),
            until=time_parameter(until, "until"),
            limit=limit,
            after=after,
        )
