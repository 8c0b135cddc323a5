"""Summaries for dashboards: /v1/overview."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from broker.http.guards import ALL, allow
from broker.http.parameters import (
    TIME,
    After,
    Limit,
    Since,
    TaskIdFilter,
    ToolIdFilter,
    Until,
    time_parameter,
)
from broker.schemas.overview import Failures, History, Queue, Timeline, ToolSummaryPage, WaitingTasks
from broker.service import Service
from broker.store.overview import failures, history, queue, timeline, tools, waiting

_MOST_ATTEMPTS = 5_000
_MOST_BUCKETS = 500
# For each task, the query counts the tasks that come before it.
_MOST_WAITING = 200


class OverviewController(Controller):
    """Summaries for dashboards: no payloads or results, and long texts are shortened."""

    path = "/v1/overview"
    tags = ("Overview",)

    @get("/tools", guards=[allow(operator=ALL)])
    async def tools(
        self, service: NamedDependency[Service], limit: Limit = 100, after: After = None
    ) -> ToolSummaryPage:
        """List the tools, with their oldest work items and the last report on each."""
        return await service.primary_reads.read(tools.page, limit=limit, after=after)

    @get("/queue", guards=[allow(operator=ALL)])
    async def queue(self, service: NamedDependency[Service]) -> Queue:
        """Count the available tasks by needs and priority. List tools without work for over ten minutes."""
        return await service.shared_queries.read(queue.read)

    @get("/waiting", guards=[allow(operator=ALL)])
    async def waiting(
        self,
        service: NamedDependency[Service],
        limit: Annotated[
            int, QueryParameter(ge=1, le=_MOST_WAITING, description="Maximum number of tasks to return.")
        ] = 100,
    ) -> WaitingTasks:
        """List the waiting tasks, oldest first, with the reason why each of them waits."""
        return await service.shared_queries.read(waiting.read, limit)

    @get("/timeline", guards=[allow(operator=ALL)])
    async def timeline(
        self,
        service: NamedDependency[Service],
        since: Annotated[
            str | None,
            QueryParameter(description="Only attempts that ended at this time or later.", schema_extra=TIME),
        ] = None,
        until: Annotated[
            str | None,
            QueryParameter(
                description="Only attempts that were assigned before this time.", schema_extra=TIME
            ),
        ] = None,
        tool_id: ToolIdFilter = None,
        task_id: TaskIdFilter = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=_MOST_ATTEMPTS, description="Maximum number of attempts to return.")
        ] = 1_000,
    ) -> Timeline:
        """List the ended attempts that were in progress in a time range, the latest end first.

        The list may omit attempts that ended after the range. The broker searches for them only among the
        last 20,000 attempts that were assigned before the end of the range.
        """
        time_range = timeline.TimelineRange(
            time_parameter(since, "since"), time_parameter(until, "until"), tool_id, task_id
        )
        return await service.replica_reads.read(timeline.read, time_range, limit)

    @get("/history", guards=[allow(operator=ALL)])
    async def history(
        self,
        service: NamedDependency[Service],
        since: Since = None,
        until: Until = None,
        buckets: Annotated[int, QueryParameter(ge=1, le=_MOST_BUCKETS, description="Number of parts.")] = 60,
    ) -> History:
        """Count the attempts that ended in each part of a time range, with their waiting and run times.

        The default is the last hour. Records of tasks that were never assigned do not count.
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
        """List the attempts that failed, timed out or were lost, the newest first."""
        return await service.replica_reads.read(
            failures.page,
            since=time_parameter(since, "since"),
            until=time_parameter(until, "until"),
            limit=limit,
            after=after,
        )
