"""/v1/work: assign, read, start, report on and cancel work."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED

from broker.errors import (
    BrokerError,
    PayloadTooLarge,
    TaskNotFound,
    TaskUnavailable,
    ToolNotFound,
    ToolUnavailable,
    WorkEnded,
    WorkNotFound,
)
from broker.http.ended_work import ended_record, work_has_ended
from broker.http.guards import ALL, OWN, Access, allow, allow_work
from broker.http.parameters import After, Limit, TaskIdFilter, ToolIdFilter, Wait, extra_response, work_id_of
from broker.http.waiting import hand_over, prefers_minimal, wait_for
from broker.schemas.candidates import AssignedPair, AssignedPairs, Pair, Pairs, PairStatus
from broker.schemas.states import WORK_STATES, WorkState
from broker.schemas.values import Nothing
from broker.schemas.work import (
    NewCancellation,
    NewReport,
    Reported,
    ReportPage,
    Work,
    WorkPage,
    WorkWithReports,
)
from broker.service import Service
from broker.store import assignment, cancellation, reports, work
from broker.store.cancellation import Cancellation
from broker.store.replica_reads import read_page
from broker.trace_context import TraceContext
from broker.wake.listener import TOOL, WORK

_REFUSALS: dict[PairStatus, type[BrokerError]] = {
    "task_not_found": TaskNotFound,
    "task_unavailable": TaskUnavailable,
    "tool_not_found": ToolNotFound,
    "tool_unavailable": ToolUnavailable,
}

_MAY_READ = allow_work(tool=OWN, token=OWN, assigner=ALL, operator=ALL)
_MAY_DO = allow_work(fenced=True, tool=OWN, token=OWN)


class WorkController(Controller):
    """Work: one attempt of one tool at one task."""

    path = "/v1/work"
    tags = ("Work",)

    @get(guards=[allow(tool=OWN, token=OWN, assigner=ALL, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        tool_id: ToolIdFilter = None,
        task_id: TaskIdFilter = None,
        in_state: Annotated[
            WorkState | None, QueryParameter(name="state", description="Only work in this state.")
        ] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> WorkPage:
        """List the work in progress, in the order of assignment."""
        if (own := access.caller.tool_id) is not None:
            if tool_id not in (None, own):
                return WorkPage(items=[], next=None)
            tool_id = own
        which = work.WorkFilter(tool_id, task_id, in_state, registered_by=access.key)
        return await read_page(service.primary_reads, work.page, which, limit=limit, after=after)

    @post(
        tags=["The assigner"],
        fast_path=True,
        guards=[allow(assigner=ALL)],
        responses={HTTP_200_OK: extra_response(Work, "The tool has the task already.")},
        errors=[*_REFUSALS.values()],
    )
    async def assign(self, data: JSONBody[Pair], service: NamedDependency[Service]) -> Response[Work]:
        """Assign a task to a tool.

        If the tool has the task already, the response is 200 with the same work. The broker checks the task
        before the tool.
        """
        assigned = await service.store.one(assignment.assign, data)
        if assigned.work is None:
            raise _REFUSALS[assigned.status]
        hand_over(service, [assigned])
        status = HTTP_201_CREATED if assigned.status == "assigned" else HTTP_200_OK
        return Response(assigned.work, status_code=status)

    @post(
        "/batch", status_code=HTTP_200_OK, fast_path=True, tags=["The assigner"], guards=[allow(assigner=ALL)]
    )
    async def assign_many(self, data: JSONBody[Pairs], service: NamedDependency[Service]) -> AssignedPairs:
        """Assign up to 10,000 tasks to tools.

        The broker handles each pair independently. An earlier pair wins over a later one.
        """
        waiting = service.waiters.waited_for(TOOL, {pair.tool_id for pair in data.items})
        if waiting:
            pairs = [
                assignment.WaitingPair(pair.task_id, pair.tool_id, pair.tool_id in waiting)
                for pair in data.items
            ]
            results = await service.store.each(assignment.assign_to_waiting, pairs)
            hand_over(service, results)
        else:
            results = await service.store.each(assignment.assign_briefly, data.items)
        return AssignedPairs(
            items=[
                AssignedPair(
                    task_id=pair.task_id,
                    tool_id=pair.tool_id,
                    status=assigned.status,
                    work_id=assigned.work_id,
                )
                for pair, assigned in zip(data.items, results, strict=True)
            ]
        )

    @get("/{work_id:str}", guards=[_MAY_READ], errors=[WorkNotFound], returns_trace=True)
    async def read(
        self,
        request: Request[Any, Any, Any],
        work_id: FromPath[str],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
        after_version: Annotated[
            int | None,
            QueryParameter(
                ge=0,
                le=2**31 - 1,
                description="With `wait`: respond when the `version` of the work is above this. Default: its"
                " version when the request arrives.",
            ),
        ] = None,
    ) -> Response[WorkWithReports]:
        """Read work with its latest reports.

        With `wait`, the broker responds when the work changes: when its `version` is above `after_version`.
        Ended work is returned at once, from the archive. With `Prefer: return=minimal` (RFC 7240), the
        response has only `state`, `version` and `cancel_requested`.
        """
        id_ = work_id_of(work_id)
        version: int | None = after_version
        is_minimal = prefers_minimal(request)

        async def read_state() -> work.TracedWork:
            read = work.status if is_minimal else work.with_reports
            if (seen := await service.store.read(read, id_)) is None:
                raise WorkNotFound
            return seen

        def has_changed(seen: work.TracedWork) -> bool:
            nonlocal version
            version = seen.work.version if version is None else version
            return seen.work.version > version or seen.work.state not in WORK_STATES

        seen = await wait_for(
            request,
            service,
            access,
            read_state,
            until=has_changed,
            wait=wait,
            topic=WORK,
            key=str(id_),
            tool=access.tool,
        )
        headers = (
            {"Preference-Applied": "return=minimal"} if is_minimal else _trace_headers(seen.trace_context)
        )
        content: Any = seen.work
        return Response(content, headers=headers)

    @post(
        "/{work_id:str}/start",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[_MAY_DO],
        errors=[WorkNotFound, WorkEnded],
        returns_trace=True,
    )
    async def start(
        self,
        work_id: FromPath[str],
        data: JSONBody[Nothing],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Response[Work]:
        """Start work.

        The tool reports that it begins the work. You can safely repeat the request. If the tool does not
        start the work within its lease, the broker archives the work as `lost`.
        """
        started = await service.store.one(work.start, work.Start(work_id_of(work_id), access.caller.token))
        if started is None:
            raise await work_has_ended(service, access, work_id_of(work_id))
        return Response(started.work, headers=_trace_headers(started.trace_context))

    @post(
        "/{work_id:str}/reports",
        fast_path=True,
        guards=[_MAY_DO],
        responses={HTTP_200_OK: extra_response(Reported, "A report with this id exists already.")},
        errors=[WorkNotFound, WorkEnded],
        returns_trace=True,
    )
    async def report(
        self,
        work_id: FromPath[str],
        data: JSONBody[NewReport],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Response[Reported]:
        """Report progress of work, and renew the lease of its tool.

        If a report with the same `id` exists, the broker writes nothing and responds with 200. A report on
        work that is not started starts it.
        """
        id_ = work_id_of(work_id)
        report = reports.ReportOf(id_, data, access.caller.token)
        written = await service.store.one(reports.write, report, size=len(data.data))
        if written is None:
            raise await work_has_ended(service, access, id_)
        if not written.is_stored:
            raise PayloadTooLarge(
                "This work has reached the limit of 100,000 reports or 128 MiB of reports. The work"
                " continues. Report less often, or store large data elsewhere and report its location."
            )
        reported = Reported(
            id=written.id,
            cancel_requested=written.cancel_requested,
            lease_expires_at=written.lease_expires_at,
        )
        status = HTTP_201_CREATED if written.created else HTTP_200_OK
        return Response(reported, status_code=status, headers=_trace_headers(written.trace_context))

    @get("/{work_id:str}/reports", guards=[_MAY_READ], errors=[WorkNotFound])
    async def reports(
        self,
        work_id: FromPath[str],
        service: NamedDependency[Service],
        limit: Limit = 100,
        after: After = None,
    ) -> ReportPage:
        """List the reports on work, oldest first. The work may have ended."""
        page = await service.primary_reads.read(reports.page, work_id_of(work_id), limit=limit, after=after)
        if page is None:
            raise WorkNotFound
        return page

    @post(
        "/{work_id:str}/cancel",
        status_code=HTTP_202_ACCEPTED,
        guards=[allow(operator=ALL)],
        errors=[WorkNotFound, WorkEnded],
    )
    async def cancel(
        self, work_id: FromPath[str], data: JSONBody[NewCancellation], service: NamedDependency[Service]
    ) -> Work:
        """Request the cancellation of work.

        The response to the tool's next heartbeat, report or wait contains the request. If the work then ends
        with any other outcome than `succeeded`, its task is cancelled. With `requeue`, the task becomes
        available again instead.
        """
        id_ = work_id_of(work_id)
        cancelled = await service.store.one(cancellation.cancel, Cancellation(id_, data.requeue))
        if cancelled is None:
            raise WorkEnded((await ended_record(service, id_)).outcome)
        return cancelled


def _trace_headers(context: TraceContext | None) -> dict[str, str] | None:
    """Return the headers with the trace context in which the task was submitted."""
    return context.headers() if context else None
